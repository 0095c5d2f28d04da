"""Measurements of an export: what depends on the machine, and so not on the manifest's hashes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mmf_deploy import machine, measured
from mmf_deploy.engines.base import Engine
from mmf_deploy.nn.sampler import Sampler
from mmf_deploy.spec import SampleSpec

from .graph import fixed_inputs
from .sensitivity import median_ms


@dataclass
class Measured:
    """Collected while a bundle is made; written as measured.json.

    Attributes:
        latency: by variant: milliseconds of one image at batch 1, and where.
        pytorch: by number of steps: the same of PyTorch eager, what it is compared with.
        forms: by target: milliseconds of every candidate form, where they were tried.
        int8: by variant: what was quantised, and the trade-off curve.
    """

    latency: dict[str, dict[str, Any]] = field(default_factory=dict)
    pytorch: dict[str, float] = field(default_factory=dict)
    forms: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    int8: dict[str, dict[str, Any]] = field(default_factory=dict)

    def save(self, directory: Path, versions: dict[str, str]) -> None:
        """Write measured.json into a bundle."""
        content = {
            "machine": machine.describe(),
            "versions": versions,
            "latency": self.latency,
            "pytorch": self.pytorch,
            "forms": self.forms,
            "int8": self.int8,
        }
        (directory / measured.NAME).write_bytes(measured.render(content))


@torch.inference_mode()
def pytorch_ms(sampler: Sampler, spec: SampleSpec, seconds: float = 1.0) -> float:
    """Median milliseconds of one image at batch 1 in PyTorch eager on the CPU.

    With one thread or all, whichever is faster: on small networks threads cost more than they
    gain, and an easier baseline would flatter us.
    """
    inputs = fixed_inputs(spec, 1).tensors()
    threads = torch.get_num_threads()
    times = []
    try:
        for count in {1, threads}:
            torch.set_num_threads(count)
            times.append(median_ms(lambda: sampler(**inputs), seconds / 2))
    finally:
        torch.set_num_threads(threads)
    return round(min(times), 4)


def latency_ms(engine: Engine, seconds: float = 1.0) -> float:
    """Median milliseconds of one image at batch 1 through an open engine."""
    inputs = fixed_inputs(engine.spec, 1)
    return round(
        median_ms(lambda: engine.run(inputs.noise, inputs.label, inputs.guidance), seconds), 4
    )

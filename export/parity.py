"""Image by image, an exported graph against the PyTorch sampler it came from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mmf_deploy.errors import ParityError, require
from mmf_deploy.nn.sampler import Sampler
from mmf_deploy.spec import SampleSpec

from .graph import fixed_inputs

BATCHES = (1, 2, 7, 64)


@dataclass(frozen=True)
class Tolerance:
    """Largest differences allowed.

    Attributes:
        absolute: of ``sample``, whose natural scale is 1.
        levels: of ``image``, in levels of 255.
    """

    absolute: float
    levels: int


TOLERANCES = {"fp32": Tolerance(absolute=1e-3, levels=1)}


@dataclass(frozen=True)
class Parity:
    """Measured differences over all batch sizes.

    Attributes:
        max_abs, rms: of ``sample``.
        max_levels: of ``image``; 0 for vectors.
        samples: number of samples compared.
    """

    max_abs: float
    rms: float
    max_levels: int
    samples: int

    def as_dict(self) -> dict[str, float]:
        """For the manifest, with three significant digits."""
        return {
            "max_abs": float(f"{self.max_abs:.2e}"),
            "rms": float(f"{self.rms:.2e}"),
            "max_levels": self.max_levels,
            "samples": self.samples,
        }


def compare(
    sampler: Sampler,
    spec: SampleSpec,
    path: Path,
    batches: Sequence[int] = BATCHES,
    on_progress: Callable[[int], None] = lambda images: None,
) -> Parity:
    """Run the graph with ONNX Runtime on the CPU and the sampler in PyTorch, same inputs.

    Args:
        batches: batch sizes; every sample of every batch is another seed.
        on_progress: called with the number of images each engine has just made.
    Raises:
        ParityError: an output that is not finite.
    """
    ort = require("onnxruntime", "cpu")
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    worst, squares, elements, levels, seed = 0.0, 0.0, 0, 0, 0
    for batch in batches:
        inputs = fixed_inputs(spec, batch, seed)
        seed += batch
        found = session.run(None, inputs.named())
        on_progress(batch)
        with torch.inference_mode():
            expected = [o.numpy() for o in sampler(**inputs.tensors())]
        on_progress(batch)
        if found[0].shape != expected[0].shape:
            raise ParityError(
                f"{path.name}: batch {batch}: shape {found[0].shape}, expected {expected[0].shape}"
            )
        if not (np.isfinite(found[0]).all() and np.isfinite(expected[0]).all()):
            raise ParityError(f"{path.name}: batch {batch}: values that are not finite")
        difference = found[0].astype(np.float64) - expected[0]
        worst = max(worst, float(np.abs(difference).max()))
        squares += float((difference**2).sum())
        elements += difference.size
        if len(found) > 1:
            step = np.abs(found[1].astype(np.int16) - expected[1].astype(np.int16))
            levels = max(levels, int(step.max()))
    return Parity(worst, (squares / elements) ** 0.5, levels, seed)


def judge(parity: Parity, tolerance: Tolerance, name: str) -> None:
    """Refuse a graph that differs too much.

    Raises:
        ParityError: with what was measured and what is allowed.
    """
    within = parity.max_abs <= tolerance.absolute and parity.max_levels <= tolerance.levels
    if not within:  # so that NaN is not within
        raise ParityError(
            f"{name} differs from the checkpoint by up to {parity.max_abs:.2g} "
            f"({parity.max_levels} of 255 levels); allowed are {tolerance.absolute:g} and "
            f"{tolerance.levels}. Nothing was written"
        )

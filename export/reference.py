"""What PyTorch gives for fixed seeds: every variant is compared with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mmf_deploy.nn.sampler import Sampler
from mmf_deploy.spec import SampleSpec

from .graph import Inputs, fixed_inputs

CHUNK = 32


@dataclass(frozen=True)
class Reference:
    """Outputs of the PyTorch sampler, unfolded, in float32 on the CPU.

    Attributes:
        inputs: seeds 0 … N − 1, labels in turn, guidance over its range.
        sample: float32 [N, *shape].
        image: uint8 [N, H, W, C]; None for vectors.
    """

    spec: SampleSpec
    inputs: Inputs
    sample: NDArray[np.float32]
    image: NDArray[np.uint8] | None

    def __len__(self) -> int:
        return len(self.sample)


@torch.inference_mode()
def reference(
    sampler: Sampler,
    spec: SampleSpec,
    count: int,
    on_progress: Callable[[int], None] = lambda images: None,
) -> Reference:
    """Run the PyTorch sampler over ``count`` seeds."""
    inputs = fixed_inputs(spec, count)
    tensors = inputs.tensors()
    parts = []
    for start in range(0, count, CHUNK):
        found = sampler(**{k: v[start : start + CHUNK] for k, v in tensors.items()})
        parts.append([part.numpy() for part in found])
        on_progress(len(parts[-1][0]))
    joined = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return Reference(spec, inputs, joined[0], joined[1] if spec.is_image else None)


def samples_to_compare(spec: SampleSpec, asked: int | None) -> int:
    """How many seeds are compared: 2,000 of small images, 256 of large ones."""
    if asked is not None:
        return asked
    return 2000 if spec.elements <= 1024 else 256

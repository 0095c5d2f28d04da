"""What is exported: the whole sampler of a checkpoint, with example inputs to trace it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mmf_deploy.checkpoint import Checkpoint
from mmf_deploy.nn.build import network_from
from mmf_deploy.nn.sampler import Sampler, time_grid
from mmf_deploy.noise import gaussian_batch
from mmf_deploy.spec import SampleSpec


@dataclass(frozen=True)
class Inputs:
    """Inputs of a graph, as arrays.

    Attributes:
        noise: float32 [B, *shape].
        label: int64 [B] or None.
        guidance: float32 [B] or None.
    """

    noise: NDArray[np.float32]
    label: NDArray[np.int64] | None
    guidance: NDArray[np.float32] | None

    def named(self) -> dict[str, NDArray[np.generic]]:
        """Those that exist, by graph input name."""
        every = {"noise": self.noise, "label": self.label, "guidance": self.guidance}
        return {name: value for name, value in every.items() if value is not None}

    def tensors(self) -> dict[str, torch.Tensor]:
        """The same as tensors."""
        return {name: torch.from_numpy(value) for name, value in self.named().items()}


def fixed_inputs(spec: SampleSpec, batch: int, first_seed: int = 0) -> Inputs:
    """Inputs of consecutive seeds: labels in turn, guidance over its range."""
    seeds = range(first_seed, first_seed + batch)
    label = np.array([spec.default_label(s) for s in seeds], np.int64)
    guidance = None
    if spec.guidance is not None:
        guidance = np.linspace(*spec.guidance, batch, dtype=np.float32)
    return Inputs(gaussian_batch(seeds, spec.shape), label if spec.conditional else None, guidance)


def frozen_sampler(checkpoint: Checkpoint, weights: str, steps: int = 1) -> Sampler:
    """The sampler with its times as constants, in evaluation mode on the CPU."""
    net = network_from(checkpoint, weights)
    return Sampler(net, time_grid(steps), checkpoint.spec.is_image).eval()

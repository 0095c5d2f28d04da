"""Inputs of a sampler and of its graph, for seeds in a row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

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

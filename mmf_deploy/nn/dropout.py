"""Dropout whose mask can belong to the sample instead of the pass.

A training step evaluates the network several times on the same samples. A derivative
taken between passes with different masks would measure the masks, so within
``shared_masks`` every sample keeps one mask for the whole step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Rows = slice | Tensor


@dataclass
class SharedMasks:
    """Masks of the samples of one step.

    Attributes:
        samples: batch size of the step.
        rows: which of the samples the next pass evaluates, in its order.
    """

    samples: int
    rows: Rows = field(default_factory=lambda: slice(None))
    _drawn: dict[int, Tensor] = field(default_factory=dict)

    def mask(self, layer: Dropout, x: Tensor) -> Tensor:
        """The mask of x's samples in one layer, drawn at its first pass."""
        if id(layer) not in self._drawn:
            keep = torch.full((self.samples, *x.shape[1:]), 1.0 - layer.p, device=x.device)
            self._drawn[id(layer)] = torch.bernoulli(keep) / (1.0 - layer.p)
        return self._drawn[id(layer)][self.rows]


# a plain list, not a context variable: torch.compile follows this one through a whole step
_active: list[SharedMasks] = []


@contextmanager
def shared_masks(samples: int) -> Iterator[SharedMasks]:
    """Within, every ``Dropout`` gives each of ``samples`` samples one mask for all passes.

    For one step at a time: not for two threads of one process.
    """
    masks = SharedMasks(samples)
    _active.append(masks)
    try:
        yield masks
    finally:
        _active.pop()


class Dropout(nn.Module):
    """Inverted dropout with probability p, in training mode only."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        if not _active:
            return F.dropout(x, self.p)
        return x * _active[-1].mask(self, x).to(x.dtype)

"""Dropout whose mask can belong to the sample instead of the pass.

A training step evaluates the network several times on the same samples. A derivative
taken between passes with different masks would measure the masks, so within
``shared_masks`` every sample keeps one mask for the whole step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
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


_current: ContextVar[SharedMasks | None] = ContextVar("shared_masks", default=None)


@contextmanager
def shared_masks(samples: int) -> Iterator[SharedMasks]:
    """Within, every ``Dropout`` gives each of ``samples`` samples one mask for all passes."""
    masks = SharedMasks(samples)
    token = _current.set(masks)
    try:
        yield masks
    finally:
        _current.reset(token)


class Dropout(nn.Module):
    """Inverted dropout with probability p, in training mode only."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        masks = _current.get()
        return F.dropout(x, self.p) if masks is None else x * masks.mask(self, x).to(x.dtype)

"""Which samples and which random numbers belong to which step.

Both are functions of (seed, step) alone. A resumed run therefore continues bit for bit
with nothing but the step number saved.
"""

from __future__ import annotations

import functools
import hashlib

import torch
from torch import Tensor


def derive(seed: int, *what: int | str) -> int:
    """An independent 63-bit seed for one purpose of a run."""
    text = ":".join(str(part) for part in (seed, *what))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@functools.lru_cache(maxsize=2)
def _shuffled(seed: int, epoch: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(derive(seed, "epoch", epoch))
    return torch.randperm(size, generator=generator)


def batch_indices(seed: int, step: int, batch_size: int, size: int) -> Tensor:
    """Indices [B] of a step: every sample once an epoch, each epoch in a new order."""
    first = step * batch_size
    parts = []
    while batch_size > 0:
        epoch, offset = divmod(first, size)
        part = _shuffled(seed, epoch, size)[offset : offset + batch_size]
        parts.append(part)
        first += len(part)
        batch_size -= len(part)
    return torch.cat(parts)

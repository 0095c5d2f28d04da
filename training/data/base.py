"""What a source of training data is."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mmf_deploy.spec import SampleSpec


class Batch(NamedTuple):
    """One batch.

    Attributes:
        x0: float32 [B, *spec.shape]; images in [-1, 1].
        label: int64 [B], or None when the data has no classes.
    """

    x0: Tensor
    label: Tensor | None


class Source(Protocol):
    """Data that can be indexed. Construction reads it; nothing is drawn at random here."""

    @property
    def spec(self) -> SampleSpec:
        """What one sample is."""
        ...

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> Batch:
        """The samples of int64 [B] indices."""
        ...


class ResidentImages:
    """Images kept in memory as bytes.

    Args:
        images: uint8 [N, H, W, C].
        labels: int64 [N] or None.
    """

    def __init__(self, images: Tensor, labels: Tensor | None, spec: SampleSpec) -> None:
        self._images = images.permute(0, 3, 1, 2).contiguous()
        self._labels = labels
        self.spec = spec

    def __len__(self) -> int:
        return len(self._images)

    def batch(self, indices: Tensor) -> Batch:
        """The samples of int64 [B] indices."""
        x0 = self._images[indices].to(torch.float32).div_(127.5).sub_(1.0)
        return Batch(x0, None if self._labels is None else self._labels[indices])

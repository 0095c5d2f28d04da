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
        x1: float32 [B, *spec.shape], the noise end of each sample where the data couples
            its two ends; None where noise is drawn independently.
        states: float32 [B, T, *spec.shape], T points of each sample's own path at uniform
            times from t = 0 (x0) to t = 1 (x1), where the data supervises the whole path;
            None where the path is the objective's.
    """

    x0: Tensor
    label: Tensor | None
    x1: Tensor | None = None
    states: Tensor | None = None


class Source(Protocol):
    """Data that can be indexed. Construction reads it; nothing is drawn at random here."""

    @property
    def spec(self) -> SampleSpec:
        """What one sample is."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What whoever trains on this should know, a line each: skipped files and the like."""
        ...

    @property
    def labels(self) -> Tensor | None:
        """The class of every sample, int64 [N], or None when the data has no classes."""
        ...

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> Batch:
        """The samples of int64 [B] indices."""
        ...

    def prefetch(self, indices: Tensor) -> None:
        """Begin to make ready what ``batch`` will be asked for next, where that takes time."""
        ...


class Resident:
    """What is in memory is ready."""

    def prefetch(self, indices: Tensor) -> None:
        """Nothing to do."""


class ResidentImages(Resident):
    """Images kept in memory as bytes.

    Args:
        images: uint8 [N, H, W, C]; kept as it is, not copied.
        labels: int64 [N] or None.
        notes: lines for whoever trains on this.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | None,
        spec: SampleSpec,
        notes: tuple[str, ...] = (),
    ) -> None:
        self._images = images
        self.labels = labels
        self.spec = spec
        self.notes = notes

    def __len__(self) -> int:
        return len(self._images)

    def batch(self, indices: Tensor) -> Batch:
        """The samples of int64 [B] indices."""
        x0 = images_to_x0(self._images[indices])
        return Batch(x0, None if self.labels is None else self.labels[indices])


class ResidentVectors(Resident):
    """Vectors kept in memory, with all that a batch may carry.

    Args:
        vectors: float32 [N, D].
        labels: int64 [N] or None.
        x1: float32 [N, D] or None, the noise end of each sample.
        states: float32 [N, T, D] or None, see ``Batch``.
        notes: lines for whoever trains on this.
    """

    def __init__(
        self,
        vectors: Tensor,
        labels: Tensor | None,
        spec: SampleSpec,
        *,
        x1: Tensor | None = None,
        states: Tensor | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self._columns = (vectors, labels, x1, states)
        self.spec = spec
        self.notes = notes

    @property
    def labels(self) -> Tensor | None:
        """The class of every sample, int64 [N], or None."""
        return self._columns[1]

    def __len__(self) -> int:
        return len(self._columns[0])

    def batch(self, indices: Tensor) -> Batch:
        """The samples of int64 [B] indices."""
        vectors, *others = self._columns
        return Batch(vectors[indices], *(None if c is None else c[indices] for c in others))


def images_to_x0(images: Tensor) -> Tensor:
    """uint8 [B, H, W, C] to float32 [B, C, H, W] in [-1, 1], contiguous."""
    x0 = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    return x0.div_(127.5).sub_(1.0)

"""A part of a source, class by class: how good is a generator of little data?"""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from mmf_deploy.spec import SampleSpec

from .base import Batch, Source


class SubsetConfig(BaseModel):
    """``data.subset`` of any source.

    Attributes:
        fraction: share of the samples of each class that is kept; at least one of each.
        seed: which ones. Of one seed, a smaller fraction is a part of a larger one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fraction: float = Field(gt=0.0, le=1.0)
    seed: int = Field(0, ge=0)


def stratified(labels: Tensor, config: SubsetConfig) -> Tensor:
    """Which samples are kept.

    Args:
        labels: int64 [N]; all the same where there are no classes.
    Returns:
        int64 [M], rising.
    """
    generator = torch.Generator().manual_seed(config.seed)
    order = torch.randperm(len(labels), generator=generator)
    kept = []
    for label in sorted(set(labels.tolist())):
        of_class = order[labels[order] == label]
        kept.append(of_class[: max(1, round(config.fraction * len(of_class)))])
    return torch.cat(kept).sort().values


class Subset:
    """The samples of ``indices`` of another source, int64 [M]."""

    def __init__(self, source: Source, indices: Tensor) -> None:
        self._source, self._indices = source, indices

    @classmethod
    def of(cls, source: Source, config: SubsetConfig) -> Subset:
        """A stratified part."""
        labels = source.labels
        return cls(source, stratified(torch.zeros(len(source)) if labels is None else labels,
                                      config))  # fmt: skip

    @property
    def spec(self) -> SampleSpec:
        """What one sample is."""
        return self._source.spec

    @property
    def notes(self) -> tuple[str, ...]:
        """What whoever trains on this should know."""
        return (*self._source.notes, f"{len(self):,} of {len(self._source):,} samples are used")

    @property
    def labels(self) -> Tensor | None:
        """The class of every sample, int64 [M], or None."""
        labels = self._source.labels
        return None if labels is None else labels[self._indices]

    def __len__(self) -> int:
        return len(self._indices)

    def batch(self, indices: Tensor) -> Batch:
        """The samples of int64 [B] indices."""
        return self._source.batch(self._indices[indices])

    def prefetch(self, indices: Tensor) -> None:
        """Begin to make ready what ``batch`` will be asked for next."""
        self._source.prefetch(self._indices[indices])

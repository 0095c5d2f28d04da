"""What goes into the batcher, what comes out, and what it asks of an engine."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mmf_deploy.noise import gaussian_batch, spherical
from mmf_deploy.spec import SampleSpec


class Generator(Protocol):
    """The part of an engine that the batcher needs."""

    spec: SampleSpec
    buckets: tuple[int, ...]

    @property
    def pads(self) -> bool:
        """Whether a batch costs as much as the bucket that holds it."""
        ...

    def generate(
        self,
        noise: NDArray[np.float32],
        label: NDArray[np.int64] | None = None,
        guidance: NDArray[np.float32] | None = None,
    ) -> NDArray[Any]:
        """Noise [B, …] to images or vectors [B, …]."""
        ...


class Priority(enum.StrEnum):
    """Who goes first when there is a queue; in this order."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


class Toward(NamedTuple):
    """A place on the way to another seed's noise."""

    seed: int
    fraction: float


@dataclass(frozen=True, slots=True)
class Item:
    """One image to make. Label and guidance are read only if the generator takes them.

    Attributes:
        toward: for interpolation, how far the noise lies on the arc to another seed's.
    """

    seed: int
    label: int = 0
    guidance: float = 1.0
    toward: Toward | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """The images of one request that came out of one batch.

    Attributes:
        first: place of the first of them in the request.
        values: uint8 [k, H, W, C], float32 [k, D] for vectors, uint8 [k, K + 1, H, W, C] for
            trajectories.
        started_s, finished_s: when the batch began and ended, on the batcher's clock.
        batch: images in that batch, those of other requests included.
        bucket: the batch size that the engine ran.
    """

    first: int
    values: NDArray[Any]
    started_s: float
    finished_s: float
    batch: int
    bucket: int


def noise_of(items: Sequence[Item], shape: Sequence[int]) -> NDArray[np.float32]:
    """The noise that images start from, float32 [B, *shape]."""
    noise = gaussian_batch([item.seed for item in items], shape)
    ways = [(k, item.toward) for k, item in enumerate(items) if item.toward is not None]
    if ways:
        ends = gaussian_batch([toward.seed for _, toward in ways], shape)
        for (k, toward), end in zip(ways, ends, strict=True):
            noise[k] = spherical(noise[k], end, toward.fraction)
    return noise

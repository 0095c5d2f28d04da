"""What goes into the batcher, what comes out, and what it asks of an engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mmf_deploy.spec import SampleSpec


class Generator(Protocol):
    """The part of an engine that the batcher needs."""

    spec: SampleSpec
    buckets: tuple[int, ...]

    def generate(
        self,
        noise: NDArray[np.float32],
        label: NDArray[np.int64] | None = None,
        guidance: NDArray[np.float32] | None = None,
    ) -> NDArray[Any]:
        """Noise [B, …] to images or vectors [B, …]."""
        ...


@dataclass(frozen=True, slots=True)
class Item:
    """One image to make. Label and guidance are read only if the generator takes them."""

    seed: int
    label: int = 0
    guidance: float = 1.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One image made.

    Attributes:
        value: uint8 [H, W, C], or float32 [D] for vectors.
        started_s, finished_s: when its batch began and ended, on the batcher's clock.
        batch: how many images were in that batch.
    """

    value: NDArray[Any]
    started_s: float
    finished_s: float
    batch: int

"""Is every image the right one? By its seed, against images made here beforehand."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmf_deploy import noise
from mmf_deploy.bundle import Bundle
from mmf_deploy.engines.base import EngineOptions, open_engine
from mmf_deploy.spec import SampleSpec

POOL = 512
"""How many different seeds are asked for, unless images take long to make."""
POOL_S = 20.0
LEVELS = 127.5
"""Levels of 255 in one unit of a float sample, which reaches from -1 to 1."""


@dataclass
class Tally:
    """Images compared, by outcome; ``wrong`` ones are off by more than one of 255 levels."""

    identical: int = 0
    within_one: int = 0
    wrong: int = 0

    def add(self, other: Tally) -> None:
        """Add up."""
        self.identical += other.identical
        self.within_one += other.within_one
        self.wrong += other.wrong


class Check:
    """Compares images with what their seeds must give.

    Args:
        known: uint8 [pool, H, W, C] images, or float32 [pool, D] vectors, of seeds 0 … pool - 1;
            None if nothing is known beforehand: then the first image of a seed is what every
            later one must be.
        pool: how many seeds there are.
    """

    def __init__(self, spec: SampleSpec, pool: int, known: NDArray[Any] | None = None) -> None:
        c, *size = spec.shape
        shape, dtype = ((*size, c), np.uint8) if spec.is_image else ((c,), np.float32)
        self.spec, self.pool = spec, pool
        self.beforehand = known is not None
        self._known = np.zeros((pool, *shape), dtype) if known is None else known
        self._seen = np.full(pool, self.beforehand)

    def compare(self, first: int, count: int, found: NDArray[Any] | None) -> Tally:
        """Compare the images of one reply.

        Args:
            first: seed of the first one.
            count: how many were asked for.
            found: of the form of ``known``, or None if the reply was unreadable. What does not
                have that form is wrong as a whole.
        """
        rows = slice(first, first + count)
        expected = self._known[rows]
        if found is None or found.shape != expected.shape or found.dtype != expected.dtype:
            return Tally(wrong=count)
        if not self._seen[rows].all():
            new = ~self._seen[rows]
            self._known[rows][new] = found[new]
            self._seen[rows] = True
        if np.array_equal(found, expected):
            return Tally(identical=count)
        off = np.abs(found.astype(np.float64) - expected).reshape(count, -1).max(axis=1)
        off *= 1.0 if self.spec.is_image else LEVELS
        identical = int((off == 0).sum())
        within_one = int((off <= 1).sum()) - identical  # NaN is neither
        return Tally(identical, within_one, count - identical - within_one)


def reference(
    bundle: Bundle,
    pool: int | None = None,
    *,
    at_least: int = 1,
    variant: str | None = None,
    engine: str | None = None,
    options: EngineOptions | None = None,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> NDArray[Any]:
    """The images of seeds 0, 1, 2, … as a bundle's own engine makes them here.

    Args:
        pool: how many; None for 512, or as many as take 20 s.
        at_least: how many a single request needs.
        on_progress: called with how many there are, and how many there will be.
    Returns:
        uint8 [pool, H, W, C], or float32 [pool, D] vectors.
    """
    spec = bundle.spec
    parts: list[NDArray[Any]] = []
    done, want = 0, max(at_least, POOL if pool is None else pool)
    with open_engine(engine, bundle, variant, options) as opened:
        begin = time.monotonic()
        while done < want:
            on_progress(done, want)
            seeds = range(done, min(want, done + min(16, opened.buckets[-1])))
            label = np.array([spec.default_label(s) for s in seeds]) if spec.conditional else None
            guidance = np.full(len(seeds), spec.guidance[0], np.float32) if spec.guidance else None
            x1 = noise.gaussian_batch(seeds, spec.shape)
            parts.append(opened.generate(x1, label, guidance))
            done = seeds.stop
            if pool is None and time.monotonic() - begin > POOL_S:
                want = max(at_least, done)
    on_progress(done, done)
    return np.concatenate(parts)[:want]

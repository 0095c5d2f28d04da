"""Batch sizes that engines are prepared for, and batches padded up to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmf_deploy.errors import ShapeError

BUCKETS = (1, 2, 4, 8, 16, 32, 64)
"""Of engines on a CPU, and of those for which each bucket is built or compiled beforehand."""

GPU_BUCKETS = (*BUCKETS, 128, 256, 512)
"""Of engines on a GPU that prepare a bucket when it is first needed."""


def at_most(limit: int | None, buckets: tuple[int, ...]) -> tuple[int, ...]:
    """The buckets up to a limit, but the smallest one always; all of them if there is none."""
    if limit is None:
        return buckets
    return tuple(b for b in buckets if b <= limit) or buckets[:1]


def bucket_for(count: int, buckets: Sequence[int]) -> int:
    """The smallest bucket that holds ``count`` samples.

    Raises:
        ShapeError: none does.
    """
    fitting = [bucket for bucket in buckets if bucket >= count]
    if not fitting:
        raise ShapeError(f"batch of {count}: expected at most {max(buckets)}")
    return min(fitting)


def padded(array: NDArray[Any], rows: int) -> NDArray[Any]:
    """The array with its last row repeated up to ``rows``.

    A repeated row is a valid input, whatever the input means; a zero guidance is not.
    """
    if len(array) == rows:
        return array
    return np.concatenate([array, np.repeat(array[-1:], rows - len(array), axis=0)])

"""Batches padded up to a bucket, for engines whose buffers or kernels have a fixed batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmf_deploy.errors import ShapeError


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

"""Seed to noise: the seed contract.

One independent stream per image, so that an image depends on (bundle, seed, label,
guidance) and never on its neighbours in a batch, the batch size, the worker or the
engine. The stream is reproducible outside Python:

1. Philox4x64-10, key = (seed, 0), 256-bit counter starting at 1 and counting up by one
   a block; each block gives four 64-bit words w0 … w3, in that order.
2. A word becomes a uniform u = (w >> 11) · 2⁻⁵³ in [0, 1).
3. Each pair (u_{2k}, u_{2k+1}) gives, by Box–Muller in float64, with
   ρ = √(−2 ln(1 − u_{2k})) and θ = 2π u_{2k+1}, the normals z_{2k} = ρ cos θ and
   z_{2k+1} = ρ sin θ. An odd last element takes the first of its pair.
4. z is rounded to float32 and fills the sample in C order (channel, row, column).
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mmf_deploy.errors import ShapeError

MAX_SEED = 2**63 - 1
"""Largest seed: what a signed 64-bit integer holds, in every protocol and file format."""


def check_seed(seed: int) -> int:
    """Return the seed, or raise ShapeError unless it is an integer in [0, 2⁶³ − 1]."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise ShapeError(f"seed {seed!r} is not an integer; expected 0 … {MAX_SEED}")
    if not 0 <= seed <= MAX_SEED:
        raise ShapeError(f"seed {seed} is out of range; expected 0 … {MAX_SEED}")
    return int(seed)


def random_seed() -> int:
    """A fresh seed below 2³², short enough to be read aloud."""
    return secrets.randbelow(2**32)


def gaussian(seed: int, shape: Sequence[int]) -> NDArray[np.float32]:
    """Standard normal noise of one sample.

    Args:
        seed: integer in [0, 2⁶³ − 1].
        shape: shape of one sample, for example (3, 32, 32).
    Returns:
        float32 array of that shape; the same for the same seed, everywhere.
    Raises:
        ShapeError: the seed is no integer or out of range.
    """
    noise: NDArray[np.float32] = gaussian_batch([seed], shape)[0]
    return noise


def gaussian_batch(seeds: Sequence[int], shape: Sequence[int]) -> NDArray[np.float32]:
    """``gaussian(seed, shape)`` of every seed, float32 [B, *shape]; bit for bit the same."""
    if len(seeds) == 0:
        raise ShapeError("no seeds given; expected at least one")
    count = math.prod(shape)
    even = count + count % 2
    words = np.stack([np.random.Philox(key=check_seed(s)).random_raw(even) for s in seeds])
    uniform = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
    radius = np.sqrt(-2.0 * np.log1p(-uniform[:, 0::2]))
    angle = 2.0 * np.pi * uniform[:, 1::2]
    normal: NDArray[np.float64] = np.empty(words.shape, np.float64)
    normal[:, 0::2] = radius * np.cos(angle)
    normal[:, 1::2] = radius * np.sin(angle)
    noise: NDArray[np.float32] = normal[:, :count].astype(np.float32).reshape(-1, *shape)
    return noise

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
from typing import Any

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


def spherical(
    x: NDArray[np.float32], y: NDArray[np.float32], fraction: float
) -> NDArray[np.float32]:
    """The point at ``fraction`` of the great arc from noise x to noise y.

    A straight line between two Gaussian samples passes through points of too small a norm, which
    no generator has seen; the arc does not (Shoemake 1985, spherical linear interpolation).

    Args:
        x, y: float32 of one shape.
        fraction: 0 gives x and 1 gives y, bit for bit.
    Raises:
        ShapeError: the shapes differ, or the fraction is outside [0, 1].
    """
    if x.shape != y.shape:
        raise ShapeError(f"noise of shape {x.shape} and {y.shape}; expected the same")
    if not 0.0 <= fraction <= 1.0:
        raise ShapeError(f"fraction {fraction}: expected 0 … 1")
    if fraction in (0.0, 1.0):
        return x if fraction == 0.0 else y
    a, b = x.astype(np.float64), y.astype(np.float64)
    cosine = float((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b)))
    angle = math.acos(min(1.0, max(-1.0, cosine)))
    if math.sin(angle) < 1e-6:  # the same direction, or the opposite one: there is no single arc
        return ((1.0 - fraction) * a + fraction * b).astype(np.float32)
    return (
        (math.sin((1.0 - fraction) * angle) * a + math.sin(fraction * angle) * b) / math.sin(angle)
    ).astype(np.float32)


def gaussian_batch(seeds: Sequence[int], shape: Sequence[int]) -> NDArray[np.float32]:
    """``gaussian(seed, shape)`` of every seed, float32 [B, *shape]; bit for bit the same."""
    if len(seeds) == 0:
        raise ShapeError("no seeds given; expected at least one")
    count = math.prod(shape)
    even = count + count % 2
    words = _words([check_seed(s) for s in seeds], even)
    uniform = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
    radius = np.sqrt(-2.0 * np.log1p(-uniform[:, 0::2]))
    angle = 2.0 * np.pi * uniform[:, 1::2]
    normal: NDArray[np.float64] = np.empty(words.shape, np.float64)
    normal[:, 0::2] = radius * np.cos(angle)
    normal[:, 1::2] = radius * np.sin(angle)
    noise: NDArray[np.float32] = normal[:, :count].astype(np.float32).reshape(-1, *shape)
    return noise


def _words(seeds: Sequence[int], count: int) -> NDArray[np.uint64]:
    """The first words of each seed's stream, uint64 [B, count]."""
    stream = np.random.Philox(key=seeds[0])
    words = np.empty((len(seeds), count), np.uint64)
    words[0] = stream.random_raw(count)
    # a generator that is set back costs a quarter of a new one
    start: Any = np.random.Philox(key=0).state
    for k, seed in enumerate(seeds[1:], 1):
        start["state"]["key"][0] = seed
        stream.state = start
        words[k] = stream.random_raw(count)
    return words

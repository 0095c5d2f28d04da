"""The floor: how long one run of a graph takes at the least, on a machine of known rates.

It is the larger of two times, as if they overlapped perfectly:

    compute   the multiply-adds of all convolutions and matrix products, those in each dtype at
              the rate of that dtype; products with padding zeros are left out, as kernels may
    memory    the weights, in the dtype they are multiplied in, with the graph's inputs and outputs,
              once, less what the last-level cache can keep from one call to the next

Everything else counts as nothing: activations (they may stay in the caches), normalisation,
softmax, rearranging, starting kernels and threads. So no engine that multiplies directly can be
faster, and a share of 100% cannot quite be reached. Only algorithms with fewer multiplications
(Winograd, FFT, Strassen, sparsity) could go below it. The floor is of *this graph* in *these
dtypes*: a smaller network, or int8 in the place of fp32, has a lower one. It is as good as the
rates: measured by libraries on this machine between the same turns, not taken from a data sheet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from mmf_deploy.errors import EngineError

from .counts import Counts
from .memory_rate import cache_bytes


@dataclass(frozen=True)
class Floor:
    """The least time of one run, in seconds.

    Attributes:
        compute_s, memory_s: each as if the other took no time.
        by_dtype: compute_s, by the dtype of the arithmetic.
    """

    compute_s: float
    memory_s: float
    by_dtype: dict[str, float]

    @property
    def seconds(self) -> float:
        """The larger of the two."""
        return max(self.compute_s, self.memory_s)

    @property
    def bound(self) -> str:
        """Which one it is: "compute" or "memory"."""
        return "memory" if self.memory_s > self.compute_s else "compute"


def floor_s(
    counts: Counts,
    gflops: Mapping[str, float],
    bandwidth_gb_s: float,
    cached_bytes: int | None = None,
) -> Floor:
    """The floor of one run.

    Args:
        gflops: GFLOP/s by dtype, of every dtype in the counts.
        bandwidth_gb_s: of reading memory, GB/s.
        cached_bytes: what the last-level cache keeps between calls; that of this machine's CPU if
            None. A CPU that does not say may keep everything: then memory takes no time.
    Raises:
        EngineError: a rate is missing.
    """
    by_dtype = {}
    for dtype, flops in counts.needed_flops.items():
        if not gflops.get(dtype):
            raise EngineError(
                f"no rate is known for arithmetic in {dtype}; measured: {', '.join(gflops)}"
            )
        by_dtype[dtype] = flops / gflops[dtype] / 1e9
    compulsory = counts.read_bytes + counts.io_bytes
    kept = _own_cache_bytes() if cached_bytes is None else cached_bytes
    fetched = 0 if kept is None else max(0, compulsory - kept)
    return Floor(sum(by_dtype.values()), fetched / bandwidth_gb_s / 1e9, by_dtype)


@cache
def _own_cache_bytes() -> int | None:
    return cache_bytes("cpu")

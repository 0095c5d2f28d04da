"""What the machine can do: arithmetic by dtype and memory, measured.

The arithmetic rate of a dtype is the best that any library here reaches with a large matrix
product or with a large 3×3 convolution. Both are multiply-adds by the same instructions, but a
library has other kernels for each: OpenVINO's convolutions in fp32 were seen at more than the rate
of any product (docs/benchmarks.md), so a floor made of products alone would be too high. Arithmetic
in a wider dtype may stand in for a narrow one, as it does where the processor has no other.

The memory rate is that of reading: weights are read and never written. Copying would count writes,
which on most processors fetch the line they overwrite first, without saying so.

Both are objects that run when it is their turn: the clock of a machine drifts, so a share of the
limit is worth something only where the limit was measured between the same turns.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from mmf_deploy.errors import ConfigError, EngineError, nearest

from .convolutions import OnnxRuntimeConvolution, OpenVinoConvolution
from .memory_rate import Stream, cache_bytes
from .products import NumpyProduct, OnnxRuntimeProduct, OpenVinoProduct, Product, TorchProduct
from .turns import timed

WIDER = {"int8": "fp32", "fp16": "fp32", "bf16": "fp32", "tf32": "fp32"}
FAR_BEHIND = 3
"""Libraries this many times slower than another one on a small product do not get a large one:
without instructions for the dtype it may take seconds."""


KINDS: dict[tuple[str, str], tuple[type[Product], ...]] = {
    ("cpu", "fp32"): (OnnxRuntimeProduct, OpenVinoProduct, TorchProduct, NumpyProduct,
                      OnnxRuntimeConvolution, OpenVinoConvolution),
    ("cpu", "bf16"): (OpenVinoProduct, TorchProduct, OpenVinoConvolution),
    # OpenVINO, asked for f16 on a CPU without such instructions, multiplies in bf16; PyTorch
    # takes seconds for one product; so fp32 stands in, as it does in the engines
    ("cpu", "fp16"): (),
    ("cpu", "int8"): (OnnxRuntimeProduct, OpenVinoProduct, TorchProduct, OnnxRuntimeConvolution,
                      OpenVinoConvolution),
    **{("cuda", d): (TorchProduct,) for d in ("fp32", "tf32", "bf16", "fp16", "int8")},
}  # fmt: skip
"""By device and dtype: what can multiply there."""


def installed(kind: type[Product]) -> bool:
    """Whether its packages are there; they are not imported."""
    return all(importlib.util.find_spec(name) is not None for name in kind.needs)


def candidates(dtype: str, device: str, threads: int) -> list[Product]:
    """The products that can be had here; none is opened.

    Args:
        dtype: fp32, bf16, fp16 or int8; on a GPU also tf32.
        device: "cpu", "cuda" or "cuda:1".
        threads: of the CPU.
    Raises:
        ConfigError: nothing knows this dtype on this device.
        EngineError: no library for it is installed.
    """
    kind = device.partition(":")[0]
    known = [d for where, d in KINDS if where == kind]
    if dtype not in known:
        raise ConfigError(
            f"no products in {dtype!r} on {device!r}{nearest(dtype, known)}: "
            f"expected {', '.join(known) or 'the device cpu or cuda'}"
        )
    every = [(p, d) for d in (dtype, WIDER.get(dtype)) for p in KINDS.get((kind, d or ""), ())]
    found = [p(d or dtype, threads, device, stands_in=d != dtype) for p, d in every if installed(p)]
    if not found:
        packages = sorted({" and ".join(p.needs) for p, _ in every})
        raise EngineError(
            f"nothing here multiplies in {dtype} on {device!r}; install {' or '.join(packages)}"
        )
    return found


@dataclass(frozen=True)
class Tried:
    """What one library reached.

    Attributes:
        dtype: of its arithmetic.
        gflops: GFLOP/s; None if it cannot do it here.
        why: it cannot, or was not asked further.
    """

    library: str
    dtype: str
    gflops: float | None
    why: str = ""


def race(products: Sequence[Product], seconds: float) -> list[tuple[Product, Tried]]:
    """Products taking turns in this process, the fastest first; those that fail are last.

    Args:
        seconds: for all of them together, opening not counted.
    """
    speed = {p: _speed(p.of_edge(min(p.edge, p.probe_edge))) for p in products}
    best = max((s for s in speed.values() if isinstance(s, float)), default=0.0)
    times: dict[Product, list[float]] = {}
    try:
        for product in products:
            found = speed[product]
            if isinstance(found, float) and found * FAR_BEHIND >= best:
                product.open()
                times[product] = []
        begin = time.perf_counter()
        while times and (time.perf_counter() < begin + seconds or not all(times.values())):
            for product, taken in times.items():
                taken += timed(product.run, seconds / (8 * len(times)))
    finally:
        for product in times:
            product.close()
    return sorted(((p, _tried(p, times.get(p), speed[p])) for p in products), key=_slowness)


def _slowness(found: tuple[Product, Tried]) -> tuple[bool, float]:
    return bool(found[1].why), -(found[1].gflops or 0.0)


def _tried(product: Product, times: Sequence[float] | None, probe: float | str) -> Tried:
    if isinstance(probe, str):
        return Tried(product.library, product.dtype, None, probe)
    if times is None:
        return Tried(product.library, product.dtype, round(probe / 1e9, 1), "far behind")
    # the fastest: others on the machine can only take time
    return Tried(product.library, product.dtype, round(product.flops / min(times) / 1e9, 1))


def _speed(product: Product) -> float | str:
    """FLOP/s of a small product, or why there is none."""
    try:
        with product:
            return product.flops / min(timed(product.run, 0.02))
    except EngineError as e:
        return str(e)


def choose(dtype: str, device: str, threads: int, seconds: float) -> Product:
    """The fastest product in a dtype, not opened.

    Args:
        seconds: to compare the candidates in.
    Raises:
        EngineError: no library here can do it.
    """
    product, tried = race(candidates(dtype, device, threads), seconds)[0]
    if tried.gflops is None:
        raise EngineError(tried.why)
    return product.of_edge(product.edge)  # what was open may not be fit to be sent elsewhere


@dataclass(frozen=True)
class Rates:
    """What the machine does a second.

    Attributes:
        gflops: GFLOP/s by dtype.
        library: what reached it, by dtype.
        bandwidth_gb_s: of memory.
        tried: every candidate.
    """

    device: str
    threads: int
    gflops: dict[str, float]
    library: dict[str, str]
    bandwidth_gb_s: float
    tried: list[Tried] = field(default_factory=list)


def measure(device: str, threads: int, seconds: float, dtypes: Collection[str]) -> Rates:
    """All rates at once, on their own; the threads of libraries stay set in this process.

    Args:
        seconds: for each dtype, and for memory.
    Raises:
        ConfigError: not a dtype of this device.
        EngineError: no library here can do one of them.
    """
    gflops, library, tried = {}, {}, []
    for dtype in dtypes:
        found = [t for _, t in race(candidates(dtype, device, threads), seconds)]
        if found[0].gflops is None:
            raise EngineError(found[0].why)
        gflops[dtype], library[dtype] = found[0].gflops, found[0].library
        tried += found
    stream = Stream(threads, device)
    stream.open()
    try:
        bandwidth = stream.bytes / min(timed(stream.run, seconds)) / 1e9
    finally:
        stream.close()
    return Rates(device, threads, gflops, library, round(bandwidth, 1), tried)


__all__ = [
    "Product", "Rates", "Stream", "Tried", "cache_bytes", "candidates", "choose", "measure", "race",
]  # fmt: skip

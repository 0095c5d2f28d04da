"""Is the floor right? Plain graphs of known counts, in turns with the rates it is made of.

A large matrix product and a 3×3 convolution in the middle of a network are as near to the limit
as libraries come: what they take over their floor says how near it is. The product of a vector
and a matrix much larger than the caches does the same for memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmf_deploy.errors import EngineError
from mmf_deploy.results import Result, Table

from . import plain_graphs
from .counts import Counts, count
from .floor import floor_s
from .graph_runs import GraphRun, OnnxRuntimeRun, OpenVinoRun
from .rates import Stream, choose
from .statistics import Median, ratio
from .turns import Child, Task, take_turns

TOLERANCE = 0.15
M, K, N = 1024, 2304, 1024
CHANNELS, SIZE = 256, 64
LONG, WIDE = 8192, 16384
"""A weight of 512 MB."""


@dataclass(frozen=True)
class Case:
    """A plain graph.

    Attributes:
        flops: of it, by hand; products with padding zeros do not count.
        dtypes: to run it in.
        decides: whether the floor is right only if the fastest engine is within TOLERANCE of it.
    """

    name: str
    make: Callable[[str], bytes]
    data: Callable[[], NDArray[np.float32]]
    flops: float
    dtypes: tuple[str, ...]
    decides: bool = True


def _random(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).random(shape, np.float32) * 2 - 1


CASES = (
    Case(f"matrix product {M}×{K}×{N}", lambda d: plain_graphs.matmul(M, _random(K, N), d),
         lambda: _random(M, K), 2.0 * M * K * N, ("fp32", "bf16", "int8")),
    Case(f"3×3 convolution {CHANNELS}→{CHANNELS} at {SIZE}×{SIZE}",
         lambda d: plain_graphs.conv(CHANNELS, SIZE, _random(CHANNELS, CHANNELS, 3, 3), d),
         lambda: _random(1, CHANNELS, SIZE, SIZE),
         2.0 * CHANNELS**2 * (3 * SIZE - 2) ** 2, ("fp32", "bf16", "int8")),
    Case(f"vector by matrix {LONG}×{WIDE}",
         lambda d: plain_graphs.matmul(1, _random(LONG, WIDE), d),
         lambda: _random(1, LONG), 2.0 * LONG * WIDE, ("fp32",), decides=False),
)  # fmt: skip


@dataclass(frozen=True)
class Checked:
    """One case in one dtype with one engine.

    Attributes:
        floor_ms, measured_ms: medians over turns.
        over: measured over floor, the median over turns of the ratio within a turn.
        bound: what the floor is bound by.
        rate: GFLOP/s or GB/s that the floor is made of: the median over turns.
    """

    case: str
    dtype: str
    engine: str
    threads: int
    flops: float
    floor_ms: float
    measured_ms: float
    over: Median
    bound: str
    rate: float
    decides: bool


def check(
    threads: Sequence[int],
    seconds: float = 6.0,
    cases: Sequence[Case] = CASES,
    on_progress: Callable[[str, float], None] = lambda what, done: None,
) -> list[Checked]:
    """Measure every case over its floor.

    Args:
        threads: numbers of compute threads.
        seconds: for each case in each dtype.
        on_progress: told what goes on and the share of everything that is done.
    Raises:
        EngineError: the counts are not those known by hand, or an engine failed.
        DependencyError: the package onnx is missing.
    """
    found: list[Checked] = []
    todo = [(case, dtype, n) for case in cases for dtype in case.dtypes for n in threads]
    with tempfile.TemporaryDirectory() as folder:
        for k, (case, dtype, n) in enumerate(todo):
            path = Path(folder) / "plain.onnx"
            path.write_bytes(case.make(dtype))
            what = f"{case.name}, {dtype}, {_threads(n)}"

            def tell(share: float, what: str = what, k: int = k) -> None:
                on_progress(what, (k + share) / len(todo))

            tell(0.0)
            found += _measure(case, dtype, n, path, seconds, tell)
    return found


def _measure(
    case: Case, dtype: str, threads: int, path: Path, seconds: float, tell: Callable[[float], None]
) -> list[Checked]:
    counts = count(path, 1, dtype if dtype == "bf16" else None)
    _same(case, counts)
    product, stream = choose(dtype, "cpu", threads, 1.0), Stream(threads)
    runs = _runs(case, dtype, threads, path)
    with ExitStack() as stack:
        tasks: dict[str, Task] = {"arithmetic": product, "memory": stream, **runs}
        children = {k: stack.enter_context(Child(k, task)) for k, task in tasks.items()}
        times = take_turns(children, seconds, on_turn=tell)
    gflops, gb_s = product.flops / times["arithmetic"] / 1e9, stream.bytes / times["memory"] / 1e9
    floors = [floor_s(counts, {dtype: g}, b) for g, b in zip(gflops, gb_s, strict=True)]
    least = np.array([f.seconds for f in floors])
    bound = floors[0].bound
    return [
        Checked(
            case=case.name,
            dtype=dtype,
            engine=name,
            threads=threads,
            flops=case.flops,
            floor_ms=1e3 * float(np.median(least)),
            measured_ms=1e3 * float(np.median(times[name])),
            over=ratio(times[name], least),
            bound=bound,
            rate=float(np.median(gb_s if bound == "memory" else gflops)),
            decides=case.decides and dtype == "fp32",
        )
        for name in runs
    ]


def _same(case: Case, counts: Counts) -> None:
    counted = sum(counts.needed_flops.values())
    if counted != case.flops:
        raise EngineError(f"{case.name}: counted {counted:.0f} FLOPs, by hand {case.flops:.0f}")


def _runs(case: Case, dtype: str, threads: int, path: Path) -> dict[str, GraphRun]:
    data: NDArray[Any] = case.data()
    feeds = {"a": plain_graphs.quantised(data) if dtype == "int8" else data}
    runs: dict[str, GraphRun] = {}
    if find_spec("onnxruntime") and dtype != "bf16":  # it has no bf16 on the CPU
        runs["onnxruntime"] = OnnxRuntimeRun(path, feeds, threads)
    if find_spec("openvino"):
        hint = "bf16" if dtype == "bf16" else "f32"
        runs["openvino"] = OpenVinoRun(path, feeds, threads, hint)
    return runs


def _threads(n: int) -> str:
    return f"{n} thread{'s' if n > 1 else ''}"


def failures(found: Sequence[Checked]) -> list[str]:
    """A line for each case that decides and whose fastest engine is too far from the floor."""
    best: dict[tuple[str, str, int], Checked] = {}
    for row in found:
        key = row.case, row.dtype, row.threads
        if row.decides and (key not in best or row.over.value < best[key].over.value):
            best[key] = row
    return [
        f"{r.case}, {r.dtype}, {_threads(r.threads)}: "
        f"{r.engine} takes {r.over.value:.2f}× its floor"
        for r in best.values()
        if abs(r.over.value - 1) > TOLERANCE
    ]


def result(
    found: Sequence[Checked], command: str, machine: Mapping[str, str], versions: Mapping[str, str]
) -> Result:
    """In the form of all benchmarks."""
    return Result(
        kind="limit",
        title="Plain graphs over their floor",
        command=command,
        machine=machine,
        versions=versions,
        tables=[table(found)],
        content={"rows": [asdict(row) for row in found], "tolerance": TOLERANCE},
    )


def table(found: Sequence[Checked]) -> Table:
    """The cases as people see them."""
    rows = [
        [r.case, r.dtype, r.engine, str(r.threads), f"{r.flops / 1e9:.2f}",
         f"{r.rate:,.0f} {'GB/s' if r.bound == 'memory' else 'GFLOP/s'}", f"{r.floor_ms:.2f}",
         f"{r.measured_ms:.2f}", f"{r.over.value:.2f}×", f"±{r.over.within:.1%}"]
        for r in found
    ]  # fmt: skip
    columns = ["graph", "dtype", "engine", "thr.", "GFLOP", "rate", "floor ms", "measured ms",
               "over floor", "known to"]  # fmt: skip
    return Table("Plain graphs over their floor", columns, rows, left=3)

"""Where the time of an engine goes, operator by operator, as its own profiler tells it.

Each engine has a file that knows its profiler (``PROFILERS``); this one says what they give and
calls them. The engine is set up as the benchmark sets it up, and what its profiler costs is
measured by calls without it in between.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from mmf_deploy import noise
from mmf_deploy.bundle import Bundle, Variant
from mmf_deploy.engines import ENGINES
from mmf_deploy.engines.base import Engine, EngineOptions, open_engine
from mmf_deploy.errors import ConfigError, EngineError

from .profile_times import OpTime, Profile
from .subjects import BASELINE, mode_name

PROFILERS = {
    "onnxruntime": ".profile_ort",
    "openvino": ".profile_ov",
    "pytorch": ".profile_torch",
}
TURNS = 4
"""Calls with and without the profiler take turns: so many of each."""
FEWEST, MOST = 20, 100
ENOUGH_S = 2.0
"""Calls under the profiler: so many seconds' worth of them, within these bounds."""
CLOCK_MS = 0.004
"""More than that, a profiler that writes a line for each operator does not take for it."""


@dataclass(frozen=True)
class Recording:
    """What the profiler of an engine gave.

    Attributes:
        ops: of one call.
        profiled_ms, plain_ms: of every call.
        note: what to know of the profiler.
        clocks: how often it takes the time of each operator, its parts included; once if None.
        clock_ms: that this can cost each time.
    """

    ops: list[OpTime]
    profiled_ms: list[float]
    plain_ms: list[float]
    note: str = ""
    clocks: list[int] | None = None
    clock_ms: float = CLOCK_MS


Call = Callable[[Engine], None]
"""Runs one batch on an engine."""


class Profiler(Protocol):
    """What each module of ``PROFILERS`` has."""

    def record(
        self,
        bundle: Bundle,
        variant: Variant,
        options: EngineOptions,
        call: Call,
        batch: int,
        calls: int | None,
    ) -> Recording:
        """Run calls with and without the engine's profiler, in turns.

        Raises:
            EngineError: the engine cannot run, or has no profile of its operators.
        """
        ...


def profile(
    engine_name: str,
    bundle: Bundle,
    variant_name: str | None,
    threads: int,
    batch: int,
    checkpoint: Path | None = None,
    device: str | None = None,
    mode: str | None = None,
    calls: int | None = None,
) -> Profile:
    """Where the time of an engine goes.

    Args:
        engine_name: a key of ``PROFILERS``.
        checkpoint, device, mode: as of ``EngineOptions``.
        calls: under the profiler, after warm-up; as many as are needed if None.
    Raises:
        ConfigError: the batch is larger than one call takes.
        EngineError: the engine cannot run here, or has no profile of its operators.
        BundleError: no such variant.
    """
    if engine_name in ENGINES and engine_name not in PROFILERS:
        raise EngineError(
            f"engine {engine_name!r} does not say where its time goes; --profile knows the "
            f"operators of {', '.join(PROFILERS)}"
        )
    options = EngineOptions(device=device, threads=threads, checkpoint=checkpoint, mode=mode)
    engine = open_engine(engine_name, bundle, variant_name, options)
    variant, largest = engine.variant, engine.buckets[-1]
    if not 1 <= batch <= largest:
        raise ConfigError(f"batch {batch}: one call takes 1 … {largest} images; profile fewer")
    module: Profiler = importlib.import_module(PROFILERS[engine_name], __package__)
    made = module.record(bundle, variant, options, _call(bundle, batch), batch, calls)
    plain_ms = float(np.median(made.plain_ms))
    times, cost = fitted([op.ms for op in made.ops], plain_ms, made.clocks, made.clock_ms)
    is_baseline = engine_name == BASELINE
    return Profile(
        engine=engine_name,
        variant=mode_name(mode or "eager", variant.steps) if is_baseline else variant.name,
        threads=threads,
        batch=batch,
        ops=[replace(op, ms=ms) for op, ms in zip(made.ops, times, strict=True)],
        total_ms=float(np.median(made.profiled_ms)),
        plain_ms=plain_ms,
        clocks_ms=cost,
        note=made.note,
    )


def fitted(
    operators_ms: Sequence[float],
    plain_ms: float,
    clocks: Sequence[int] | None = None,
    most_ms: float = CLOCK_MS,
) -> tuple[list[float], float]:
    """Times of operators under a profiler, made to fit into a call without it, milliseconds.

    A profiler takes microseconds for each operator, which is most of what it shows of a network
    as small as that of the digits. So where the operators together take longer than a plain call,
    the same is taken off each of them, but no more than a clock can cost; what is then still too
    much, the machine was slower meanwhile, and all shrink by the same factor.

    Args:
        clocks: how often each operator is taken the time of; once if None.
        most_ms: that taking the time can cost.
    Returns:
        the times, and what was taken off for each clock.
    """
    times = np.asarray(operators_ms, np.float64)
    count = np.ones(len(times)) if clocks is None else np.asarray(clocks, np.float64)
    over, taken, left = times.sum() - plain_ms, 0.0, count.sum()
    for k in np.argsort(times / count):
        # the same off all that are left, until the smallest of them is nothing
        more = min(times[k] / count[k] - taken, over / left, most_ms - taken)
        if more > 0:
            taken += more
            over -= more * left
        left -= count[k]
    times = np.maximum(0.0, times - taken * count)
    times *= min(1.0, plain_ms / max(1e-12, times.sum()))
    return [float(ms) for ms in times], float(taken)


def _call(bundle: Bundle, batch: int) -> Call:
    """The same inputs as in the benchmark: consecutive seeds, labels in turn."""
    spec = bundle.spec
    x1 = noise.gaussian_batch(range(batch), spec.shape)
    label = np.array([spec.default_label(s) for s in range(batch)]) if spec.conditional else None
    guidance = np.full(batch, spec.guidance[0], np.float32) if spec.guidance else None

    def call(engine: Engine) -> None:
        engine.run(x1, label, guidance)

    return call


def timed_ms(call: Callable[[], None]) -> float:
    """Milliseconds of a call."""
    began = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - began)


def turns(call: Callable[[], None], calls: int | None) -> list[int]:
    """How many calls each turn has; warms up to find out."""
    call()
    if calls is None:
        calls = round(ENOUGH_S * 1e3 / max(1e-3, timed_ms(call)))
        calls = min(MOST, max(FEWEST, calls))
    return [calls // TURNS] * TURNS if calls >= TURNS else [calls]


def typical(rows: Sequence[Sequence[float]]) -> list[float]:
    """The times of the operators in a typical call.

    Medians, so that what interrupts one call is not blamed on an operator; scaled to add up to the
    median of the calls, so that what interrupts all of them is shared by all.

    Args:
        rows: of each call, the times of its operators.
    """
    times = np.asarray(rows, np.float64)
    each = np.median(times, axis=0)
    scale = np.median(times.sum(axis=1)) / max(1e-12, each.sum())
    return [float(ms * scale) for ms in each]


__all__ = ["OpTime", "Profile", "profile"]

"""What runs in the process of a subject: an engine, or a piece of the machine's limit."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from mmf_deploy import bundle as bundles
from mmf_deploy import noise
from mmf_deploy.engines.base import Engine, EngineOptions, open_engine

from .energy import Meter, meter
from .subjects import BASELINE, LIMIT, MEMORY, Setting, Subject


@dataclass(frozen=True)
class Turn:
    """What one turn gave.

    Attributes:
        seconds: of each timed call, from arrays on the host to arrays on the host.
        device_ms: of each of them on the GPU, by its own events; None where there is none.
        joules: of all of them together, by the platform's counter; None where it has none.
    """

    seconds: list[float]
    device_ms: list[float] | None = None
    joules: float | None = None


@dataclass(frozen=True)
class Facts:
    """What there is to know of a subject beside its turns.

    Attributes:
        load_s: from opening it until its first image.
        work: floating-point operations, or bytes, of one call of the limit; None of an engine.
        library: what the limit is measured with.
        peak_memory_mb: resident memory of its process at most, since ``fresh`` was called.
        device_memory_mb: memory of the GPU at most; None where the engine does not know.
        about: facts of its device and libraries.
    """

    load_s: float
    work: float | None = None
    library: str | None = None
    peak_memory_mb: float | None = None
    device_memory_mb: float | None = None
    about: dict[str, str] | None = None


def serve(pipe: Connection, setting: Setting, subject: Subject) -> None:
    """Import, and then answer until the pipe closes."""
    with contextlib.ExitStack() as stack:
        kind = _Limit if subject.engine == LIMIT else _Engine
        runner = kind(stack, setting, subject)
        pipe.send(None)
        while True:
            question, *arguments = pipe.recv()
            pipe.send(getattr(runner, question)(*arguments))


class _Runner:
    """What a worker's process does."""

    _meter: Meter | None = None

    def fresh(self) -> None:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def _timed(self, call: Callable[[], None], seconds: float, device: Engine | None) -> Turn:
        call()  # pays for cold caches, and for what another engine's threads still do
        times: list[float] = []
        on_device: list[float] = []
        total = 0.0
        before = self._meter() if self._meter else 0.0
        while not times or total < seconds:
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
            total += times[-1]
            if device is not None and device.device_ms is not None:
                on_device.append(device.device_ms)
        joules = self._meter() - before if self._meter else None
        return Turn(times, on_device or None, joules)


class _Engine(_Runner):
    """An engine of ours."""

    def __init__(self, stack: contextlib.ExitStack, setting: Setting, subject: Subject) -> None:
        self._stack = stack
        self._engine = _engine(bundles.load(setting.bundle), setting, subject)

    def open(self) -> None:
        began = time.perf_counter()
        self._stack.enter_context(self._engine)
        self._inputs(1)()
        self._load_s = time.perf_counter() - began
        self._engine.record_device_time = True
        self._meter = meter(self._engine.device)

    def _inputs(self, batch: int) -> Callable[[], None]:
        spec = self._engine.spec
        x1 = noise.gaussian_batch(range(batch), spec.shape)
        label = None
        if spec.conditional:
            label = np.array([spec.default_label(s) for s in range(batch)])
        guidance = np.full(batch, spec.guidance[0], np.float32) if spec.guidance else None

        def call() -> None:
            self._engine.run(x1, label, guidance)

        return call

    def turn(self, batch: int, seconds: float) -> Turn:
        return self._timed(self._inputs(batch), seconds, self._engine)

    def facts(self) -> Facts:
        return Facts(
            load_s=round(self._load_s, 4),
            peak_memory_mb=_peak_mb(),
            device_memory_mb=self._engine.device_memory_mb(),
            about=self._engine.about,
        )


class _Limit(_Runner):
    """What the machine can do: a product, a convolution, or a read of memory, of known size."""

    def __init__(self, stack: contextlib.ExitStack, setting: Setting, subject: Subject) -> None:
        self._stack, self._subject, self._device = stack, subject, setting.device or "cpu"

    def open(self) -> None:
        began = time.perf_counter()
        self._work = self._chosen()
        self._work.open()
        self._stack.callback(self._work.close)
        self._load_s = time.perf_counter() - began

    def _chosen(self) -> Any:
        from . import rates

        dtype, threads = self._subject.variant, self._subject.threads
        if dtype == MEMORY:
            return rates.Stream(threads, self._device)
        if self._subject.mode is None:
            return rates.choose(dtype, self._device, threads, CHOOSING_S)
        every = rates.candidates(dtype, self._device, threads)
        return next(p for p in every if p.library == self._subject.mode)

    def turn(self, batch: int, seconds: float) -> Turn:
        return self._timed(self._work.run, seconds, None)

    def facts(self) -> Facts:
        memory = self._subject.variant == MEMORY
        return Facts(
            load_s=round(self._load_s, 4),
            work=float(self._work.bytes if memory else self._work.flops),
            library=self._work.library,
        )


CHOOSING_S = 1.0
"""How long the libraries are compared with which the limit could be measured."""


def _peak_mb() -> float | None:
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    lines = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
    return round(int(lines[0].split()[1]) * 1024 / 1e6, 1) if lines else None


def _engine(bundle: bundles.Bundle, setting: Setting, subject: Subject) -> Engine:
    baseline = subject.engine == BASELINE
    options = EngineOptions(
        device=setting.device,
        threads=subject.threads,
        checkpoint=setting.checkpoint if baseline else None,
        mode=subject.mode,
    )
    variants = bundle.manifest.variants
    # the baseline reads no variant's file, but takes its number of steps
    same_steps = next((v.name for v in variants if v.steps == subject.steps), None)
    return open_engine(subject.engine, bundle, same_steps if baseline else subject.variant, options)

"""One engine in a process of its own, measured when it is its turn.

Engines in one process would share an allocator and thread pools, and each would run in a
state that the other left behind. In production they do not meet, so they do not here.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from mmf_deploy import bundle as bundles
from mmf_deploy import noise
from mmf_deploy.engines.base import Engine, EngineOptions, open_engine
from mmf_deploy.errors import EngineError, MMFError


class Subject(NamedTuple):
    """What is measured against each other.

    Attributes:
        variant: of the bundle; for PyTorch, which reads none, a name for the mode.
        mode: of the engine; its first one if None.
        steps: network evaluations per sample.
    """

    engine: str
    variant: str
    threads: int
    mode: str | None = None
    steps: int = 1


@dataclass(frozen=True)
class Setting:
    """What a worker runs: one engine on one bundle.

    Attributes:
        checkpoint, device: of the PyTorch baseline.
    """

    bundle: Path
    checkpoint: Path | None
    device: str | None = None


class Worker:
    """One subject in a process of its own; use as a context manager."""

    def __init__(self, setting: Setting, subject: Subject) -> None:
        self._arguments = setting, subject
        self._name = subject.engine

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, *self._arguments), name=self._name, daemon=True
        )
        self._process.start()
        theirs.close()
        self._receive()  # ready, or why not
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pipe.close()  # its end: the worker leaves
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()

    def turn(self, batch: int, seconds: float) -> list[float]:
        """Seconds of each timed call of one turn, after one that is not counted.

        Raises:
            EngineError: the engine failed, or its process died.
        """
        with contextlib.suppress(OSError):  # a dead worker is found by what follows
            self._pipe.send((batch, seconds))
        times: list[float] = self._receive()
        return times

    def memory_mb(self) -> float | None:
        """Resident memory of the process now, in megabytes; None where the system does not say."""
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        found: float | None = self._receive()
        return found

    def _receive(self) -> Any:
        try:
            found = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(5)
            code = self._process.exitcode
            raise EngineError(f"engine {self._name!r} died, exit code {code}") from None
        if isinstance(found, MMFError):
            raise found
        return found


def _serve(pipe: Connection, setting: Setting, subject: Subject) -> None:
    """The worker's process: open the engine, then run turns until the pipe closes."""
    try:
        bundle = bundles.load(setting.bundle)
        with _open(bundle, setting, subject) as engine:
            pipe.send(None)
            while True:
                asked = pipe.recv()
                pipe.send(_resident_mb() if asked is None else _turn(engine, *asked))
    except (EOFError, KeyboardInterrupt):
        return
    except MMFError as e:
        pipe.send(e)


def _resident_mb() -> float | None:
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    lines = [line for line in status.read_text().splitlines() if line.startswith("VmRSS:")]
    return round(int(lines[0].split()[1]) * 1024 / 1e6, 1)


def _open(bundle: bundles.Bundle, setting: Setting, subject: Subject) -> Engine:
    baseline = subject.engine == "pytorch"
    options = EngineOptions(
        device=setting.device if baseline else None,
        threads=subject.threads,
        checkpoint=setting.checkpoint if baseline else None,
        mode=subject.mode,
    )
    variants = bundle.manifest.variants
    # the baseline reads no variant's file, but takes its number of steps
    same_steps = next((v.name for v in variants if v.steps == subject.steps), None)
    return open_engine(subject.engine, bundle, same_steps if baseline else subject.variant, options)


def _turn(engine: Engine, batch: int, seconds: float) -> list[float]:
    spec = engine.spec
    x1 = noise.gaussian_batch(range(batch), spec.shape)
    label = np.array([spec.default_label(s) for s in range(batch)]) if spec.conditional else None
    guidance = np.full(batch, spec.guidance[0], np.float32) if spec.guidance else None
    engine.run(x1, label, guidance)
    times: list[float] = []
    total = 0.0
    while not times or total < seconds:
        begin = time.perf_counter()
        engine.run(x1, label, guidance)
        times.append(time.perf_counter() - begin)
        total += times[-1]
    return times

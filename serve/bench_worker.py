"""One engine in a process of its own, measured when it is its turn.

Engines in one process would share an allocator and thread pools, and each would run in a
state that the other left behind. In production they do not meet, so they do not here.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from contextlib import ExitStack
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
    """What is measured against each other."""

    engine: str
    variant: str
    threads: int


@dataclass(frozen=True)
class Setting:
    """What a worker runs: one engine on one bundle."""

    bundle: Path
    checkpoint: Path | None


class Worker:
    """Subjects of one engine in a process of their own; use as a context manager.

    Args:
        subjects: all of the same engine.
    """

    def __init__(self, setting: Setting, subjects: list[Subject]) -> None:
        self._arguments = setting, subjects
        self._name = subjects[0].engine

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

    def turn(self, subject: Subject, batch: int, seconds: float) -> list[float]:
        """Seconds of each timed call of one turn, after one that is not counted.

        Raises:
            EngineError: the engine failed, or its process died.
        """
        with contextlib.suppress(OSError):  # a dead worker is found by what follows
            self._pipe.send((subject, batch, seconds))
        times: list[float] = self._receive()
        return times

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


def _serve(pipe: Connection, setting: Setting, subjects: list[Subject]) -> None:
    """The worker's process: open every subject, then run turns until the pipe closes."""
    try:
        with ExitStack() as stack:
            bundle = bundles.load(setting.bundle)
            engines = {s: stack.enter_context(_open(bundle, setting, s)) for s in subjects}
            pipe.send(None)
            while True:
                subject, batch, seconds = pipe.recv()
                pipe.send(_turn(engines[subject], batch, seconds))
    except (EOFError, KeyboardInterrupt):
        return
    except MMFError as e:
        pipe.send(e)


def _open(bundle: bundles.Bundle, setting: Setting, subject: Subject) -> Engine:
    checkpoint = setting.checkpoint if subject.engine == "pytorch" else None
    options = EngineOptions(threads=subject.threads, checkpoint=checkpoint)
    known = {v.name for v in bundle.manifest.variants}
    variant = subject.variant if subject.variant in known else None
    return open_engine(subject.engine, bundle, variant, options)


def _turn(engine: Engine, batch: int, seconds: float) -> list[float]:
    spec = engine.spec
    x1 = noise.gaussian_batch(range(batch), spec.shape)
    label = np.array([spec.default_label(s) for s in range(batch)]) if spec.conditional else None
    guidance = np.full(batch, spec.guidance[0], np.float32) if spec.guidance else None
    engine.run(x1, label, guidance)
    times: list[float] = []
    while not times or sum(times) < seconds:
        begin = time.perf_counter()
        engine.run(x1, label, guidance)
        times.append(time.perf_counter() - begin)
    return times

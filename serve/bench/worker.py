"""One subject in a process of its own, measured when it is its turn.

Engines in one process would share an allocator and thread pools, and each would run in a
state that the other left behind. In production they do not meet, so they do not here.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from . import runners
from .process import Process
from .runners import Facts, Turn
from .subjects import LIMIT, Setting, Subject

__all__ = ["Facts", "Setting", "Subject", "Turn", "Worker"]


class Worker:
    """One subject in a process of its own; use as a context manager.

    It gets ready in three steps, so that several may import their packages at the same time and
    yet be opened one after the other: how long that takes is measured.
    """

    def __init__(self, setting: Setting, subject: Subject) -> None:
        limit = subject.engine == LIMIT
        name = f"the limit in {subject.variant}" if limit else f"engine {subject.engine!r}"
        self.process = Process(name, runners.serve, setting, subject)
        self._state = "new"

    def start(self) -> Self:
        """Start the process, which begins to import what it needs."""
        self.process.start()
        self._state = "started"
        return self

    def wait(self) -> None:
        """Until its imports are done.

        Raises:
            EngineError: the bundle cannot be read, or a package is missing.
        """
        if self._state == "started":
            self.process.answer()
            self._state = "imported"

    def __enter__(self) -> Self:
        if self._state == "new":
            self.start()
        try:
            self.wait()
            self.process.ask(("open",))
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the process, ready or not."""
        self.process.stop()

    def turn(self, batch: int, seconds: float) -> list[float]:
        """Seconds of each timed call of one turn, after one that is not counted.

        Raises:
            EngineError: the engine failed, or its process died.
        """
        return self.take(batch, seconds).seconds

    def take(self, batch: int, seconds: float) -> Turn:
        """Like ``turn``, with everything that was measured in it."""
        found: Turn = self.process.ask(("turn", batch, seconds))
        return found

    def fresh(self) -> None:
        """Forget the peak of its memory."""
        self.process.ask(("fresh",))

    def facts(self) -> Facts:
        """What there is to know of it now."""
        found: Facts = self.process.ask(("facts",))
        return found

    def memory_mb(self) -> float | None:
        """Most resident memory of the process, in megabytes; None where the system is silent."""
        return self.facts().peak_memory_mb

"""What a person sees while something long goes on.

A bar on a terminal; elsewhere a line with the time left, now and then.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

LINE_EVERY_S = 10.0


def duration(seconds: float) -> str:
    """For example 0:42, 12:05 or 3:07:09."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


class TaskProgress:
    """Progress of one task with the time left.

    Args:
        unit: what is counted, for example "steps".
        total: how many there will be.
        start: how many were done before; the speed counts only what is done now.
    """

    def __init__(self, unit: str, total: int, start: int = 0) -> None:
        self._unit, self._total, self._start = unit, total, start
        self._console = Console(file=sys.stdout)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total, completed=start, status="")
        self._began = self._said = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def per_second(self, done: int) -> float:
        """Speed of this session after ``done`` units."""
        return (done - self._start) / max(1e-9, time.monotonic() - self._began)

    def show(self, what: str, done: int, status: str = "") -> None:
        """Report that ``what`` goes on and ``done`` units are done."""
        now = time.monotonic()
        if done == self._start:
            self._began = now  # what came before was preparation
        details = "  ".join(part for part in (status, self._time(done, now)) if part)
        self._bar.update(self._task, description=what, completed=done, status=details)
        if self._console.is_terminal or done in (self._start, self._total):
            return
        if now - self._said >= LINE_EVERY_S:
            self._said = now
            self._console.print(
                f"{what}: {done}/{self._total} {self._unit}  {details}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )

    def _time(self, done: int, now: float) -> str:
        if done == self._start:
            return ""
        if done >= self._total:
            return f"took {duration(now - self._began)}"
        return f"{duration((self._total - done) / max(1e-9, self.per_second(done)))} left"

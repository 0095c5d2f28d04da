"""What a person sees while a run goes on: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_EVERY_S = 15.0


def duration(seconds: float) -> str:
    """For example 0:42, 12:05 or 3:07:09."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


class TrainingProgress:
    """Shows step, loss, λ, images/s and the time left.

    Args:
        start: steps done before this session; the speed counts only what is done now.
        total: steps of the whole run.
        batch_size: samples a step.
    """

    def __init__(self, start: int, total: int, batch_size: int) -> None:
        self._start, self._total, self._batch_size = start, total, batch_size
        self._console = Console(file=sys.stdout)
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TextColumn("left"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=total, completed=start, status="")
        self._began = self._last_line = time.monotonic()

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

    def images_per_s(self, done: int) -> float:
        """Speed of this session after ``done`` steps of the run."""
        return (done - self._start) * self._batch_size / max(1e-9, time.monotonic() - self._began)

    def show(self, done: int, loss: float, lam: float) -> None:
        """Report the state after ``done`` steps."""
        speed = self.images_per_s(done)
        status = f"loss {loss:.4f}  λ {lam:.2f}  {speed:,.0f} images/s"
        self._bar.update(self._task, completed=done, status=status)
        now = time.monotonic()
        if not self._console.is_terminal and (
            now - self._last_line >= LINE_EVERY_S or done == self._total
        ):
            self._last_line = now
            left = (self._total - done) * self._batch_size / max(speed, 1e-9)
            self.say(f"step {done}/{self._total}  {status}  {duration(left)} left")

    def say(self, line: str) -> None:
        """Print a line without disturbing the bar."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

"""Progress of an export: stages, and an ETA while images are compared."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class StageProgress:
    """A bar on a terminal; elsewhere one line a stage, and an ETA when comparing takes long.

    Args:
        total: samples to compare.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._console = Console(file=sys.stdout)
        self._bar = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("samples, left"),
            TimeRemainingColumn(compact=True),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=total)
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

    def show(self, stage: str, done: int) -> None:
        """Report a stage and the samples compared so far."""
        self._bar.update(self._task, description=stage, completed=done)
        now = time.monotonic()
        if done == 0:
            self._began = now
        elif not self._console.is_terminal and now - self._said > 10 and done < self._total:
            left = (now - self._began) / done * (self._total - done)
            self._said = now
            self._console.print(
                f"{stage}: {done}/{self._total} samples, about {left:.0f} s left", highlight=False
            )

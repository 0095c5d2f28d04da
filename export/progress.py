"""Progress of an export: stages, and an ETA while images are compared."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_EVERY_S = 10.0


class StageProgress:
    """A bar on a terminal; elsewhere a line with an ETA now and then, if it takes long."""

    def __init__(self) -> None:
        self._console = Console(file=sys.stdout)
        self._bar = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("images, left"),
            TimeRemainingColumn(compact=True),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("tracing", total=None)
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

    def show(self, stage: str, done: int, total: int) -> None:
        """Report a stage, the images made so far, and how many there will be."""
        self._bar.update(self._task, description=stage, completed=done, total=total)
        now = time.monotonic()
        if done == 0:
            self._began = now
        elif not self._console.is_terminal and now - self._said > LINE_EVERY_S and done < total:
            self._said = now
            left = (now - self._began) / done * (total - done)
            self._console.print(
                f"{stage}: {done}/{total} images, about {left:.0f} s left", highlight=False
            )

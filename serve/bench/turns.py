"""Things that take turns, each in a process of its own, so that drift of the machine hits all."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from .process import Process


class Task(Protocol):
    """What can be sent to a process and run there."""

    def open(self) -> None:
        """Prepare it."""

    def run(self) -> None:
        """Do it once, to its end."""

    def close(self) -> None:
        """Free it."""


class Child:
    """One task in a process of its own; use as a context manager."""

    def __init__(self, name: str, task: Task) -> None:
        self._process = Process(name, _run, task)

    def __enter__(self) -> Self:
        self._process.start()
        try:
            self._process.answer()  # ready, or why not
        except BaseException:
            self._process.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.stop()

    def turn(self, seconds: float) -> list[float]:
        """Seconds of each timed run of one turn, after one that is not counted.

        Raises:
            EngineError: the task failed, or its process died.
        """
        times: list[float] = self._process.ask(seconds)
        return times


def _run(pipe: Connection, task: Task) -> None:
    task.open()
    pipe.send(None)
    while True:
        pipe.send(timed(task.run, pipe.recv()))


def timed(run: Callable[[], None], seconds: float) -> list[float]:
    """Seconds of each run, at least two, after one that is not counted."""
    run()
    times: list[float] = []
    while len(times) < 2 or sum(times) < seconds:
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return times


def take_turns(
    children: Mapping[str, Child],
    seconds: float,
    turn_s: float = 0.05,
    least: int = 6,
    on_turn: Callable[[float], None] = lambda share: None,
) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """The median run of each turn, by child; all of them take as many turns.

    Args:
        seconds: of all turns together.
        turn_s: what the counted runs of one turn take.
        least: turns of each, whatever ``seconds`` says.
        on_turn: told the share of the time that is over.
    """
    order = random.Random(0)
    found: dict[str, list[float]] = {name: [] for name in children}
    begin = time.perf_counter()
    count, share = 0, 0.0
    while share < 1 or count < least:
        # another order each round, so that none always follows the same neighbour
        for name in order.sample(list(children), len(children)):
            found[name].append(float(np.median(children[name].turn(turn_s))))
            share = (time.perf_counter() - begin) / seconds
            on_turn(min(1.0, share))
        count += 1
    return {name: np.array(values) for name, values in found.items()}

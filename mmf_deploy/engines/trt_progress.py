"""How far a build is, from the nested phases that TensorRT reports."""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class BuildPhases:
    """Phases that are open, by name; a step may have a phase of its own inside.

    TensorRT reports from several threads.
    """

    def __init__(self) -> None:
        self._open: dict[str, _Phase] = {}
        self._root = ""
        self._finished = False
        self._lock = threading.Lock()

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase of so many steps begins, inside its parent's current step."""
        with self._lock:
            if parent is None:
                self._open, self._root, self._finished = {}, name, False
            self._open[name] = _Phase(parent, max(1, steps))

    def step(self, name: str, step: int) -> None:
        """Step number ``step``, counted from 0, is complete."""
        with self._lock:
            if name in self._open:
                phase = self._open[name]
                phase.done = min(phase.steps, max(phase.done, step + 1))

    def finish(self, name: str) -> None:
        """A phase is over, whether or not all of its steps were reported."""
        with self._lock:
            self._open.pop(name, None)
            self._finished = self._finished or name == self._root

    def now(self) -> tuple[str, float]:
        """(outermost phase, its fraction in [0, 1])."""
        with self._lock:
            if self._finished:
                return self._root, 1.0
            return self._root, self._fraction(self._root) if self._root in self._open else 0.0

    def _fraction(self, name: str) -> float:
        phase = self._open[name]
        inner = [self._fraction(n) for n, p in self._open.items() if p.parent == name]
        return min(1.0, (phase.done + max(inner, default=0.0)) / phase.steps)

"""What an experiment asks for: runs by what they train, and measurements of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mmf_deploy.results import Picture, Table

from .runs import Run
from .scales import Scale

SIX = ("meanflow", "meanflow-full", "mmf-lambda0", "mmf-lambda0.5", "mmf-lambda1", "mmf")
"""The objectives of Table 2: both tangents, λ from 0 to 1, and the curriculum."""

HISTORY = 6
"""Checkpoints of a run that are kept to look back on it."""


class Measurement(NamedTuple):
    """What is measured of a run: the name of an entry of ``PROBES``."""

    run: Run
    probe: str


Numbers = Mapping[str, Any]
"""What a probe found; ``failed`` says why there is nothing else in it."""


@dataclass(frozen=True)
class Lab:
    """One scale, and where its runs lie.

    Attributes:
        root: holds ``runs/``, ``measured/`` and ``results/``.
        sets: keys that are set in every run, after those of the scale.
    """

    scale: Scale
    root: Path
    device: str = "cpu"
    threads: int = 1
    sets: tuple[str, ...] = ()

    @property
    def seeds(self) -> Sequence[int]:
        """The seeds of every run that has several."""
        return self.scale.seeds

    def image(
        self, objective: str, seed: int, label: str = "", more: Sequence[str] = (),
        warmup: int | None = None,
    ) -> Run:  # fmt: skip
        """A run with images.

        Args:
            label: tells it from the run of the objective itself.
            more: keys that make it another one.
            warmup: T_warmup, instead of the scale's own.
        """
        scale = self.scale
        sets = (
            f"objective.name={objective}",
            f"seed={seed}",
            # objectives are compared as they are: guidance improves the velocities of any
            "objective.guidance={mode: off}",
            *scale.sets,
            f"loop.steps={scale.steps}",
            f"objective.warmup_steps={scale.warmup_steps if warmup is None else warmup}",
            f"loop.checkpoint_every={scale.checkpoint_every}",
            "loop.keep=1",
            f"loop.keep_every={self._history if seed == self.seeds[0] and not label else 0}",
            "loop.sample_every=0",
            "loop.tensorboard=false",
            *self.sets,
            *more,  # what makes it this run stands last
        )
        return self._run(scale.recipe, sets, f"{objective}{label}-seed{seed}")

    @property
    def _history(self) -> int:
        """Steps between checkpoints that are kept; a multiple of those between all."""
        every = self.scale.checkpoint_every
        return every * max(1, self.scale.steps // HISTORY // every)

    def images(self, objective: str, label: str = "", more: Sequence[str] = (),
               warmup: int | None = None) -> list[Run]:  # fmt: skip
        """The same with every seed."""
        return [self.image(objective, seed, label, more, warmup) for seed in self.seeds]

    def by_objective(self, objectives: Sequence[str]) -> dict[str, list[Run]]:
        """The runs of some objectives with every seed."""
        return {objective: self.images(objective) for objective in objectives}

    def vectors(self, recipe: str, objective: str, label: str = "", more: Sequence[str] = (),
                seed: int = 0) -> Run:  # fmt: skip
        """A run of a low-dimensional recipe, which is the same at every scale."""
        sets = (
            f"objective.name={objective}",
            f"seed={seed}",
            "loop.tensorboard=false",
            "loop.keep=1",
            *self.scale.vectors,
            *more,
        )
        return self._run(recipe, sets, f"{recipe}-{objective}{label}-seed{seed}")

    def _run(self, recipe: str, sets: tuple[str, ...], name: str) -> Run:
        directory = self.root / "runs" / re.sub(r"[^\w.%-]+", "-", name)
        return Run(recipe, sets, directory, self.device, self.threads)


@dataclass(frozen=True)
class Found:
    """The numbers of all measurements."""

    lab: Lab
    numbers: Mapping[Measurement, Numbers] = field(default_factory=dict)

    def of(self, run: Run, probe: str) -> Numbers:
        """What a probe found of a run."""
        return self.numbers[Measurement(run, probe)]

    def lost(self, groups: Mapping[str, Sequence[Run]], probe: str) -> list[str]:
        """A line for each group in which runs have no numbers, with the reason."""
        lines, reasons = [], []
        for name, runs in groups.items():
            found = [self.of(run, probe) for run in runs]
            failed = [str(n["failed"]) for n in found if "failed" in n]
            reasons += failed
            if failed:
                lines.append(f"{name}: {len(failed)} of {len(runs)} without numbers: {failed[0]}")
        if len(lines) == len(groups) and len(set(reasons)) == 1:
            return [f"no numbers: {reasons[0]}"]  # what is missing for all is said once
        return lines

    def values(self, runs: Sequence[Run], probe: str, key: str) -> list[float]:
        """One number of several runs, of those that have it."""
        found = [self.of(run, probe).get(key) for run in runs]
        return [float(value) for value in found if value is not None]


@dataclass(frozen=True)
class Report:
    """What an experiment shows.

    Attributes:
        pictures: what draws each.
    """

    title: str
    tables: Sequence[Table]
    pictures: Mapping[Picture, Callable[[Path], None]] = field(default_factory=dict)

"""From the names of experiments to their tables and pictures: train, measure, report."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import shlex
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from mmf_deploy import checkpoint, files, machine
from mmf_deploy.errors import TrainingError
from mmf_deploy.results import Result, write

from ..data import digits
from ..metrics.digits_classifier import train_classifier
from ..state import versions
from . import EXPERIMENTS
from .lab import Found, Lab, Measurement, Numbers, Report
from .measure import Request, measure
from .probes import PROBES
from .runs import Run, Sessions
from .subject import Weights
from .work import Task, execute, training


class Experiment(Protocol):
    """A module of ``EXPERIMENTS``."""

    def plan(self, lab: Lab) -> list[Measurement]:
        """All that it needs."""
        ...

    def report(self, found: Found) -> Report:
        """What it shows."""
        ...


def experiment(name: str) -> Experiment:
    """The module of an experiment."""
    module: Any = importlib.import_module(EXPERIMENTS[name])
    return module  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Reproduction:
    """Some experiments at one scale.

    Attributes:
        jobs: runs, or measurements, at a time.
        options: what was typed behind the names, as far as it changes a result.
    """

    names: Sequence[str]
    lab: Lab
    jobs: int
    weights: Weights
    options: str

    @property
    def measurements(self) -> list[Measurement]:
        """What is measured, each once."""
        planned = (m for name in self.names for m in experiment(name).plan(self.lab))
        return list(dict.fromkeys(planned))

    @property
    def runs(self) -> list[Run]:
        """What is trained, each once; the longest first."""
        distinct = dict.fromkeys(m.run for m in self.measurements)
        return sorted(distinct, key=self._training_seconds, reverse=True)

    def _training_seconds(self, run: Run) -> float:
        vectors = run.config["network"]["type"] == "mlp"
        return run.steps * (0.01 if vectors else self.lab.scale.step_s)

    def train(self) -> None:
        """Train every run that has not been.

        Raises:
            ConfigError: a directory holds another run.
            TrainingError: it was stopped before all had ended, or all failed.
        """
        todo = [run for run in self.runs if not run.known()]
        for run in todo:
            run.refuse_another()
        sessions = Sessions()
        tasks = [training(run, self._training_seconds(run), sessions) for run in todo]
        execute("training", tasks, self.jobs, sessions.stop)
        if unfinished := [run.name for run in todo if not run.outcome()]:
            raise TrainingError(
                f"stopped before the end: {', '.join(unfinished)}; the same command resumes"
            )
        if not any(run.known() for run in self.runs):
            raise TrainingError(f"no run could be trained: {self.runs[0].outcome()['failed']}")

    def measure(self) -> Found:
        """Measure everything that has not been."""
        judge = self.lab.root / "judge"
        if self.lab.scale.features == "digits" and not judge.is_dir():
            source = digits.load(digits.Config())
            everything = source.batch(torch.arange(len(source)))
            assert everything.label is not None  # digits have classes
            train_classifier(everything.x0, everything.label).save(judge)
        numbers: dict[Measurement, Numbers] = {}
        requests = {m: self._request(m) for m in self.measurements}
        for m, request in requests.items():
            record = m.run.outcome()
            numbers[m] = {"failed": record["failed"]} if "failed" in record else request.known()
        todo = [m for m in requests if not numbers[m]]
        together = [m for m in todo if not PROBES[m.probe].alone]
        for some, jobs in ((together, self.jobs), ([m for m in todo if m not in together], 1)):
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(jobs, mp_context=context) as pool:
                execute(
                    "measuring", [self._task(pool, m, requests[m], numbers) for m in some], jobs
                )
        return Found(self.lab, numbers)

    def _request(self, m: Measurement) -> Request:
        lab = self.lab
        return Request(m.run.directory, m.probe, lab.root, lab.scale, lab.device, self.weights)

    def _task(
        self,
        pool: ProcessPoolExecutor,
        m: Measurement,
        request: Request,
        numbers: dict[Measurement, Numbers],
    ) -> Task:
        def do() -> str:
            numbers[m] = pool.submit(measure, request).result()
            return f"not measured: {numbers[m]['failed']}" if "failed" in numbers[m] else "measured"

        return Task(f"{m.run.name}, {m.probe}", PROBES[m.probe].seconds, do)

    def write(self, found: Found) -> list[str]:
        """The numbers of every run, and each experiment's tables and pictures; says where."""
        out = self.lab.root / "results"
        (out / "runs").mkdir(parents=True, exist_ok=True)
        for run in self.runs:
            content = json.dumps(self._of_run(run, found), indent=1) + "\n"
            files.write_atomic(out / "runs" / f"{run.name}.json", content.encode())
        return [self._write(name, found, out) for name in self.names]

    def _write(self, name: str, found: Found, out: Path) -> str:
        module = experiment(name)
        shown = module.report(found)
        scale = self.lab.scale
        result = Result(
            kind="experiment",
            title=shown.title,
            command=f"mmf reproduce {name} {self.options}",
            machine=machine.describe(),
            versions=versions(),
            tables=shown.tables,
            pictures=[replace(p, file=f"{name}-{p.file}") for p in shown.pictures],
            content={
                "experiment": name,
                "scale": scale.name,
                "steps": scale.steps,
                "seeds": list(scale.seeds),
                "runs": list(dict.fromkeys(m.run.name for m in module.plan(self.lab))),
            },
        )
        draw = {f"{name}-{p.file}": function for p, function in shown.pictures.items()}
        return write(out, name, result, draw)

    def _of_run(self, run: Run, found: Found) -> dict[str, Any]:
        """All that is known of a run, also what other calls have measured."""
        record, numbers = run.outcome(), {}
        finished = bool(run.known())
        for probe in PROBES if finished else ():
            numbers[probe] = (
                found.numbers.get(Measurement(run, probe))
                or self._request(Measurement(run, probe)).known()
            )
        return {
            "run": run.name,
            "command": shlex.join(run.command),
            "status": "finished" if finished else "failed",
            "message": record.get("failed"),
            "seconds": record.get("seconds"),
            "derivative": record.get("derivative"),
            "seed": run.config["seed"],
            "versions": checkpoint.read(run.directory).meta["versions"] if finished else versions(),
            "config": run.config,
            "numbers": {probe: n for probe, n in numbers.items() if n},
        }

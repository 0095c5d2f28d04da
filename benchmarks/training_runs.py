"""Training runs on digits: several at a time, each resumed or begun anew as its record says."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmf_deploy.training.read_recipe import load_config

from mmf_deploy import checkpoint, files
from mmf_deploy.errors import CheckpointError
from mmf_deploy.progress import TaskProgress, duration

POLL_S = 2.0
STOPPED = 130  # exit code of a run that saved and stopped


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        derivative: "auto", or the one to train with.
        steps: optimiser steps; None for the recipe's own.
        directory: where it trains; its record lies beside.
        more: further keys, set in every run.
    """

    objective: str
    derivative: str
    seed: int
    steps: int | None
    directory: Path
    more: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """For a person."""
        return self.directory.name

    @property
    def sets(self) -> list[str]:
        """What it sets on top of the recipe."""
        # objectives are compared as they are: guidance improves the velocities of any of them
        sets = [f"objective.name={self.objective}", f"seed={self.seed}",
                "objective.guidance={mode: off}", "loop.tensorboard=false"]  # fmt: skip
        if self.derivative != "auto":
            sets.append(f"objective.derivative={self.derivative}")
        if self.steps is not None:
            # λ rises over the first eighth of the run, as in the recipe
            sets += [f"loop.steps={self.steps}", f"objective.warmup_steps={self.steps // 8}"]
        return [*sets, *self.more]

    @property
    def config(self) -> dict[str, Any]:
        """The whole configuration."""
        return load_config("digits", self.sets).model_dump(mode="json")

    @property
    def command(self) -> list[str]:
        """What runs it, without --out."""
        sets = [part for one in self.sets for part in ("--set", one)]
        return ["mmf", "train", "digits", *sets, "--device", "cpu", "--threads", "1"]

    @property
    def record(self) -> Path:
        """What is known of it once it ended."""
        return self.directory.with_name(f"{self.name}.json")

    def known(self) -> dict[str, Any]:
        """The record, if there is one of this very configuration; else nothing."""
        found = _read(self.record)
        return found if found.get("config") == self.config else {}

    def holds_another(self, config: dict[str, Any]) -> bool:
        """Whether the directory holds a run with another configuration."""
        try:
            return checkpoint.read(self.directory).config != config
        except CheckpointError:
            return False  # `mmf train` knows what to do with it

    def steps_done(self) -> int:
        """According to its log."""
        try:
            last = (self.directory / "log.jsonl").read_text().splitlines()[-1]
            return int(json.loads(last)["step"])
        except (OSError, ValueError, IndexError, KeyError):
            return 0


@dataclass
class Sessions:
    """The processes that train, so that all of them can be stopped together."""

    processes: list[subprocess.Popen[str]] = field(default_factory=list)
    stopped: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def train(self, run: Run) -> dict[str, Any]:
        """Train one run to its end, and write its record; nothing if it was stopped."""
        config, resumed, fresh = run.config, bool(checkpoint.find_all(run.directory)), []
        if resumed and run.holds_another(config):
            resumed, fresh = False, ["--fresh"]
        begin = time.monotonic()
        with self.lock:
            if self.stopped:
                return {}
            process = subprocess.Popen(
                [sys.executable, "-m", "mmf_deploy.cli", *run.command[1:],
                 "--out", str(run.directory), *fresh],
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                start_new_session=True,
            )  # fmt: skip
            self.processes.append(process)
        said = process.communicate()[1]
        if self.stopped or process.returncode == STOPPED:
            return {}
        record: dict[str, Any] = {
            "config": config,
            # what an earlier session took is not known
            "seconds": None if resumed else round(time.monotonic() - begin, 1),
        }
        if process.returncode:
            record["failed"] = (said.strip().splitlines() or ["no message"])[-1]
        else:
            record["derivative"] = checkpoint.read(run.directory).meta.get("derivative")
            record["quality"] = _read(run.directory / "evaluation.json")
        files.write_atomic(run.record, (json.dumps(record, indent=1) + "\n").encode())
        return record

    @contextmanager
    def ended_together(self) -> Iterator[None]:
        """Whatever happens, no process goes on alone; each saves before it ends."""
        try:
            yield
        finally:
            with self.lock:
                self.stopped = True
                for process in self.processes:
                    if process.poll() is None:
                        process.terminate()


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def execute(todo: Sequence[Run], jobs: int) -> None:
    """Train what is not finished yet, ``jobs`` runs at a time."""
    total = {run: int(run.config["loop"]["steps"]) for run in todo}
    start = sum(min(run.steps_done(), total[run]) for run in todo)
    sessions = Sessions()
    with (
        TaskProgress("steps", sum(total.values()), start) as progress,
        ThreadPoolExecutor(jobs) as pool,
        sessions.ended_together(),
    ):
        going = {pool.submit(sessions.train, run): run for run in todo}
        progress.show("training", start)
        while going:
            done, _ = wait(going, timeout=POLL_S, return_when=FIRST_COMPLETED)
            for future in done:
                print(f"{going.pop(future).name}: {_summary(future.result())}", flush=True)
            left = sum(max(0, total[run] - run.steps_done()) for run in going.values())
            progress.show("training", sum(total.values()) - left, f"{len(going)} runs to go")


def _summary(record: dict[str, Any]) -> str:
    if not record:
        return "stopped; the same command resumes it"
    took = "" if record["seconds"] is None else f", {duration(record['seconds'])}"
    if "failed" in record:
        return f"failed: {record['failed']}{took}"
    quality = record["quality"]
    return (
        f"Fréchet distance {quality['frechet']:.2f}, "
        f"class accuracy {quality['class_accuracy']:.1%}{took}"
    )

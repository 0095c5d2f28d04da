"""Training runs in processes of their own, each resumed or begun anew as its record says."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmf_deploy import checkpoint, files
from mmf_deploy.errors import CheckpointError

from ..config import TrainConfig
from ..read_recipe import load_config
from ..state import another_run, refuse_another_config

STOPPED = 130  # exit code of a run that saved and stopped


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        recipe: what it starts from.
        sets: what it sets on top.
        directory: where it trains; its record lies beside.
        device, threads: what it trains on.
    """

    recipe: str
    sets: tuple[str, ...]
    directory: Path
    device: str = "cpu"
    threads: int = 1

    @property
    def name(self) -> str:
        """For a person."""
        return self.directory.name

    @property
    def _parsed(self) -> TrainConfig:
        return _config(self.recipe, self.sets)

    @property
    def config(self) -> dict[str, Any]:
        """The whole configuration."""
        return self._parsed.model_dump(mode="json")

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self._parsed.loop.steps

    @property
    def command(self) -> list[str]:
        """What runs it, without --out."""
        sets = [part for one in self.sets for part in ("--set", one)]
        where = ["--device", self.device, "--threads", str(self.threads)]
        return ["mmf", "train", self.recipe, *sets, *where]

    @property
    def record(self) -> Path:
        """What is known of it once it ended."""
        return self.directory.with_name(f"{self.name}.json")

    def outcome(self) -> dict[str, Any]:
        """The record of its last session, also of one that failed; nothing if there is none."""
        found = read_json(self.record)
        same = "config" in found and not another_run(self._parsed, found["config"])
        return found if same else {}

    def known(self) -> dict[str, Any]:
        """The record of a run that has come to its end; what failed is tried again."""
        found = self.outcome()
        steps = [checkpoint.step_of(path) for path in checkpoint.find_all(self.directory)]
        return found if "failed" not in found and steps and steps[-1] == self.steps else {}

    def refuse_another(self) -> None:
        """What the directory holds must be this run.

        Raises:
            ConfigError: it is one of another configuration, which would be lost.
        """
        try:
            found = checkpoint.read(self.directory)
        except CheckpointError:
            return  # `mmf train` knows what to do with it
        refuse_another_config(self._parsed, found, self.directory)

    def steps_done(self) -> int:
        """According to its log."""
        try:
            last = (self.directory / "log.jsonl").read_text().splitlines()[-1]
            return int(json.loads(last)["step"])
        except (OSError, ValueError, IndexError, KeyError):
            return 0


@functools.lru_cache(maxsize=1024)
def _config(recipe: str, sets: tuple[str, ...]) -> TrainConfig:
    return load_config(recipe, sets)


@dataclass
class Sessions:
    """The processes that train, so that all of them can be stopped together."""

    processes: list[subprocess.Popen[str]] = field(default_factory=list)
    stopped: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def train(self, run: Run) -> dict[str, Any]:
        """Train one run to its end, and write its record; nothing if it was stopped."""
        run.refuse_another()
        resumed = bool(checkpoint.find_all(run.directory))
        run.record.unlink(missing_ok=True)  # of an earlier session, which said something else
        begin = time.monotonic()
        with self.lock:
            if self.stopped:
                return {}
            process = subprocess.Popen(
                [sys.executable, "-m", "mmf_deploy.cli", *run.command[1:],
                 "--out", str(run.directory)],
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                start_new_session=True,
            )  # fmt: skip
            self.processes.append(process)
        said = process.communicate()[1]
        if self.stopped or process.returncode == STOPPED:
            return {}
        record: dict[str, Any] = {
            "config": run.config,
            # what an earlier session took is not known
            "seconds": None if resumed else round(time.monotonic() - begin, 1),
        }
        if process.returncode:
            last = (said.strip().splitlines() or ["no message"])[-1]
            record["failed"] = last.removeprefix("error: ")
        else:
            record["derivative"] = checkpoint.read(run.directory).meta.get("derivative")
            record["quality"] = read_json(run.directory / "evaluation.json")
        files.write_atomic(run.record, (json.dumps(record, indent=1) + "\n").encode())
        return record

    def stop(self) -> None:
        """No process goes on alone; each saves before it ends."""
        with self.lock:
            self.stopped = True
            for process in self.processes:
                if process.poll() is None:
                    process.terminate()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is none."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

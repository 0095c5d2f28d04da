"""The directory of a run: lock, checkpoints, log, sample grids.

runs/<name>/
    checkpoints/step-…   mmf_deploy.checkpoint
    samples/step-….png   grids of one-step samples
    tensorboard/         event files
    log.jsonl            one line every few steps
    evaluation.json      quality of the finished run
    judge/               the classifier that judged it (mmf_deploy.nn.judge)
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmf_deploy import checkpoint, files
from mmf_deploy.errors import CheckpointError, TrainingError

WRITTEN = (
    "checkpoints/step-*[0-9]",
    "checkpoints/corrupt-step-*[0-9]",
    "samples/step-*[0-9].png",
    "tensorboard/events.out.tfevents.*",
    "log.jsonl",
    "evaluation.json",
    "judge",
)
"""What a run leaves, beside its lock."""


class RunDirectory:
    """Paths and files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.evaluation = path / "evaluation.json"
        self.judge = path / "judge"
        self.tensorboard = path / "tensorboard"
        self._log = path / "log.jsonl"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process; what a killed process left half-written is removed.

        Raises:
            TrainingError: another process trains here.
        """
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise TrainingError(
                    f"{self.path}: another process is training this run; wait for it, "
                    "or choose another directory with --out"
                ) from None
            files.remove_leftovers(self.checkpoints)
            yield

    def newest(self, mend: bool = True) -> tuple[checkpoint.Checkpoint | None, list[str]]:
        """The newest whole checkpoint, and a complaint about each newer one.

        Args:
            mend: move the corrupt ones aside.
        Raises:
            TrainingError: there are checkpoints, but none is whole.
        """
        complaints: list[str] = []
        broken: list[Path] = []
        for path in reversed(checkpoint.find_all(self.path)):
            try:
                found = checkpoint.read(path)
            except CheckpointError as e:
                complaints.append(str(e))
                broken.append(path)
                continue
            for bad in broken if mend else ():
                aside = bad.with_name(f"corrupt-{bad.name}")
                shutil.rmtree(aside, ignore_errors=True)
                bad.rename(aside)
            return found, [f"{c}; moved aside, going back to step {found.step}" for c in complaints]
        if complaints:
            raise TrainingError(f"{complaints[0]}; no older one is whole. Start over with --fresh")
        return None, []

    def prune(self, keep: int, keep_every: int = 0) -> None:
        """Delete all but the newest ``keep`` checkpoints, and those of every so many steps."""
        for path in checkpoint.find_all(self.path)[:-keep]:
            step = checkpoint.step_of(path)
            if not (keep_every and step and step % keep_every == 0):
                shutil.rmtree(path)

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one line to the log."""
        with self._log.open("a") as f:
            f.write(json.dumps(record) + "\n")

    def rewind_log(self, step: int) -> None:
        """Drop lines after ``step``, and a half-written last line: they will come again."""
        if not self._log.exists():
            return
        kept = []
        for line in self._log.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError):
                continue
        files.write_atomic(self._log, "".join(kept).encode())

    def clear(self) -> None:
        """Remove everything that a run wrote here, and nothing else."""
        for pattern in WRITTEN:
            for found in self.path.glob(pattern):
                shutil.rmtree(found) if found.is_dir() else found.unlink()

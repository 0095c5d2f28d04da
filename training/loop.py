"""The training loop: one run from its first step to its last, whatever happens in between."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch

from mmf_deploy import checkpoint
from mmf_deploy.errors import TrainingError
from mmf_deploy.machine import available_cores

from .config import TrainConfig
from .learner import Gradients, Learner
from .processes import open_processes, peers_may_vanish
from .recovery import Recovery
from .run_directory import RunDirectory
from .state import RunState, changed_setting, moved, refuse_another_config, setting
from .telemetry import Telemetry

LOG_EVERY = 10
STOPPING = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Result:
    """How a session ended.

    Attributes:
        step: optimiser steps done in the whole run.
        finished: False if a signal ended it early.
        checkpoint: the newest checkpoint.
    """

    step: int
    finished: bool
    checkpoint: Path


class Trainer:
    """Trains one run in one directory; ``run`` resumes what is there.

    Args:
        config: the recipe.
        out: the run's directory.
        device: "cpu" or "cuda".
        threads: CPU threads; those the run was started with, or all cores, if not given.
            Another number gives other bits.
        command: what starts such a run, for the record.
    """

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        device: str = "cpu",
        threads: int | None = None,
        command: str = "",
    ) -> None:
        self.config = config
        self.command = command
        self.directory = RunDirectory(out)
        self.device = device
        self.threads = threads
        self._stop = False
        self._lr = 0.0

    def run(self, fresh: bool = False) -> Result:
        """Train until the last step or a SIGINT or SIGTERM, which saves first.

        Args:
            fresh: delete what the directory holds and start over.
        Raises:
            ConfigError: the directory holds a run with another configuration.
            TrainingError: the loss stays not finite, the disk is full, another process
                trains here, or one of several processes ended.
        """
        self.processes = open_processes(self.device)
        self.main = self.processes.rank == 0
        with peers_may_vanish(self.processes):
            result = self._run(fresh)
            self.processes.close()
        return result

    def _run(self, fresh: bool) -> Result:
        # what is wrong with the recipe shows before anything is written or deleted
        self.config.check_parts(self.processes.count)
        source = self.processes.one_after_the_other(self.config.load_data)
        self.learner = Learner(self.config, source, self.processes)
        if self.config.init_from and (fresh or not checkpoint.find_all(self.directory.path)):
            self.learner.start_from(self.config.init_from)
        with self._directory(fresh):
            start = self._resume()
            for warning in self.config.objective.warnings:
                self._say(f"warning: {warning}")
            notes = source.notes
            for note in (*notes, *self.learner.notes):
                self._say(f"note: {note}")
            with self._signals(), self._reports(start):
                result = self._train(start)
            for note in (n for n in source.notes if n not in notes):
                self._say(f"note: {note}")
            return result

    @contextmanager
    def _directory(self, fresh: bool) -> Iterator[None]:
        """The first process holds the run and prepares it; the others wait for that."""
        with self.directory.locked() if self.main else nullcontext():
            if self.main and fresh:
                self.directory.clear()
            self.processes.wait()
            try:
                yield
            except OSError as e:
                raise TrainingError(
                    f"{self.directory.path}: cannot write ({e.strerror or e}). What was saved "
                    "before is whole: make room, and the same command goes on from there"
                ) from None

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def stop(number: int, frame: FrameType | None) -> None:
            self._stop = True

        previous = {s: signal.signal(s, stop) for s in STOPPING}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    @contextmanager
    def _reports(self, start: int) -> Iterator[None]:
        self._telemetry = Telemetry(self.config, self.directory, start) if self.main else None
        with self._telemetry or nullcontext():
            yield

    def _say(self, line: str) -> None:
        if self.main:
            print(line)

    def _resume(self) -> int:
        found, complaints = self.directory.newest(mend=self.main)
        for complaint in complaints:
            self._say(f"warning: {complaint}")
        machine = setting(self.processes, self._use_threads(found))
        self.state = RunState(self.config, self.learner, {"command": self.command,
                                                          "setting": machine})  # fmt: skip
        self.recovery = Recovery()
        if found is not None:
            refuse_another_config(self.config, found, self.directory.path)
            for change in changed_setting(found, machine):
                self._say(f"warning: {change}; the run goes on, but not bit for bit as it would")
            for change in moved(self.config, found):
                self._say(f"warning: {change}; the run goes on as if it were the same data")
            self._load(found)
            if self.main:
                self.directory.rewind_log(found.step)
        self.processes.wait()
        chosen = found.meta.get("derivative") if found else None
        self.state.record["derivative"] = self.learner.assemble(chosen)
        if found is None:
            self._save(0)
            return 0
        return found.step

    def _load(self, found: checkpoint.Checkpoint) -> None:
        self.state.load(found)
        self.recovery = Recovery.read(found.meta.get("recovery", {}))

    def _use_threads(self, found: checkpoint.Checkpoint | None) -> int:
        started_with = found.meta.get("setting", {}).get("threads") if found else None
        share = max(1, available_cores() // self.processes.local)
        threads = int(self.threads or started_with or share)
        torch.set_num_threads(threads)
        return threads

    def _save(self, step: int) -> Path:
        self.recovery.saved(self.config.loop.recovery)
        if self.main:
            self.state.save(self.directory.checkpoints, step, self.recovery)
            self.directory.prune(self.config.loop.keep, self.config.loop.keep_every)
        return checkpoint.step_path(self.directory.checkpoints, step)

    def _train(self, start: int) -> Result:
        loop = self.config.loop
        done = saved = start
        while done < loop.steps and not self.processes.any(self._stop):
            found = self.learner.gradients(done, self.recovery.rollbacks)
            if not self._take(done, found):
                done = saved = self._roll_back(done)
                continue
            done += 1
            last = done == loop.steps
            # in a row of skipped steps the weights are not known to be good
            due = done // loop.checkpoint_every > saved // loop.checkpoint_every
            due = due and not self.recovery.in_a_row
            if (due or last) and not self.learner.finite():
                done = saved = self._roll_back(done)
                continue
            if done % LOG_EVERY == 0 or last:
                self._report(done, found)
            if self._telemetry and loop.sample_every and (done % loop.sample_every == 0 or last):
                self._telemetry.draw(done, self.learner)
            if due or last:
                self._save(done)
                saved = done
        if saved != done and not self.recovery.in_a_row and self.learner.finite():
            self._save(done)
            saved = done
        # a launcher takes the first process that ends for the end of all: not before it is saved
        self.processes.wait()
        newest = checkpoint.step_path(self.directory.checkpoints, saved)
        return Result(step=saved, finished=saved >= loop.steps, checkpoint=newest)

    def _take(self, step: int, found: Gradients) -> bool:
        """Move the weights, or skip the step; False when the run must go back."""
        if found.finite:
            self._lr = self.learner.update(step, self.recovery.lr_scale)
            self.recovery.good(found.loss, found.norm)
            return True
        self.recovery.skip()
        return self.recovery.in_a_row < self.config.loop.recovery.max_skipped

    def _roll_back(self, step: int) -> int:
        """Go back to the last good checkpoint; its step.

        Raises:
            TrainingError: that did not help before.
        """
        found, _ = self.directory.newest(mend=False)
        assert found is not None  # a run begins with a checkpoint
        if not self.recovery.may_roll_back(found.step, self.config.loop.recovery):
            raise TrainingError(self.recovery.diagnosis(step, found, self.config))
        self.state.load(found)
        self.recovery.roll_back(found.step, self.config.loop.recovery)
        if self._telemetry is not None:
            self._telemetry.rewind(found.step)
        self._say(
            f"warning: loss or gradient not finite up to step {step}; back to step {found.step}, "
            f"learning rate × {self.recovery.lr_scale:g}"
        )
        return found.step

    def _report(self, done: int, found: Gradients) -> None:
        local = torch.tensor([found.loss, float(found.squared_error.mean())], dtype=torch.float64)
        loss, squared_error = self.processes.mean(local.to(self.processes.device)).tolist()
        if self._telemetry is not None:
            self._telemetry.report(done, found, loss, squared_error, self._lr, self.recovery)

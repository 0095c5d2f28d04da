"""The training loop: one run from its first step to its last, whatever happens in between."""

from __future__ import annotations

import math
import signal
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

import torch
from torch import Tensor, nn

from mmf_deploy import checkpoint
from mmf_deploy.errors import TrainingError
from mmf_deploy.machine import available_cores
from mmf_deploy.nn.build import build_network
from mmf_deploy.progress import TaskProgress

from .config import TrainConfig
from .data.base import Source
from .ema import EMA
from .order import batch_indices, derive
from .previews import draw_grid
from .run_directory import RunDirectory
from .schedules import learning_rate
from .state import RunState, changed_setting, refuse_another_config, setting

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
        self.device = torch.device(device)
        self.threads = threads
        self._stop = False

    def run(self, fresh: bool = False) -> Result:
        """Train until the last step or a SIGINT or SIGTERM, which saves first.

        Args:
            fresh: delete what the directory holds and start over.
        Raises:
            ConfigError: the directory holds a run with another configuration.
            TrainingError: the loss is not finite, or another process trains here.
        """
        # what is wrong with the recipe shows before anything is written or deleted
        self.source: Source = self.config.load_data()
        self._build()
        with self.directory.locked():
            if fresh:
                self.directory.clear()
            start = self._resume()
            previous = {s: signal.signal(s, self._on_signal) for s in STOPPING}
            try:
                with TaskProgress("steps", self.config.loop.steps, start) as self._progress:
                    return self._train(start)
            finally:
                for number, handler in previous.items():
                    signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stop = True

    def _build(self) -> None:
        config = self.config
        torch.manual_seed(derive(config.seed, "init"))
        network = build_network(self.source.spec, config.network.model_dump())
        self.net: nn.Module = network.to(self.device)
        self.emas = [EMA(self.net, decay) for decay in config.loop.ema]
        self.optimizer = torch.optim.Adam(
            self.net.parameters(),
            lr=config.optimizer.lr,
            betas=(config.optimizer.beta1, config.optimizer.beta2),
            fused=True,
        )

    def _resume(self) -> int:
        found, complaints = self.directory.newest()
        for complaint in complaints:
            print(f"warning: {complaint}")
        machine = setting(self.device, self._use_threads(found))
        self.state = RunState(
            self.config, self.source.spec, self.net, self.emas, self.optimizer,
            {"command": self.command, "setting": machine},
        )  # fmt: skip
        if found is None:
            self._save(0)
            return 0
        refuse_another_config(self.config, found, self.directory.path)
        for change in changed_setting(found, machine):
            print(f"warning: {change}; the run goes on, but not bit for bit as it would have")
        self.state.load(found)
        self.directory.rewind_log(found.step)
        return found.step

    def _use_threads(self, found: checkpoint.Checkpoint | None) -> int:
        started_with = found.meta.get("setting", {}).get("threads") if found else None
        threads = int(self.threads or started_with or available_cores())
        torch.set_num_threads(threads)
        return threads

    def _save(self, step: int) -> Path:
        if not all(bool(torch.isfinite(p).all()) for p in self.net.parameters()):
            self._not_finite("a weight", step)
        path = self.state.save(self.directory.checkpoints, step)
        self.directory.prune(self.config.loop.keep)
        return path

    def _not_finite(self, what: str, step: int) -> NoReturn:
        last = checkpoint.find_all(self.directory.path)[-1]
        raise TrainingError(
            f"{what} is not finite at step {step}; the last checkpoint, {last}, is good. "
            "Start over with a lower optimizer.lr or a longer optimizer.warmup_steps, "
            "in another --out or with --fresh"
        )

    def _train(self, start: int) -> Result:
        loop = self.config.loop
        done = saved = start
        newest = checkpoint.find_all(self.directory.path)[-1]
        while done < loop.steps and not self._stop:
            loss, squared_error, lam = self._step(done)
            done += 1
            last = done == loop.steps
            if done % LOG_EVERY == 0 or last:
                self._report(done, loss, squared_error, lam)
            if loop.sample_every and (done % loop.sample_every == 0 or last):
                self._draw_samples(done)
            if done % loop.checkpoint_every == 0 or last:
                newest, saved = self._save(done), done
        if saved != done:
            newest = self._save(done)
        return Result(step=done, finished=done >= loop.steps, checkpoint=newest)

    def _step(self, step: int) -> tuple[Tensor, Tensor, float]:
        config = self.config
        indices = batch_indices(config.seed, step, config.loop.batch_size, len(self.source))
        torch.manual_seed(derive(config.seed, "step", step))
        batch = self.source.batch(indices)
        condition = {} if batch.label is None else {"label": batch.label.to(self.device)}
        terms = config.objective(self.net, batch.x0.to(self.device), condition, step)
        loss = terms.loss.mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(
                step,
                peak=config.optimizer.lr,
                steps=config.loop.steps,
                warmup_steps=config.optimizer.warmup_steps,
                decay=config.optimizer.decay,
            )
        self.optimizer.step()
        for ema in self.emas:
            ema.update(step)
        return loss.detach(), terms.squared_error.mean(), terms.lam

    def _report(self, done: int, loss: Tensor, squared_error: Tensor, lam: float) -> None:
        value = float(loss)
        if not math.isfinite(value):
            self._not_finite("the loss", done)
        speed = self._progress.per_second(done) * self.config.loop.batch_size
        status = f"loss {value:.4f}  λ {lam:.2f}  {speed:,.0f} images/s"
        self._progress.show("training", done, status)
        record = {"step": done, "loss": value, "squared_error": float(squared_error), "lam": lam}
        self.directory.log({**record, "images_per_s": round(speed, 1)})

    def _draw_samples(self, done: int) -> None:
        if self.source.spec.is_image:
            path = self.directory.path / "samples" / f"step-{done:08d}.png"
            draw_grid(path, self.net, self.emas, self.source.spec)

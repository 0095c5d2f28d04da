"""The training loop: one run from its first step to its last, whatever happens in between."""

from __future__ import annotations

import math
import platform
import signal
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from mmf_deploy import __version__, checkpoint, noise
from mmf_deploy.errors import ConfigError, TrainingError
from mmf_deploy.images import save_grid
from mmf_deploy.nn.build import build_network
from mmf_deploy.nn.sampler import Sampler

from .config import TrainConfig
from .data.base import Source
from .ema import EMA
from .order import batch_indices, derive
from .progress import TrainingProgress
from .run_directory import RunDirectory
from .schedules import learning_rate

LOG_EVERY = 10
# what may differ between a run and its resumption without changing a single weight
_COSMETIC = {"checkpoint_every", "sample_every", "keep"}


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
    """

    def __init__(self, config: TrainConfig, out: Path, device: str = "cpu") -> None:
        self.config = config
        self.directory = RunDirectory(out)
        self.device = torch.device(device)
        self._stop = False

    def run(self) -> Result:
        """Train until the last step or a SIGINT or SIGTERM, which saves first.

        Raises:
            ConfigError: the directory holds a run with another configuration.
            TrainingError: the loss is not finite, or another process trains here.
        """
        with self.directory.locked():
            self._build()
            start = self._resume()
            previous = {
                s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)
            }
            try:
                with TrainingProgress(
                    start, self.config.loop.steps, self.config.loop.batch_size
                ) as self._progress:
                    return self._train(start)
            finally:
                for number, handler in previous.items():
                    signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stop = True

    def _build(self) -> None:
        config = self.config
        self.source: Source = config.load_data()
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
        if found is None:
            self._save(0)
            return 0
        self._same_config(found)
        self._load(found)
        self.directory.rewind_log(found.step)
        return found.step

    def _same_config(self, found: checkpoint.Checkpoint) -> None:
        new, old = _flat(self.config.model_dump(mode="json")), _flat(found.config)
        changed = [
            f"{key} {old.get(key)!r} → {new.get(key)!r}"
            for key in sorted(new.keys() | old.keys())
            if new.get(key) != old.get(key) and key.rpartition(".")[2] not in _COSMETIC
        ]
        if changed:
            raise ConfigError(
                f"{self.directory.path} holds a run with another configuration "
                f"({'; '.join(changed[:3])}{' …' if len(changed) > 3 else ''}); "
                "give --out another directory, or --fresh to start it over"
            )

    def _load(self, found: checkpoint.Checkpoint) -> None:
        def tensors(name: str) -> dict[str, Tensor]:
            return {k: torch.from_numpy(v) for k, v in found.tensors(name).items()}

        self.net.load_state_dict(tensors("model"))
        for ema in self.emas:
            ema.load_state_dict(tensors(ema.name))
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors("optimizer").items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})

    def _save(self, step: int) -> Path:
        optimizer = {
            f"{index}.{key}": value
            for index, state in self.optimizer.state_dict()["state"].items()
            for key, value in state.items()
        }
        weights = {"model": self.net.state_dict(), "optimizer": optimizer}
        weights |= {ema.name: ema.state_dict() for ema in self.emas}
        path = checkpoint.write(
            self.directory.checkpoints,
            step=step,
            spec=self.source.spec,
            network=self.config.network.model_dump(mode="json"),
            weights={
                file: {name: value.detach().cpu().numpy() for name, value in tensors.items()}
                for file, tensors in weights.items()
            },
            config=self.config.model_dump(mode="json"),
            meta={
                "name": self.config.name,
                # every random number of step k derives from (seed, k): there is no other state
                "seed": self.config.seed,
                "versions": versions(),
            },
        )
        self.directory.prune(self.config.loop.keep)
        return path

    def _train(self, start: int) -> Result:
        loop = self.config.loop
        done, saved = start, start
        while done < loop.steps and not self._stop:
            loss, squared_error, lam = self._step(done)
            done += 1
            if done % LOG_EVERY == 0 or done == loop.steps:
                self._report(done, loss, squared_error, lam)
            if loop.sample_every and (done % loop.sample_every == 0 or done == loop.steps):
                self._draw_samples(done)
            if done % loop.checkpoint_every == 0 or done == loop.steps:
                self._save(done)
                saved = done
        if saved != done:
            self._save(done)
        newest = checkpoint.find_all(self.directory.path)[-1]
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
            raise TrainingError(
                f"the loss is {value} at step {done}; the last checkpoint is "
                f"{checkpoint.find_all(self.directory.path)[-1]}. "
                "Try a lower optimizer.lr or a longer optimizer.warmup_steps"
            )
        self._progress.show(done, value, lam)
        record = {"step": done, "loss": value, "squared_error": float(squared_error), "lam": lam}
        speed = round(self._progress.images_per_s(done), 1)
        self.directory.log({**record, "images_per_s": speed})

    def _draw_samples(self, done: int) -> None:
        spec = self.source.spec
        if not spec.is_image:
            return
        count = 10 * min(spec.classes, 10) if spec.conditional else 64
        x1 = torch.from_numpy(noise.gaussian_batch(range(count), spec.shape)).to(self.device)
        label = torch.arange(count, device=self.device) % spec.classes if spec.conditional else None
        images = sample_with(self.net, self.emas, x1, label)
        path = self.directory.path / "samples" / f"step-{done:08d}.png"
        save_grid(path, images.cpu().numpy(), columns=10 if spec.conditional else 8)


@torch.no_grad()
def sample_with(net: nn.Module, emas: list[EMA], x1: Tensor, label: Tensor | None) -> Tensor:
    """One-step images uint8 [B, H, W, C] of the slowest average."""
    training = net.training
    weights = max(emas, key=lambda e: e.decay).state_dict() if emas else dict(net.state_dict())

    def averaged(*inputs: Any) -> Tensor:
        return torch.as_tensor(torch.func.functional_call(net, weights, inputs))

    sampler = Sampler(_Functional(averaged)).to(x1.device)
    image: Tensor = sampler(x1, label)[1]
    net.train(training)
    return image


class _Functional(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self._function = function

    def forward(self, *inputs: Any) -> Tensor:
        return torch.as_tensor(self._function(*inputs))


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def versions() -> dict[str, str]:
    """Versions that decide the numbers of a run."""
    return {
        "mmf-deploy": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }

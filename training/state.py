"""What a checkpoint of a run holds, and whether a run may go on from it."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from mmf_deploy import __version__, checkpoint
from mmf_deploy.errors import ConfigError, MMFError

from .config import TrainConfig
from .learner import Learner
from .processes import Processes
from .recovery import Recovery

# what may differ between a run and its resumption without changing a single weight
_COSMETIC = {
    "loop.checkpoint_every",
    "loop.sample_every",
    "loop.keep",
    "loop.keep_every",
    "loop.tensorboard",
    "init_from",  # taken long ago
}
# where the same data may lie now
_MOVABLE = {"data.path", "data.root", "data.labels", "data.resident_mb", "data.download"}


@dataclass(frozen=True)
class RunState:
    """Everything that changes during a run. The step number stands for all random state:
    every random number of step k derives from (seed, k)."""

    config: TrainConfig
    learner: Learner
    record: dict[str, Any]

    def save(self, directory: Path, step: int, recovery: Recovery) -> Path:
        """Write a checkpoint after ``step`` steps; returns its directory."""
        learner = self.learner
        optimizer = {
            f"{index}.{key}": value
            for index, state in learner.optimizer.state_dict()["state"].items()
            for key, value in state.items()
        }
        weights = {"model": learner.net.state_dict(), "optimizer": optimizer}
        weights |= {ema.name: ema.state_dict() for ema in learner.emas}
        return checkpoint.write(
            directory,
            step=step,
            spec=learner.spec,
            network=self.config.network.model_dump(mode="json"),
            weights={
                file: {name: value.detach().cpu().numpy() for name, value in tensors.items()}
                for file, tensors in weights.items()
            },
            config=self.config.model_dump(mode="json"),
            meta={
                "name": self.config.name,
                **self.record,
                "recovery": recovery.record(),
                "seed": self.config.seed,
                "versions": versions(),
            },
        )

    def load(self, found: checkpoint.Checkpoint) -> None:
        """Continue from a checkpoint that ``save`` wrote."""
        self.learner.net.load_state_dict(_tensors(found, "model"))
        for ema in self.learner.emas:
            ema.load_state_dict(_tensors(found, ema.name))
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in _tensors(found, "optimizer").items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = value
        for number, parameter in enumerate(self.learner.net.parameters()):
            for key, value in state.get(number, {}).items():
                if value.shape == parameter.shape:  # in the memory format of its parameter
                    state[number][key] = torch.empty_like(parameter).copy_(value)
        groups = self.learner.optimizer.state_dict()["param_groups"]
        self.learner.optimizer.load_state_dict({"state": state, "param_groups": groups})


def setting(processes: Processes, threads: int) -> dict[str, Any]:
    """What, beside the configuration, decides the bits of a run."""
    return {
        "device": processes.device.type,
        "processes": processes.count,
        "threads": threads,
        "torch": torch.__version__,
    }


def changed_setting(found: checkpoint.Checkpoint, now: dict[str, Any]) -> list[str]:
    """What is set differently now than when the checkpoint was written, in words."""
    before = found.meta.get("setting", {})
    return [f"{k} was {before[k]}, is {v}" for k, v in now.items() if before.get(k, v) != v]


def _tensors(found: checkpoint.Checkpoint, name: str) -> dict[str, Tensor]:
    return {key: torch.from_numpy(value) for key, value in found.tensors(name).items()}


def refuse_another_config(config: TrainConfig, found: checkpoint.Checkpoint, run: Path) -> None:
    """A run goes on only under the configuration it was started with.

    Raises:
        ConfigError: names what differs.
    """
    if changed := another_run(config, found.config):
        raise ConfigError(
            f"{run} holds a run with another configuration "
            f"({'; '.join(changed[:3])}{' …' if len(changed) > 3 else ''}); "
            "give --out another directory, or --fresh to start it over"
        )


def another_run(config: TrainConfig, before: Mapping[str, Any]) -> list[str]:
    """What makes a run of ``config`` another one than that of an earlier configuration."""
    return [
        f"{key} {old!r} → {new!r}"
        for key, (old, new) in _differences(config, before).items()
        if key not in _COSMETIC | _MOVABLE
    ]


def moved(config: TrainConfig, found: checkpoint.Checkpoint) -> list[str]:
    """Where the data lies now, in words, if it lay elsewhere."""
    return [
        f"{key} was {old}, is {new}"
        for key, (old, new) in _differences(config, found.config).items()
        if key in _MOVABLE
    ]


def _differences(config: TrainConfig, before: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Old and new value of every key that is not the same, by its path."""
    with contextlib.suppress(MMFError, ValidationError):
        # keys that an older version did not have take their defaults
        before = TrainConfig.model_validate(before).model_dump(mode="json")
    new, old = _flat(config.model_dump(mode="json")), _flat(before)
    keys = sorted(new.keys() | old.keys())
    return {k: (old.get(k), new.get(k)) for k in keys if new.get(k) != old.get(k)}


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

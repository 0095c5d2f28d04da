"""Imported weights as a run: one checkpoint, without what only training needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmf_deploy import __version__, checkpoint, files
from mmf_deploy.checkpoint import Tensors
from mmf_deploy.errors import CheckpointError, ConfigError
from mmf_deploy.spec import SampleSpec

IMPORTED = "imported"  # the key of the configuration that marks such a run


@dataclass(frozen=True)
class Imported:
    """A network that came from a file.

    Attributes:
        weights: "model", and "ema-<decay>" for every average.
        source: where it came from, for the configuration: format, file, sha256, epoch.
        private: more of the same for meta.json alone, which no bundle repeats: paths of
            the machine it was trained on, for example.
        objective: name of the objective it was trained with.
        command: what imports it again, without ``--out``.
    """

    spec: SampleSpec
    network: dict[str, Any]
    weights: Mapping[str, Tensors]
    source: dict[str, Any]
    command: str
    step: int = 0
    objective: str = "unknown"
    private: dict[str, Any] | None = None


def refuse_to_overwrite(out: Path, force: bool) -> None:
    """Raise ConfigError if something is in the way that may not be replaced."""
    if not out.name or out.name == "..":
        raise ConfigError(f"--out {out}: give the run a name, for example runs/cifar10")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not force:
        raise ConfigError(f"{out} exists; choose another --out, or replace it with --force")
    try:
        imported = IMPORTED in checkpoint.read(out).config
    except CheckpointError:
        imported = False
    if not imported:
        raise ConfigError(f"{out} was not made by mmf import; --force replaces only what was")


def write_run(out: Path, imported: Imported) -> Path:
    """Write the run; replaces ``out``.

    Returns:
        the directory of its checkpoint.
    """
    with files.atomic_directory(out) as temporary:
        written = checkpoint.write(
            temporary / "checkpoints",
            step=imported.step,
            spec=imported.spec,
            network=imported.network,
            weights=imported.weights,
            config={
                "name": out.name,
                "network": imported.network,
                "objective": {"name": imported.objective},
                IMPORTED: imported.source,
            },
            meta={
                "name": out.name,
                "command": imported.command,
                IMPORTED: imported.source | (imported.private or {}),
                "versions": {"mmf-deploy": __version__, "torch": torch.__version__},
            },
        )
    return out / "checkpoints" / written.name

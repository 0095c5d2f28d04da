"""Checkpoint: what training leaves behind. Torch-free, pickle-free.

    runs/<name>/checkpoints/step-00010000/
        model.safetensors        the trained weights
        ema-<decay>.safetensors  one exponential moving average each
        optimizer.safetensors    optimiser state (absent in a checkpoint that is not for resuming)
        config.yaml              the whole configuration of the run
        meta.json                step, spec, network, seeds, versions, SHA-256 of every file

A checkpoint is written to a temporary sibling and renamed, so a kill at any moment
leaves the previous one whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import ValidationError

from mmf_deploy import files
from mmf_deploy.errors import CheckpointError, MMFError, require
from mmf_deploy.spec import SampleSpec

SCHEMA = 1
Tensors = dict[str, NDArray[Any]]
_STEP = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk whose files were all verified against their hashes.

    Attributes:
        path: its directory.
        step: optimiser steps done.
        spec: what one sample is.
        network: configuration of the network (``mmf_deploy.nn.build``).
        config: configuration of the whole run.
        meta: everything else in meta.json: seed, versions, the name of the recipe.
        file_hashes: SHA-256 of every file, by name.
    """

    path: Path
    step: int
    spec: SampleSpec
    network: dict[str, Any]
    config: dict[str, Any]
    meta: dict[str, Any]
    file_hashes: dict[str, str]

    @property
    def emas(self) -> list[str]:
        """Names of the averages, the slowest (largest decay) last."""
        names = [f.removesuffix(".safetensors") for f in self.file_hashes if f.startswith("ema-")]
        return sorted(names, key=lambda n: float(n.removeprefix("ema-")))

    def default_weights(self) -> str:
        """The weights to sample with: the slowest average, or the model where there is none."""
        return self.emas[-1] if self.emas else "model"

    def tensors(self, name: str | None = None) -> Tensors:
        """Read one weight file.

        Args:
            name: "model", "optimizer" or an average; ``default_weights()`` if not given.
        Raises:
            CheckpointError: the checkpoint has no such file.
        """
        file = self._file(name)
        loaded = require("safetensors.numpy", "train").load_file(self.path / file)
        return dict(loaded)

    def weights_hash(self, name: str | None = None) -> str:
        """SHA-256 of one weight file: what a bundle records as its source.

        Raises:
            CheckpointError: the checkpoint has no such file.
        """
        return self.file_hashes[self._file(name)]

    def _file(self, name: str | None) -> str:
        file = f"{name or self.default_weights()}.safetensors"
        if file not in self.file_hashes:
            ending = ".safetensors"
            have = [f.removesuffix(ending) for f in sorted(self.file_hashes) if f.endswith(ending)]
            raise CheckpointError(f"{self.path}: no weights {name!r}; it has {', '.join(have)}")
        return file


def write(
    directory: Path,
    *,
    step: int,
    spec: SampleSpec,
    network: Mapping[str, Any],
    weights: Mapping[str, Tensors],
    config: Mapping[str, Any],
    meta: Mapping[str, Any],
) -> Path:
    """Write a checkpoint atomically.

    Args:
        directory: the ``checkpoints`` folder of a run.
        weights: by file name without ending, for example ``model``, ``ema-0.999``, ``optimizer``.
    Returns:
        the directory of the new checkpoint.
    Raises:
        OSError: it cannot be written; nothing of it is left.
    """
    safetensors = require("safetensors.numpy", "train")
    target = step_path(directory, step)
    with files.atomic_directory(target) as temporary:
        for name, tensors in weights.items():
            arrays = {k: np.ascontiguousarray(v).reshape(v.shape) for k, v in tensors.items()}
            try:
                safetensors.save_file(arrays, temporary / f"{name}.safetensors")
            except require("safetensors", "train").SafetensorError as e:
                raise OSError(str(e)) from None
            # safetensors makes its files private; these are for whoever may read the folder
            (temporary / f"{name}.safetensors").chmod(0o644)
        (temporary / "config.yaml").write_text(yaml.safe_dump(dict(config), sort_keys=False))
        record = {
            "schema": SCHEMA,
            "step": step,
            "spec": spec.model_dump(mode="json"),
            "network": dict(network),
            **meta,
            "files": {f.name: files.sha256(f) for f in sorted(temporary.iterdir())},
        }
        (temporary / "meta.json").write_text(json.dumps(record, indent=1) + "\n")
    return target


def step_path(directory: Path, step: int) -> Path:
    """Where the checkpoint of a step lies in the ``checkpoints`` folder of a run."""
    return directory / f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint's directory.

    Raises:
        CheckpointError: it is not named like one.
    """
    if not (found := _STEP.fullmatch(path.name)):
        raise CheckpointError(f"{path}: expected a directory step-00000000")
    return int(found[1])


def find_all(run: Path) -> list[Path]:
    """The checkpoint directories of a run (or of its ``checkpoints`` folder), oldest first."""
    folder = run / "checkpoints" if (run / "checkpoints").is_dir() else run
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if _STEP.fullmatch(p.name) and p.is_dir())


def resolve(path: Path) -> Path:
    """The checkpoint meant by ``path``: itself, or the newest one of a run directory.

    Raises:
        CheckpointError: there is no checkpoint at or below the path.
    """
    if (path / "meta.json").is_file():
        return path
    if not path.exists():
        raise CheckpointError(
            f"{path}: no such checkpoint or run; train one first: mmf-train digits"
        )
    found = find_all(path)
    if not found:
        raise CheckpointError(
            f"{path}: neither a checkpoint (no meta.json) nor a run (no checkpoints/step-*)"
        )
    return found[-1]


def read(path: Path) -> Checkpoint:
    """Read and verify a checkpoint, or the newest one of a run.

    Raises:
        CheckpointError: it is missing, of another schema, or a file differs from its hash.
    """
    path = resolve(path)
    try:
        record = dict(json.loads((path / "meta.json").read_text()))
        schema = record.pop("schema")
        if schema != SCHEMA:
            raise CheckpointError(
                f"{path}: checkpoint schema {schema}, this version reads {SCHEMA}"
            )
        hashes: dict[str, str] = dict(record.pop("files"))
        _verify(path, hashes)
        return Checkpoint(
            path=path,
            step=int(record.pop("step")),
            spec=SampleSpec.model_validate(record.pop("spec")),
            network=record.pop("network"),
            config=yaml.safe_load((path / "config.yaml").read_text()),
            meta=record,
            file_hashes=hashes,
        )
    except MMFError:
        raise
    except (OSError, KeyError, TypeError, ValueError, ValidationError, yaml.YAMLError) as e:
        raise CheckpointError(f"{path / 'meta.json'}: not a readable checkpoint ({e!r})") from e


def _verify(path: Path, hashes: Mapping[str, str]) -> None:
    for name, expected in hashes.items():
        file = path / name
        if not files.stays_inside(path, name):
            raise CheckpointError(f"{path}: file name {name!r} leaves the checkpoint's directory")
        if not file.is_file():
            raise CheckpointError(f"{file}: missing; expected a file with SHA-256 {expected}")
        found = files.sha256(file)
        if found != expected:
            raise CheckpointError(
                f"{file}: corrupt: expected SHA-256 {expected}, found {found}; "
                "use another checkpoint"
            )

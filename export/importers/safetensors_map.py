"""Weights under any names, by way of a map, into a network of ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmf_deploy import files
from mmf_deploy.errors import CheckpointError
from mmf_deploy.nn.build import build_network
from mmf_deploy.spec import SampleSpec

from .key_map import Renaming, Rule, rename
from .weights_file import Fit, as_arrays, fit, read_tensors, shapes
from .write_run import Imported


@dataclass(frozen=True)
class Plan:
    """How the entries of a file become those of a network.

    Attributes:
        tensors: of the file, by their names in it.
        constants: entries of the network that the file may lack, with their values.
    """

    path: Path
    spec: SampleSpec
    network: dict[str, Any]
    tensors: dict[str, Tensor]
    renaming: Renaming
    fit: Fit
    constants: dict[str, Tensor]

    def table(self) -> list[tuple[str, str, str, str]]:
        """(name in the file, shape, name in the network, remark) of every entry."""
        rows = []
        for old, tensor in self.tensors.items():
            new = self.renaming.names[old]
            rows.append((old, _size(tensor.shape), new or "", self._remark(new)))
        missing = ((k, _size(s)) for k, s in self.fit.missing.items())
        return rows + [("", size, name, "missing") for name, size in missing]

    def _remark(self, name: str | None) -> str:
        if name is None:
            return "dropped"
        if name in self.fit.unused:
            return "unused"
        if name in self.fit.shapes:
            return f"expected {_size(self.fit.shapes[name][1])}"
        return ""

    def check(self) -> None:
        """Raise CheckpointError unless the network gets exactly what it needs."""
        if not self.fit.perfect:
            raise CheckpointError(
                f"{self.path}: does not fit the network: {self.fit.summary()}; rename or drop "
                "entries with --map, and look at the result with --dry-run"
            )


def plan(path: Path, rules: list[Rule], network: dict[str, Any], spec: SampleSpec) -> Plan:
    """Read a weight file and see what would become of it.

    Raises:
        CheckpointError: it cannot be read.
        ConfigError: the network's configuration or the map is not valid.
    """
    with torch.device("meta"):
        blank = build_network(spec, network)
    tensors = read_tensors(path)
    renaming = rename(tensors, rules)
    found = {new: tuple(tensors[old].shape) for new, old in renaming.sources().items()}
    buffers = {name for name, _ in blank.named_buffers()}
    result = fit(shapes(blank.state_dict()), found, optional=buffers)
    constants = _constants(spec, network, buffers - found.keys())
    return Plan(path, spec, network, tensors, renaming, result, constants)


def imported(plan: Plan, command: str) -> Imported:
    """The network with the weights of the file.

    Args:
        command: what imports it again, without ``--out``.
    Raises:
        CheckpointError: they do not fit, or are not finite numbers.
    """
    plan.check()
    renamed = {new: plan.tensors[old] for new, old in plan.renaming.sources().items()}
    weights = as_arrays(plan.path, renamed) | as_arrays(plan.path, plan.constants)
    return Imported(
        spec=plan.spec,
        network=plan.network,
        weights={"model": weights},
        source={
            "format": plan.path.suffix.removeprefix("."),
            "file": plan.path.name,
            "sha256": files.sha256(plan.path),
        },
        command=command,
    )


def _constants(spec: SampleSpec, network: dict[str, Any], names: set[str]) -> dict[str, Tensor]:
    # resampling filters: the same in every network, so not every file has them
    if not names:
        return {}
    state = build_network(spec, network).state_dict()
    return {name: state[name] for name in names}


def _size(shape: tuple[int, ...] | torch.Size) -> str:
    return "×".join(str(n) for n in shape) or "scalar"

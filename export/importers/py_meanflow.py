"""Checkpoints of py-meanflow, the public PyTorch code of MeanFlow.

A file of torch.save with ``model`` (the network under ``net.``, its averages under
``net_ema.``, ``net_ema1.`` …, and ``num_updates``), ``optimizer``, ``lr_schedule``,
``epoch`` and ``args``, an argparse.Namespace.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, int64

from mmf_deploy import files
from mmf_deploy.errors import CheckpointError, ConfigError
from mmf_deploy.nn.config import UNetConfig
from mmf_deploy.spec import SampleSpec

from . import torch_file
from .unet_shapes import infer_unet
from .weights_file import Shape, as_arrays, few, fit, shapes
from .write_run import Imported

DECAYS = (0.9999, 0.99995, 0.9996)  # of net_ema, net_ema1, net_ema2 where args does not say
ALL = "all"
_GROUP = re.compile(r"(net(?:_ema\d{0,3})?)\.(.+)")


@dataclass(frozen=True)
class Wanted:
    """What a user expects of a file; None where nothing.

    Attributes:
        ema: decay of the average to take, or "all".
        image_size: side in pixels.
        classes: 0 for an unconditional network.
    """

    ema: str = ALL
    image_size: int | None = None
    classes: int | None = None


def read_py_meanflow(path: Path, wanted: Wanted) -> Imported:
    """Read such a checkpoint; nothing that is pickled in it is run.

    Raises:
        CheckpointError: not such a file, or names, shapes and ``args`` that do not fit each
            other or what is wanted; says which entry, what was found and what was expected.
        ConfigError: the file has no such average.
    """
    content = torch_file.read(path)
    groups = _groups(path, content)
    found = {name: shapes(tensors) for name, tensors in groups.items()}
    spec, network = infer_unet(found["net"], f"{path}: net.")
    _same_as_net(path, found)
    args = _args(path, content)
    _check(path, _facts(spec, network), args)
    _check_wanted(path, spec, wanted)
    decays = _decays(path, [name for name in groups if name != "net"], args)
    chosen = _chosen(decays, wanted.ema)
    network["dropout"] = _dropout(path, args)
    option = [] if wanted.ema == ALL else ["--ema", wanted.ema]
    epoch = content.get("epoch")
    return Imported(
        spec=spec,
        # as a recipe would say it, every key
        network=UNetConfig.model_validate(network).model_dump(mode="json"),
        weights={
            file: as_arrays(path, groups[name], f"{name}.")
            for name, file in {"net": "model", **chosen}.items()
        },
        source={
            "format": "py-meanflow",
            "file": path.name,
            "sha256": files.sha256(path),
            "epoch": epoch if type(epoch) is int else None,
        },
        private={"args": torch_file.plain(args)},
        command=shlex.join(["mmf", "import", "py-meanflow", path.name, *option]),
        step=_updates(content["model"]),
        objective="meanflow",
    )


def _groups(path: Path, content: Any) -> dict[str, dict[str, Tensor]]:
    """The network and its averages, by the names in the file."""
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict):
        have = f"keys {few([str(k) for k in content])}" if isinstance(content, dict) else "no keys"
        raise CheckpointError(
            f"{path}: found {have}, expected a py-meanflow checkpoint with model, epoch and args; "
            "plain weights come in by: mmf import safetensors"
        )
    groups: dict[str, dict[str, Tensor]] = {}
    for key, value in model.items():
        match = _GROUP.fullmatch(key) if isinstance(key, str) else None
        if match and isinstance(value, Tensor):
            groups.setdefault(match[1], {})[match[2]] = value
        elif key != "num_updates":
            raise CheckpointError(
                f"{path}: model.{torch_file.printable(str(key))}: found a {type(value).__name__}, "
                "expected weights under net., net_ema., net_ema1. …, and num_updates"
            )
    if "net" not in groups:
        raise CheckpointError(
            f"{path}: model: found nothing under net., expected the network there"
        )
    return groups


def _same_as_net(path: Path, found: Mapping[str, Mapping[str, Shape]]) -> None:
    for name, entries in found.items():
        lines = [f"{name}.{line}" for line in fit(found["net"], entries).differences()]
        if lines:
            raise CheckpointError(f"{path}: {few(lines, '; ')}; the network itself is under net.")


def _args(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    args = content.get("args")
    if args is None or type(args) is dict:
        return args or {}
    if type(args) is not argparse.Namespace:
        raise CheckpointError(f"{path}: args: found {type(args).__name__}, expected a Namespace")
    return vars(args)


def _facts(spec: SampleSpec, network: Mapping[str, Any]) -> dict[str, Any]:
    """What args must say of this network, where it says anything."""
    channels, side, _ = spec.shape
    names = ("model_channels", "channel_mult", "num_blocks", "attn_resolutions", "augment_dim")
    return {
        "arch": "unet",
        "use_edm_aug": network["augment_dim"] > 0,
        "img_resolution": side,
        "image_size": side,
        "in_channels": channels,
        "out_channels": channels,
        "resolutions": [side >> level for level in range(len(network["channel_mult"]))],
        **{name: network[name] for name in names},
    }


def _check(path: Path, facts: Mapping[str, Any], args: Mapping[str, Any]) -> None:
    lines = []
    for name, expected in facts.items():
        found = torch_file.plain(args.get(name))
        if name == "attn_resolutions" and isinstance(found, list):
            # resolutions that the network does not have mean nothing
            found = sorted((r for r in found if r in facts["resolutions"]), reverse=True)
        if found is not None and found != expected:
            lines.append(f"args.{name}: found {found}, expected {expected} of these weights")
    if lines:
        raise CheckpointError(f"{path}: {few(lines, '; ')}")


def _check_wanted(path: Path, spec: SampleSpec, wanted: Wanted) -> None:
    side = spec.shape[1]
    if wanted.image_size not in (None, side):
        raise CheckpointError(
            f"{path}: net.enc.{side}x{side}_conv: found images of {side} pixels, "
            f"expected --image-size {wanted.image_size}"
        )
    if wanted.classes not in (None, spec.classes):
        found = f"{spec.classes} classes" if spec.conditional else "none (unconditional)"
        raise CheckpointError(
            f"{path}: net.map_label.weight: found {found}, expected --classes {wanted.classes}"
        )


def _decays(path: Path, names: list[str], args: Mapping[str, Any]) -> dict[str, float]:
    """The decay of every average in the file."""
    first, others = args.get("ema_decay", DECAYS[0]), args.get("ema_decays", list(DECAYS[1:]))
    said = [first, *others] if isinstance(others, list | tuple) else [first, others]
    decays: dict[str, float] = {}
    for name in names:
        place = int(name.removeprefix("net_ema") or 0)
        decay = said[place] if place < len(said) else None
        entry = f"args.ema_decays[{place - 1}]" if place else "args.ema_decay"
        if not isinstance(decay, float) or not 0.0 < decay < 1.0 or decay in decays.values():
            raise CheckpointError(
                f"{path}: {entry}: found {torch_file.plain(decay)}, expected the decay of {name}, "
                "between 0 and 1 and of no other average"
            )
        decays[name] = decay
    return decays


def _chosen(decays: Mapping[str, float], ema: str) -> dict[str, str]:
    """Names in the file of the averages to take, and the names of their files here."""
    have = ", ".join(str(d) for d in sorted(decays.values())) or "none"
    try:
        wanted = None if ema == ALL else float(ema)
    except ValueError:
        raise ConfigError(f"--ema {ema}: expected {ALL} or a decay; there are {have}") from None
    chosen = {n: f"ema-{d}" for n, d in decays.items() if wanted in (None, d)}
    if wanted is not None and not chosen:
        raise ConfigError(f"--ema {ema}: no such average in the file; there are {have}")
    return chosen


def _dropout(path: Path, args: Mapping[str, Any]) -> float:
    dropout = args.get("dropout", 0.0)
    if isinstance(dropout, int | float) and 0.0 <= dropout < 1.0:
        return float(dropout)
    raise CheckpointError(
        f"{path}: args.dropout: found {torch_file.plain(dropout)}, expected 0 … 1, 1 excluded"
    )


def _updates(model: Mapping[str, Any]) -> int:
    """Optimiser steps done; 0 where the file does not say."""
    updates = model.get("num_updates")
    if isinstance(updates, Tensor) and updates.dtype == int64 and updates.numel() == 1:
        return 0 if updates.is_meta else max(0, int(updates))
    return 0

"""The configuration of a UNet, read off the names and shapes of its weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from mmf_deploy.errors import CheckpointError, ConfigError, SpecError
from mmf_deploy.nn.build import build_network
from mmf_deploy.spec import SampleSpec

from .weights_file import Shape, few, fit, shapes

_FIRST = re.compile(r"enc\.(\d{1,5})x\1_conv\.weight")
_BLOCK = re.compile(r"enc\.(\d{1,5})x\1_block(\d{1,4})\.conv0\.weight")


def infer_unet(found: Mapping[str, Shape], where: str) -> tuple[SampleSpec, dict[str, Any]]:
    """The sample and the ``network:`` configuration that these weights are of.

    Args:
        found: name and shape of every entry.
        where: what comes before a name in messages.
    Raises:
        CheckpointError: names and shapes that no such UNet has; says what was found and
            what was expected of the entry.
    """
    side, first = _first_convolution(found, where)
    base, channels = first[0], first[1]
    blocks = [(int(m[1]), int(m[2]), k) for k in found if (m := _BLOCK.fullmatch(k))]
    sides = sorted({s for s, _, _ in blocks}, reverse=True)
    if sides != [side >> level for level in range(len(sides))] or not sides:
        raise CheckpointError(
            f"{where}enc.*_block*: found resolutions {sides}, expected {side} and its halves"
        )
    config = {
        "type": "unet",
        "model_channels": base,
        "channel_mult": [
            _multiple(found, f"enc.{s}x{s}_block0.conv0.weight", base, where) for s in sides
        ],
        "num_blocks": sum(1 for s, _, _ in blocks if s == side),
        "attn_resolutions": [s for s in sides if f"enc.{s}x{s}_block0.qkv.weight" in found],
        "augment_dim": _columns(found, "map_augment.weight", where),
    }
    try:
        spec = SampleSpec(shape=(channels, side, side), classes=_classes(found, base, where))
        with torch.device("meta"):
            expected = shapes(build_network(spec, config).state_dict())
    except (SpecError, ConfigError) as e:
        raise CheckpointError(f"{where}*: {e}") from e
    result = fit(expected, found)
    if not result.perfect:
        lines = [where + line for line in result.differences()]
        said = ", ".join(f"{k} {v}" for k, v in config.items() if k != "type")
        raise CheckpointError(f"{few(lines, '; ')}, as the other entries are of {said}")
    return spec, config


def _first_convolution(found: Mapping[str, Shape], where: str) -> tuple[int, Shape]:
    convolutions = [(int(m[1]), s) for k, s in found.items() if (m := _FIRST.fullmatch(k))]
    if len(convolutions) != 1:
        raise CheckpointError(
            f"{where}enc.NxN_conv.weight: found {len(convolutions)} such entries, expected 1: the "
            "first convolution, at full resolution"
        )
    side, shape = convolutions[0]
    if len(shape) != 4 or shape[1] not in (1, 3):
        raise CheckpointError(
            f"{where}enc.{side}x{side}_conv.weight: found {list(shape)}, "
            "expected [channels, 1 or 3, 3, 3]"
        )
    return side, shape


def _multiple(found: Mapping[str, Shape], name: str, base: int, where: str) -> int:
    shape = found.get(name, ())
    if not shape or not base or shape[0] % base:
        raise CheckpointError(
            f"{where}{name}: found {list(shape)}, expected a multiple of {base} output channels"
        )
    return shape[0] // base


def _columns(found: Mapping[str, Shape], name: str, where: str) -> int:
    shape = found.get(name, (0, 0))
    if len(shape) != 2:
        raise CheckpointError(f"{where}{name}: found {list(shape)}, expected two dimensions")
    return shape[1]


def _classes(found: Mapping[str, Shape], base: int, where: str) -> int:
    shape = found.get("map_label.weight")
    if shape is None:
        return 0
    if len(shape) != 2 or shape[0] < 2 or shape[1] != 4 * base:
        raise CheckpointError(
            f"{where}map_label.weight: found {list(shape)}, expected [classes + 1, {4 * base}]: "
            "a row a class, and the null label last"
        )
    return shape[0] - 1

"""What the axes of an array mean: images in one of several layouts, or vectors."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import numpy as np

from mmf_deploy.errors import ConfigError

from .npy_files import Header

Layout = Literal["NHW", "NHWC", "NCHW", "CHW-flat", "vectors"]


def understood(header: Header, layout: str, path: Path) -> tuple[Layout, tuple[int, ...]]:
    """What an array is, and the shape of one sample."""
    shape, kind = header.shape, header.dtype
    if len(shape) >= 2 and min(shape) > 0:
        if kind.kind == "f" and len(shape) == 2:
            return "vectors", shape[1:]
        if kind == np.uint8 and len(shape) == 4:
            return _image_layout(shape, layout, path)
        if kind == np.uint8 and len(shape) == 3:
            return "NHW", (1, *shape[1:])
        side = math.isqrt(shape[1] // 3)
        if kind == np.uint8 and len(shape) == 2 and 3 * side * side == shape[1]:
            return "CHW-flat", (3, side, side)
    raise ConfigError(
        f"{path}: {describe(header)}; expected images, uint8 [N, H, W, C], [N, C, H, W], [N, H, W] "
        "or [N, 3·S·S] of 0 … 255, or vectors, float [N, D]"
    )


def _image_layout(
    shape: tuple[int, ...], layout: str, path: Path
) -> tuple[Layout, tuple[int, ...]]:
    _, first, middle, last = shape
    if layout == "auto" and (first in (1, 3)) and (last in (1, 3)):
        raise ConfigError(
            f"{path}: uint8 {list(shape)} may be [N, C, H, W] or [N, H, W, C]; "
            "say which with data.layout=NCHW or data.layout=NHWC"
        )
    if layout != "NCHW" and last in (1, 3):
        return "NHWC", (last, first, middle)
    if layout != "NHWC" and first in (1, 3):
        return "NCHW", (first, middle, last)
    raise ConfigError(
        f"{path}: uint8 {list(shape)}, data.layout {layout}: expected 1 or 3 channels "
        "as the second or the last axis"
    )


def describe(header: Header) -> str:
    """For example ``uint8 [60000, 28, 28]``."""
    return f"{header.dtype} {list(header.shape)}"

"""Images at the boundary: [-1, 1] floats to bytes, encodings, grids.

Inside, images are float32 [B, C, H, W] in [-1, 1]; at every boundary they are
uint8 [B, H, W, C].
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmf_deploy.errors import ShapeError
from mmf_deploy.files import write_atomic

GAP = 2
"""Pixels between the images of a grid, and around them."""

MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


def to_uint8(sample: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Float samples to bytes, exactly as the exported graph does it.

    Args:
        sample: float32 [B, C, H, W]; values outside [-1, 1] are clamped.
    Returns:
        uint8 [B, H, W, C]; round half to even of 127.5 (x + 1).
    """
    levels = np.rint((np.clip(sample, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)
    return np.ascontiguousarray(levels.transpose(0, 2, 3, 1))


def to_pil(image: NDArray[np.uint8]) -> Image.Image:
    """One uint8 [H, W, C] image, C = 1 (grey) or 3 (RGB), as a Pillow image."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise ShapeError(
            f"image of shape {image.shape}, {image.dtype}: expected uint8 [H, W, 1 or 3]"
        )
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def encode(image: NDArray[np.uint8], kind: str = "png", quality: int = 90) -> bytes:
    """Encode one image.

    Args:
        image: uint8 [H, W, C].
        kind: "png" (zlib level 1: encoding must not cost more than generating), "jpeg", "webp".
        quality: 1 … 100, for jpeg and webp.
    Raises:
        ShapeError: the array is not an image, or the kind is unknown.
    """
    if kind not in MEDIA_TYPES:
        raise ShapeError(f"image format {kind!r}: expected one of {', '.join(MEDIA_TYPES)}")
    options: dict[str, Any] = {"compress_level": 1} if kind == "png" else {"quality": quality}
    out = io.BytesIO()
    to_pil(image).save(out, format=kind, **options)
    return out.getvalue()


def grid(
    images: NDArray[np.uint8], columns: int | None = None, scale: int = 1
) -> NDArray[np.uint8]:
    """Arrange images in a grid on a white ground.

    Args:
        images: uint8 [B, H, W, C].
        columns: images a row; the square root of B, rounded up, if not given.
        scale: each pixel becomes a scale × scale block.
    Returns:
        uint8 [rows, columns, C] pixels, ``GAP`` pixels apart.
    Raises:
        ShapeError: no images, or not an array of images.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) == 0:
        raise ShapeError(
            f"images of shape {images.shape}, {images.dtype}: expected uint8 [B, H, W, C]"
        )
    count, height, width, channels = images.shape
    height, width = scale * height, scale * width
    columns = columns or _columns(count)
    out = np.full((*grid_size(count, height, width, columns), channels), 255, np.uint8)
    for k, image in enumerate(images):
        top = GAP + (k // columns) * (height + GAP)
        left = GAP + (k % columns) * (width + GAP)
        # one at a time: all of them enlarged would take the room of the grid once more
        out[top : top + height, left : left + width] = enlarged(image, scale)
    return out


def grid_size(count: int, height: int, width: int, columns: int | None = None) -> tuple[int, int]:
    """Height and width of a grid of ``count`` images, in pixels."""
    columns = columns or _columns(count)
    rows = math.ceil(count / columns)
    return rows * (height + GAP) + GAP, columns * (width + GAP) + GAP


def _columns(count: int) -> int:
    return math.ceil(math.sqrt(count))


def enlarged(image: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    """uint8 [H, W, C] with each pixel as a scale × scale block."""
    return image if scale == 1 else image.repeat(scale, axis=0).repeat(scale, axis=1)


def display_scale(height: int, target: int = 64) -> int:
    """The whole factor that brings a small image to about ``target`` pixels for the eye."""
    return max(1, round(target / height))


def save_grid(path: Path, images: NDArray[np.uint8], columns: int | None = None) -> None:
    """Write a PNG grid of uint8 [B, H, W, C] images, enlarged when they are tiny."""
    write_atomic(path, encode(grid(images, columns, display_scale(images.shape[1]))))

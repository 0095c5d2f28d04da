"""One encoded image to bytes of a fixed size: the only place that decodes, crops and resizes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Encoded = Path | bytes
"""An image file: its path or its content."""

Pixels = NDArray[np.uint8]

GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")
ORIENTATION = 0x0112


class UnreadableImageError(Exception):
    """An image that cannot be decoded; whoever asked leaves it out and counts it."""


class Header(NamedTuple):
    """What is known of an image without decoding it, as it will be once upright.

    Attributes:
        height, width: in pixels.
        colour: whether it is stored in colour, be every pixel of it grey.
    """

    height: int
    width: int
    colour: bool


def read_header(encoded: Encoded) -> Header:
    """Size and kind of an image.

    Raises:
        UnreadableImageError: not an image that Pillow knows.
    """
    try:
        with _open(encoded) as image:
            return _header(image)
    except Exception as e:  # Pillow's plugins raise anything on a broken file
        raise UnreadableImageError(f"{type(e).__name__}: {e}") from None


def decode(encoded: Encoded, size: int | None, channels: int | None) -> tuple[Pixels, Header]:
    """Decode an image, crop it to its central square and resize it.

    EXIF orientation is applied, what is transparent becomes white, 16 bits become 8.

    Args:
        size: side of the square in pixels; None keeps the image whole, at its own size.
        channels: 1 or 3; None keeps grey grey and colour colour.
    Returns:
        uint8 [H, W, C], and what the image was.
    Raises:
        UnreadableImageError: it cannot be decoded.
    """
    try:
        with _open(encoded) as image:
            header = _header(image)
            if size is not None:
                # a JPEG decodes straight to a fraction of its size; twice the goal is kept
                # for the filter
                image.draft(None, (2 * size, 2 * size))
            mode = "L" if channels == 1 or (channels is None and not header.colour) else "RGB"
            upright = ImageOps.exif_transpose(_eight_bits(image))
            pixels = to_pixels(upright, size, mode)
            if size is None:
                header = Header(pixels.shape[0], pixels.shape[1], header.colour)
            return pixels, header
    except Exception as e:  # Pillow's plugins raise anything on a broken file
        raise UnreadableImageError(f"{type(e).__name__}: {e}") from None


def to_pixels(image: Image.Image, size: int | None, mode: str) -> Pixels:
    """An upright 8-bit image as uint8 [H, W, C], cropped and resized to ``size``, mode L or RGB."""
    if image.has_transparency_data:
        image = _on_white(image)
    if image.mode != mode:
        image = image.convert(mode)
    if size is not None and image.size != (size, size):
        image = crop_and_resize(image, size)
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def crop_and_resize(image: Image.Image, size: int) -> Image.Image:
    """The central square of an image at size × size pixels: Lanczos down, bicubic up."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    kernel = Image.Resampling.LANCZOS if side > size else Image.Resampling.BICUBIC
    square = image.crop((left, top, left + side, top + side))
    return square.resize((size, size), kernel)


def _open(encoded: Encoded) -> Image.Image:
    return Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded)


def _header(image: Image.Image) -> Header:
    width, height = image.size
    # a PNG would be decoded to look for EXIF behind its pixels
    known = image.format != "PNG" or "exif" in image.info
    if known and image.getexif().get(ORIENTATION, 1) >= 5:
        width, height = height, width
    return Header(height, width, image.mode not in GREY_MODES)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits as 8; Pillow's own conversion would clip it."""
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range")
    if not image.mode.startswith("I"):
        return image
    exif = image.getexif()
    levels = np.clip(np.asarray(image, np.int64), 0, 65535)
    eight = Image.fromarray(np.round(levels / 257).astype(np.uint8))
    eight.getexif()[ORIENTATION] = exif.get(ORIENTATION, 1)
    return eight


def _on_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)

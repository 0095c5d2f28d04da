"""Formats of replies: what a client may ask for, and how one image becomes bytes."""

from __future__ import annotations

import base64
import enum
from typing import Any

from numpy.typing import NDArray

from mmf_deploy import images
from mmf_deploy.errors import RequestError
from mmf_deploy.spec import SampleSpec

from .made import Encoding
from .samples import Item

MAX_SIZE = 1024
"""Largest height or width, in pixels, that images are enlarged to."""

MAX_PIXELS = 2**26
"""Most pixels of one picture or animation, all frames counted: it is in memory as a whole."""


class ImageFormat(enum.StrEnum):
    """How one image is encoded."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"


LONGEST_SIDE = {
    ImageFormat.PNG: 65_535,
    ImageFormat.JPEG: 65_500,
    ImageFormat.WEBP: 16_383,
}
"""Most pixels a side that the encoders take."""


class Format(enum.StrEnum):
    """What a reply is."""

    JSON = "json"
    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"
    NPY = "npy"
    RAW = "raw"
    MULTIPART = "multipart"
    EVENTS = "events"


MEDIA_TYPES = {
    Format.JSON: "application/json",
    Format.PNG: "image/png",
    Format.JPEG: "image/jpeg",
    Format.WEBP: "image/webp",
    Format.NPY: "application/x-npy",
    Format.RAW: "application/octet-stream",
    Format.MULTIPART: "multipart/mixed",
    Format.EVENTS: "text/event-stream",
}
IMAGE_FORMATS = {Format(f.value): f for f in ImageFormat}
ARRAYS = (Format.NPY, Format.RAW)
OF_VECTORS = (Format.JSON, *ARRAYS, Format.EVENTS)


def formats(spec: SampleSpec) -> tuple[Format, ...]:
    """What samples of this kind can be sent as, the default first."""
    return tuple(Format) if spec.is_image else OF_VECTORS


def scale_for(size: int | None, spec: SampleSpec) -> int:
    """The whole factor that brings images to a height of ``size`` pixels.

    Raises:
        RequestError: it is no multiple of the model's own size, or too large.
    """
    if size is None:
        return 1
    if not spec.is_image:
        raise RequestError("size: this model makes vectors; leave size out", field="size")
    _, height, width = spec.shape
    scale, rest = divmod(size, height)
    if rest or scale < 1 or scale * max(height, width) > MAX_SIZE:
        largest = MAX_SIZE // max(height, width) * height
        raise RequestError(
            f"size: {size} is not on offer; expected a multiple of {height}, "
            f"{height} … {max(height, largest)}",
            field="size",
        )
    return scale


def check_array_size(size: int | None, form: Format) -> None:
    """Pass unless an array is asked for in some size.

    Raises:
        RequestError: arrays have the model's own.
    """
    if size is not None and form in ARRAYS:
        raise RequestError("size: an array has the model's own size; leave size out", field="size")


def check_grid(
    count: int, spec: SampleSpec, kind: ImageFormat, scale: int, columns: int | None = None
) -> None:
    """Pass if ``count`` images fit in one picture; a single one is the picture itself.

    Raises:
        RequestError: its format holds no such picture, or it has more than ``MAX_PIXELS``.
    """
    height, width = _enlarged_size(spec, scale)
    if count > 1:
        height, width = images.grid_size(count, height, width, columns)
    _check_room(kind, height, width)


def check_animation(frames: int, spec: SampleSpec, scale: int) -> None:
    """Pass if frames fit in one animated WebP.

    Raises:
        RequestError: the format holds no such frame, or all have more than ``MAX_PIXELS``.
    """
    _check_room(ImageFormat.WEBP, *_enlarged_size(spec, scale), frames)


def _enlarged_size(spec: SampleSpec, scale: int) -> tuple[int, int]:
    _, height, width = spec.shape
    return scale * height, scale * width


def _check_room(kind: ImageFormat, height: int, width: int, frames: int = 1) -> None:
    longest = LONGEST_SIDE[kind]
    if max(height, width) <= longest and frames * height * width <= MAX_PIXELS:
        return
    times = f"{frames} × " if frames > 1 else ""
    raise RequestError(
        f"size: one {kind} with all of it has {times}{width} × {height} pixels; at most {longest} "
        f"a side and {MAX_PIXELS} altogether; ask for a smaller size, for fewer, or for json or "
        "multipart, where each image is a file of its own",
        field="size",
    )


def image_encoding(kind: ImageFormat, scale: int = 1, quality: int = 90) -> Encoding[bytes]:
    """Encodes each image as a file of its own.

    Args:
        quality: 1 … 100, for jpeg and webp.
    """

    def encode(item: Item, value: NDArray[Any]) -> bytes:
        return images.encode(images.enlarged(value, scale), str(kind), quality)

    return Encoding((kind, scale), encode)


def base64_encoding(kind: ImageFormat, scale: int = 1, quality: int = 90) -> Encoding[str]:
    """Encodes each image as a file, in base64."""
    file = image_encoding(kind, scale, quality)

    def encode(item: Item, value: NDArray[Any]) -> str:
        return base64.b64encode(file.encode(item, value)).decode("ascii")

    return Encoding(file.kind, encode)

"""Replies of the native routes: JSON, one image, an array, parts or events."""

from __future__ import annotations

import io
import json
import secrets
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmf_deploy import images
from mmf_deploy.spec import SampleSpec

from .formats import MEDIA_TYPES, Format, ImageFormat
from .image_urls import image_path
from .made import Made
from .model import Lane, Loaded
from .samples import Item

VARY = {"Vary": "Accept"}


def fields_of(
    item: Item,
    loaded: Loaded,
    lane: Lane,
    kind: ImageFormat,
    size: int | None,
    base64_image: str | None = None,
) -> dict[str, Any]:
    """What JSON says of one image.

    Args:
        kind, size: how it is encoded, and its height in pixels if that was asked for.
    """
    spec = loaded.spec
    fields: dict[str, Any] = {"seed": item.seed}
    if spec.conditional:
        fields["label"] = item.label
    if spec.guided:
        fields["guidance"] = item.guidance
    if item.toward is not None:
        fields["fraction"] = item.toward.fraction
    elif spec.is_image:
        fields["url"] = image_path(loaded, lane, item, kind, size)
    if base64_image is not None:
        fields[f"{kind}_base64"] = base64_image
    return fields


def json_body(made: Made[Any], fields: list[dict[str, Any]], **more: Any) -> bytes:
    """The JSON reply around the fields of every image."""
    timing = made.timing
    content = {
        "model": made.loaded.name,
        "bundle": made.loaded.digest,
        "variant": made.variant,
        "images" if made.loaded.spec.is_image else "samples": fields,
        **more,
        "timing_ms": {
            "queue": round(timing.queue_ms, 3),
            "infer": round(timing.infer_ms, 3),
            "encode": round(timing.encode_ms, 3),
        },
    }
    return dumps(content)


def dumps(content: Any) -> bytes:
    """Compact JSON."""
    return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def npy_body(values: NDArray[Any]) -> bytes:
    """An array as a .npy file."""
    out = io.BytesIO()
    np.save(out, values, allow_pickle=False)
    return out.getvalue()


def raw_body(values: NDArray[Any]) -> tuple[bytes, dict[str, str]]:
    """The bytes of an array, row by row and little-endian, and what headers say of them."""
    headers = {
        "X-MMF-Dtype": values.dtype.name,
        "X-MMF-Shape": ",".join(str(size) for size in values.shape),
    }
    return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes(), headers


def grid_of(values: NDArray[np.uint8], kind: ImageFormat, scale: int, quality: int) -> bytes:
    """Images [n, H, W, C] as one, in a grid; a single image as it is."""
    if len(values) == 1:
        return images.encode(images.enlarged(values[0], scale), str(kind), quality)
    return images.encode(images.grid(values, scale=scale), str(kind), quality)


def animation_of(values: NDArray[np.uint8], scale: int, fps: float, quality: int) -> bytes:
    """Images [n, H, W, C] as the frames of one animated WebP that runs forever."""
    first, *others = (_Frame(value, scale) for value in values)
    out = io.BytesIO()
    first.convert("RGB").save(
        out,
        format="webp",
        save_all=True,
        append_images=others,
        duration=max(1, round(1000 / fps)),
        loop=0,
        quality=quality,
    )
    return out.getvalue()


class _Frame:
    """A frame as Pillow sees it, which asks for its pixels when it is encoded and no sooner.

    Pillow makes a list of whatever it gets, so that a generator would be of no use.
    """

    mode, n_frames, has_transparency_data = "unmade", 1, False

    def __init__(self, value: NDArray[np.uint8], scale: int) -> None:
        self._value, self._scale = value, scale

    def seek(self, frame: int) -> None:
        """There is but one."""

    def convert(self, mode: str) -> Image.Image:
        """The enlarged frame."""
        return images.to_pil(images.enlarged(self._value, self._scale)).convert(mode)


def strip_of(values: NDArray[np.uint8], kind: ImageFormat, scale: int, quality: int) -> bytes:
    """Images [n, H, W, C] side by side."""
    strip = images.grid(values, columns=len(values), scale=scale)
    return images.encode(strip, str(kind), quality)


def multipart_body(
    parts: Iterable[tuple[Item, bytes]], spec: SampleSpec, kind: ImageFormat
) -> tuple[bytes, str]:
    """Every encoded image as a part of its own, and the Content-Type (RFC 2046, 5.1)."""
    boundary = secrets.token_hex(16)
    out = bytearray()
    for item, encoded in parts:
        headers = {
            "Content-Type": MEDIA_TYPES[Format(kind)],
            "Content-Length": str(len(encoded)),
            "X-MMF-Seed": str(item.seed),
        }
        if spec.conditional:
            headers["X-MMF-Label"] = str(item.label)
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        out += f"--{boundary}\r\n{lines}\r\n".encode() + encoded + b"\r\n"
    out += f"--{boundary}--\r\n".encode()
    return bytes(out), f"multipart/mixed; boundary={boundary}"


def identity(made: Made[Any]) -> dict[str, str]:
    """What JSON says in its fields, for replies that have only headers."""
    headers = {"X-MMF-Seeds": _joined(made, lambda i: str(i.seed))}
    way = made.items[0].toward
    if way is not None:
        headers["X-MMF-Seeds"] = f"{made.items[0].seed},{way.seed}"
    if made.loaded.spec.conditional:
        headers["X-MMF-Labels"] = _joined(made, lambda i: str(i.label))
    if made.loaded.spec.guided:
        headers["X-MMF-Guidance"] = _joined(made, lambda i: repr(i.guidance))
    return headers


def _joined(made: Made[Any], text: Callable[[Item], str]) -> str:
    return ",".join(text(item) for item in made.items)

"""URLs of single images. What is behind one never changes: everything that decides it is in it."""

from __future__ import annotations

import hashlib
from urllib.parse import urlencode

from .formats import ImageFormat
from .model import Lane, Loaded
from .samples import Item

SUFFIXES = {"png": ImageFormat.PNG, "jpg": ImageFormat.JPEG, "webp": ImageFormat.WEBP}
NO_LABEL = "-"


def image_path(
    loaded: Loaded,
    lane: Lane,
    item: Item,
    kind: ImageFormat = ImageFormat.PNG,
    size: int | None = None,
) -> str:
    """The path and query of one image, for example ``/v1/images/0123…/7/42.png``.

    The variant is named unless it is the bundle's first; so are guidance, and a size other than
    the model's own.
    """
    label = str(item.label) if loaded.spec.conditional else NO_LABEL
    suffix = next(name for name, k in SUFFIXES.items() if k is kind)
    query: dict[str, object] = {}
    if loaded.spec.guided:
        query["guidance"] = repr(item.guidance)
    if lane.engine.variant.name != loaded.bundle.variant().name:
        query["variant"] = lane.engine.variant.name
    if size is not None and size != loaded.spec.shape[1]:
        query["size"] = size
    path = f"/v1/images/{loaded.digest}/{label}/{item.seed}.{suffix}"
    return f"{path}?{urlencode(query)}" if query else path


def etag(path: str) -> str:
    """The entity tag of what is behind a path of ``image_path``."""
    return '"' + hashlib.sha256(path.encode()).hexdigest()[:32] + '"'

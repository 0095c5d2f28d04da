"""Replies of POST /v1/generate: JSON with PNGs, one PNG, or the bare array."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmf_deploy import images
from mmf_deploy.spec import SampleSpec

from .samples import Item, Sample

JSON = "application/json"
PNG = "image/png"
NPY = "application/x-npy"


@dataclass(frozen=True)
class Made:
    """Everything a reply is made of.

    Attributes:
        bundle: digest of the bundle that made it.
        queue_ms: from the request's arrival to the start of its first batch.
        infer_ms: from there to the end of its last batch.
    """

    bundle: str
    variant: str
    spec: SampleSpec
    items: Sequence[Item]
    samples: Sequence[Sample]
    queue_ms: float
    infer_ms: float


@dataclass(frozen=True)
class Reply:
    """An encoded reply."""

    body: bytes
    media_type: str
    headers: dict[str, str]


def offers(spec: SampleSpec) -> tuple[str, ...]:
    """The media types that samples of this kind can be sent as, the default first."""
    return (JSON, PNG, NPY) if spec.is_image else (JSON, NPY)


def render(made: Made, media_type: str) -> Reply:
    """Encode a reply; meant for the encoding pool."""
    started = time.perf_counter()
    headers = {"Vary": "Accept"}
    if media_type == JSON:
        fields = [_fields(made, k) for k in range(len(made.items))]
        encode_ms = _since_ms(started)
        body = _json_body(made, fields, encode_ms)
    else:
        body = _png(made) if media_type == PNG else _npy(made)
        encode_ms = _since_ms(started)
        headers |= _identity(made)
    headers["Server-Timing"] = (
        f"queue;dur={made.queue_ms:.3f}, infer;dur={made.infer_ms:.3f}, encode;dur={encode_ms:.3f}"
    )
    return Reply(body, media_type, headers)


def _fields(made: Made, k: int) -> dict[str, Any]:
    item, value = made.items[k], made.samples[k].value
    fields: dict[str, Any] = {"seed": item.seed}
    if made.spec.conditional:
        fields["label"] = item.label
    if made.spec.guided:
        fields["guidance"] = item.guidance
    if made.spec.is_image:
        fields["png_base64"] = base64.b64encode(images.encode(value)).decode("ascii")
    else:
        fields["sample"] = value.tolist()
    return fields


def _json_body(made: Made, fields: list[dict[str, Any]], encode_ms: float) -> bytes:
    timing = {"queue": made.queue_ms, "infer": made.infer_ms, "encode": encode_ms}
    content = {
        "bundle": made.bundle,
        "variant": made.variant,
        "images" if made.spec.is_image else "samples": fields,
        "timing_ms": {name: round(ms, 3) for name, ms in timing.items()},
    }
    return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def _png(made: Made) -> bytes:
    if len(made.samples) == 1:
        return images.encode(made.samples[0].value)
    return images.encode(images.grid(np.stack([s.value for s in made.samples])))


def _npy(made: Made) -> bytes:
    out = io.BytesIO()
    np.save(out, np.stack([s.value for s in made.samples]), allow_pickle=False)
    return out.getvalue()


def _identity(made: Made) -> dict[str, str]:
    """What JSON says in its fields, for replies that have only headers."""
    headers = {
        "X-MMF-Bundle": made.bundle,
        "X-MMF-Variant": made.variant,
        "X-MMF-Seeds": ",".join(str(i.seed) for i in made.items),
    }
    if made.spec.conditional:
        headers["X-MMF-Labels"] = ",".join(str(i.label) for i in made.items)
    if made.spec.guided:
        headers["X-MMF-Guidance"] = ",".join(f"{i.guidance:g}" for i in made.items)
    return headers


def _since_ms(started: float) -> float:
    return (time.perf_counter() - started) * 1000

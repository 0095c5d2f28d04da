"""Compressed bodies of the Open Inference Protocol V2: gzip and deflate, both ways, bounded."""

from __future__ import annotations

import zlib
from typing import Literal

from mmf_deploy.errors import RequestError

from .first_error import short
from .kserve_schema import malformed

Encoding = Literal["gzip", "deflate"]

_WBITS: dict[str, int] = {"gzip": 31, "deflate": 15}  # "deflate" is the zlib format


def decompress(body: bytes, encoding: str | None, max_bytes: int) -> bytes:
    """Undo a request's Content-Encoding; never makes more than ``max_bytes``.

    Raises:
        RequestError: 413 if there would be more, 400 if the encoding or the stream is wrong.
    """
    name = (encoding or "identity").strip().lower()
    if name in ("identity", ""):
        return body
    wbits = _WBITS.get(name.removeprefix("x-"))
    if wbits is None:
        raise malformed(f"Content-Encoding {short(encoding)}; expected gzip or deflate")
    stream = zlib.decompressobj(wbits)
    try:
        plain = stream.decompress(body, max_bytes + 1)
    except zlib.error:
        raise malformed(f"the body is not {name}, as its Content-Encoding says") from None
    if len(plain) > max_bytes:
        raise RequestError(
            f"the body exceeds {max_bytes} bytes when decompressed",
            status=413,
            code="body_too_large",
        )
    if not stream.eof or stream.unused_data:
        what = "goes on after" if stream.eof else "stops before"
        raise malformed(f"the body {what} the end of its {name} stream")
    return plain


def wanted_encoding(accept_encoding: str | None) -> Encoding | None:
    """The compression that a client asks for: only one that it names alone.

    A list, such as "gzip, deflate, br", is what HTTP libraries send by default; images hardly
    shrink, and compressing them costs more than a one-step model takes to make them.
    """
    wanted = (accept_encoding or "").strip().lower()
    return "gzip" if wanted == "gzip" else "deflate" if wanted == "deflate" else None


def compress(content: bytes, encoding: Encoding) -> bytes:
    """Apply a reply's Content-Encoding, quickly rather than well."""
    stream = zlib.compressobj(1, zlib.DEFLATED, _WBITS[encoding])
    return stream.compress(content) + stream.flush()

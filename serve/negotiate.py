"""Content negotiation: which of the offered media types a client wants (RFC 9110, 12.5.1)."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request

from mmf_deploy.errors import RequestError

from .formats import MEDIA_TYPES, Format


def chosen_format(asked: Format | None, request: Request, offers: tuple[Format, ...]) -> Format:
    """The format of a reply: what the body asks for, else what the Accept header does.

    Raises:
        RequestError: 422 or 406, it is not on offer.
    """
    if asked is None:
        media_types = [MEDIA_TYPES[f] for f in offers]
        return offers[media_types.index(negotiate(request.headers.get("accept"), media_types))]
    if asked not in offers:
        raise RequestError(
            f"format: {asked} is not on offer here; expected one of {', '.join(offers)}",
            field="format",
        )
    return asked


def negotiate(accept: str | None, offers: Sequence[str]) -> str:
    """Choose the media type of the reply.

    Args:
        accept: the Accept header; None and an empty one accept everything.
        offers: what can be sent, the preferred one first.
    Raises:
        RequestError: 406, nothing on offer is acceptable.
    """
    if accept is None or not accept.strip():
        return offers[0]
    ranges = [_parse(part) for part in accept.split(",")]
    best = max(offers, key=lambda offer: _quality(offer, ranges))
    if _quality(best, ranges) <= 0:
        raise RequestError(
            f"Accept: none of it is on offer; this replies with {', '.join(offers)}",
            field="Accept",
            status=406,
            code="not_acceptable",
        )
    return best


def _parse(part: str) -> tuple[str, float]:
    media, *parameters = part.lower().split(";")
    quality = 1.0
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                quality = float(value)
            except ValueError:
                quality = 0.0
    return media.strip(), quality


def _quality(offer: str, ranges: Sequence[tuple[str, float]]) -> float:
    """Quality of an offer by the most specific range that covers it; 0 if none does."""
    asked = dict(ranges)
    for pattern in (offer, offer.partition("/")[0] + "/*", "*/*"):
        if pattern in asked:
            return asked[pattern]
    return 0.0

"""GET /v1/images/{bundle}/{label}/{seed}.png: one image, for ever the same behind its URL."""

from __future__ import annotations

import re
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from mmf_deploy.errors import RequestError
from mmf_deploy.noise import MAX_SEED

from ..formats import MEDIA_TYPES, Format, image_encoding, scale_for
from ..image_urls import NO_LABEL, SUFFIXES, etag, image_path
from ..model import Lane, Loaded
from ..resolve import class_of, guidance_of
from ..samples import Item
from ..service import Service, Work
from .documented import replies

IMMUTABLE = "public, max-age=31536000, immutable"
_NUMBER = re.compile(r"[0-9]{1,19}", re.ASCII)


def router(service: Service) -> APIRouter:
    """The route of a service."""
    routes = APIRouter(prefix="/v1", tags=["images"])

    async def image(
        request: Request,
        bundle: str,
        label: str,
        file: str,
        guidance: float | None = None,
        variant: str | None = None,
        size: int | None = None,
    ) -> Response:
        """One image by bundle, class (`-` if it has none) and seed; may be cached forever."""
        loaded = service.find(bundle)
        if loaded is None:
            raise _missing(f"no bundle {bundle[:64]!r} is served here; see /v1/model")
        seed, kind = _file(file)
        lane = _lane(loaded, variant)
        item = Item(seed, _label(label, loaded), guidance_of(guidance, loaded.spec))
        path = image_path(loaded, lane, item, kind, size)
        if variant is None and "variant=" in path:
            return RedirectResponse(path, 307, {"Cache-Control": "no-store"})
        headers = {"Cache-Control": IMMUTABLE, "ETag": etag(path), "X-MMF-Bundle": loaded.digest}
        if _has(request, headers["ETag"]):
            return Response(status_code=304, headers=headers)
        encoding = image_encoding(kind, scale_for(size, loaded.spec))
        work = Work([item], lane.engine.variant.steps)
        made = await service.generate(request, loaded, work, encoding)
        headers |= made.headers()
        return Response(made.encoded[0], headers=headers, media_type=MEDIA_TYPES[Format(kind)])

    path = "/images/{bundle}/{label}/{file}"
    routes.head(path, include_in_schema=False)(image)
    routes.get(path, responses=_documented())(image)
    return routes


def _documented() -> dict[int | str, dict[str, Any]]:
    documented: dict[int | str, dict[str, Any]] = {
        **replies(Format.PNG, Format.JPEG, Format.WEBP),
        304: {"description": "The client has it already (If-None-Match)."},
        307: {"description": "To the URL that names the variant which is served."},
        404: {"description": "That bundle, class or kind of file is not served here."},
    }
    for status in (400, 406, 413):
        documented.pop(status)
    return documented


def _missing(message: str) -> RequestError:
    return RequestError(message, status=404, code="not_found")


def _file(file: str) -> tuple[int, Any]:
    seed, _, suffix = file.partition(".")
    if suffix not in SUFFIXES:
        raise _missing(f"no such file {file[:64]!r}; expected SEED.{' or SEED.'.join(SUFFIXES)}")
    if not _NUMBER.fullmatch(seed) or int(seed) > MAX_SEED:
        raise RequestError(
            f"seed: {seed[:40]!r} is not a seed; expected 0 … {MAX_SEED}", field="seed"
        )
    return int(seed), SUFFIXES[suffix]


def _label(label: str, loaded: Loaded) -> int:
    if not loaded.spec.is_image:
        raise _missing("this model makes vectors; they have no image")
    if not loaded.spec.conditional:
        if label != NO_LABEL:
            raise _missing(f"this model has no classes; write {NO_LABEL!r} for the label")
        return 0
    known = loaded.spec.class_names
    number = label not in known and _NUMBER.fullmatch(label)
    return class_of(int(label) if number else label, loaded.spec, "label")


def _lane(loaded: Loaded, variant: str | None) -> Lane:
    if variant is None:
        return loaded.main
    for lane in loaded.lanes.values():
        if lane.engine.variant.name == variant:
            return lane
    have = ", ".join(lane.engine.variant.name for lane in loaded.lanes.values())
    raise _missing(f"variant {variant[:64]!r} is not served here; {have} is")


def _has(request: Request, tag: str) -> bool:
    asked = request.headers.get("if-none-match", "")
    tags = [t.strip().removeprefix("W/") for t in asked.split(",")]
    return tag in tags or "*" in tags

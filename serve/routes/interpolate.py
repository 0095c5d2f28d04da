"""POST /v1/interpolate: from one seed to another."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from mmf_deploy.errors import RequestError

from ..formats import (
    ARRAYS,
    IMAGE_FORMATS,
    MEDIA_TYPES,
    Format,
    base64_encoding,
    check_animation,
    check_array_size,
    check_grid,
    image_encoding,
    scale_for,
)
from ..generation import array_reply, reply_of, work_of
from ..made import Made
from ..model import Loaded
from ..negotiate import chosen_format
from ..render import animation_of, fields_of, json_body, multipart_body, strip_of
from ..resolve import resolve_path
from ..schema import InterpolateRequest, parse
from ..service import Service
from .documented import body_of, replies

FORMATS = (Format.WEBP, Format.PNG, Format.JPEG, Format.JSON, *ARRAYS, Format.MULTIPART)


def router(service: Service) -> APIRouter:
    """The route of a service."""
    routes = APIRouter(prefix="/v1", tags=["generate"])

    @routes.post(
        "/interpolate", openapi_extra=body_of(InterpolateRequest), responses=replies(*FORMATS)
    )
    async def interpolate(request: Request) -> Response:
        """The way from one seed to another: an animated WebP, a strip, or the frames."""
        body = parse(await request.body(), InterpolateRequest)
        return await _interpolate(service, request, service.model(body.model).loaded, body)

    return routes


async def _interpolate(
    service: Service, request: Request, loaded: Loaded, body: InterpolateRequest
) -> Response:
    if not loaded.spec.is_image:
        raise RequestError("model: it makes vectors; only images are interpolated", field="model")
    form = chosen_format(body.format, request, FORMATS)
    check_array_size(body.size, form)
    scale = scale_for(body.size, loaded.spec)
    items = resolve_path(body, loaded.spec, service.limits.request_images)
    if form is Format.WEBP:
        check_animation(len(items), loaded.spec, scale)
    elif form in IMAGE_FORMATS:
        check_grid(len(items), loaded.spec, IMAGE_FORMATS[form], scale, columns=len(items))
    work, kind = work_of(body, items), body.image_format
    if form is Format.MULTIPART:
        encoding = image_encoding(kind, scale, body.quality)
        files = await service.generate(request, loaded, work, encoding)
        parts = zip(items, files.encoded, strict=True)
        return reply_of(files, *multipart_body(parts, loaded.spec, kind))
    if form is Format.JSON:
        made = await service.generate(
            request, loaded, work, base64_encoding(kind, scale, body.quality)
        )
        lane = loaded.lane(body.steps)
        fields = [
            fields_of(item, loaded, lane, kind, body.size, text)
            for item, text in zip(items, made.encoded, strict=True)
        ]
        return reply_of(made, json_body(made, fields), "application/json")
    arrays: Made[Any] = await service.generate(request, loaded, work)
    if form in ARRAYS:
        return array_reply(arrays, arrays.values, form)
    if form is Format.WEBP:
        content = await service.encoder.run(
            lambda: animation_of(arrays.values, scale, body.fps, body.quality)
        )
    else:
        content = await service.encoder.run(
            lambda: strip_of(arrays.values, IMAGE_FORMATS[form], scale, body.quality)
        )
    return reply_of(arrays, content, MEDIA_TYPES[form])

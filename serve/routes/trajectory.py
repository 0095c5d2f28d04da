"""POST /v1/trajectory: from noise to one image, step by step."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from numpy.typing import NDArray
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
from ..made import Encoding, Made
from ..model import Lane, Loaded
from ..negotiate import chosen_format
from ..render import animation_of, fields_of, json_body, multipart_body, strip_of
from ..resolve import resolve_trajectory
from ..samples import Item
from ..schema import TrajectoryRequest, parse
from ..service import Service
from .documented import body_of, replies

FORMATS = (Format.PNG, Format.JPEG, Format.WEBP, Format.JSON, *ARRAYS, Format.MULTIPART)


def router(service: Service) -> APIRouter:
    """The route of a service."""
    routes = APIRouter(prefix="/v1", tags=["generate"])

    @routes.post(
        "/trajectory", openapi_extra=body_of(TrajectoryRequest), responses=replies(*FORMATS)
    )
    async def trajectory(request: Request) -> Response:
        """From noise to one image: a strip of every step, an animated WebP, or the points."""
        body = parse(await request.body(), TrajectoryRequest)
        return await _trajectory(service, request, service.model(body.model).loaded, body)

    return routes


async def _trajectory(
    service: Service, request: Request, loaded: Loaded, body: TrajectoryRequest
) -> Response:
    spec = loaded.spec
    if not spec.is_image:
        raise RequestError("model: it makes vectors; only images have a strip", field="model")
    form = chosen_format(body.format, request, FORMATS)
    check_array_size(body.size, form)
    scale = scale_for(body.size, spec)
    lane = loaded.trajectory_lane(body.steps)
    item = resolve_trajectory(body, spec)
    points = lane.engine.variant.steps + 1
    if form is Format.WEBP:
        check_animation(points, spec, scale)
    elif form in IMAGE_FORMATS:
        check_grid(points, spec, IMAGE_FORMATS[form], scale, columns=points)
    work = work_of(body, [item], trajectory=True)
    if form in ARRAYS:
        array: Made[Any] = await service.generate(request, loaded, work)
        return array_reply(array, array.values[0], form)
    encoding = _encoding(form, body, scale, points)
    made = await service.generate(request, loaded, work, encoding)
    encoded = made.encoded[0]
    if form is Format.MULTIPART:
        parts = [(item, point) for point in encoded]
        return reply_of(made, *multipart_body(parts, spec, body.image_format))
    if form is Format.JSON:
        fields = _fields(encoded, item, loaded, lane, body)
        return reply_of(made, json_body(made, fields), MEDIA_TYPES[form])
    return reply_of(made, encoded, MEDIA_TYPES[form])


def _encoding(form: Format, body: TrajectoryRequest, scale: int, points: int) -> Encoding[Any]:
    """Encodes a trajectory [K + 1, H, W, C]: as one file, or as a list of one a point."""
    of_image: dict[Format, Encoding[Any]] = {
        Format.JSON: base64_encoding(body.image_format, scale, body.quality),
        Format.MULTIPART: image_encoding(body.image_format, scale, body.quality),
    }

    def encode(item: Item, values: NDArray[Any]) -> Any:
        if form in of_image:
            return [of_image[form].encode(item, value) for value in values]
        if form is Format.WEBP:
            return animation_of(values, scale, body.fps, body.quality)
        return strip_of(values, IMAGE_FORMATS[form], scale, body.quality)

    return Encoding((form, body.image_format, scale, points), encode)


def _fields(
    encoded: list[str], item: Item, loaded: Loaded, lane: Lane, body: TrajectoryRequest
) -> list[dict[str, Any]]:
    """What JSON says of every point; the last one is the image, which has an address."""
    about = [
        {"step": step, **fields_of(item, loaded, lane, body.image_format, body.size, text)}
        for step, text in enumerate(encoded)
    ]
    for fields in about[:-1]:
        del fields["url"]
    return about

"""OpenAI's images protocol: POST /v1/images/generations, GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mmf_deploy.bundle import MANIFEST
from mmf_deploy.errors import RequestError

from ..events import EventStream, event
from ..formats import ImageFormat, base64_encoding
from ..front import key_of
from ..image_urls import image_path
from ..made import Encoding, Piece
from ..model import Loaded
from ..openai_prompt import prompt_for
from ..openai_replies import ErrorReply, ImagesReply, ModelList, ServedModel
from ..openai_schema import ImagesRequest, bad_requests, parse, resolve, scale_of
from ..render import dumps
from ..samples import Item, Priority
from ..service import Service, Work

DEFAULT_QUALITY = 90
COMPLETED = "image_generation.completed"

# no tokens go in or out
_USAGE = {
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}

# the body is read raw, so that its errors are ours and the Content-Type does not matter;
# the documentation is told of it by hand
_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": ImagesRequest.model_json_schema()}},
    }
}


def _errors(**why: str) -> dict[int | str, dict[str, Any]]:
    return {
        int(status.lstrip("_")): {"model": ErrorReply, "description": description}
        for status, description in why.items()
    }


_LISTING_ERRORS = _errors(_401="A key is needed, and none that is known was given.")
_ERRORS = _LISTING_ERRORS | _errors(
    _400="The body is not JSON, or a parameter is wrong; the error names it.",
    _403="This key is not for that model.",
    _404="No such model.",
    _413="The body is too large.",
    _429="The budget of this key is used up (see Retry-After).",
    _500="The engine failed, or the service did; its log says why.",
    _503="Overloaded (see Retry-After), starting or shutting down.",
)
_MODELS: dict[int | str, dict[str, Any]] = {200: {"model": ModelList}}
_MODEL: dict[int | str, dict[str, Any]] = {200: {"model": ServedModel}}
_NO_MODEL = _LISTING_ERRORS | _errors(_404="No such model.")
_IMAGES: dict[int | str, dict[str, Any]] = {
    200: {
        "model": ImagesReply,
        "description": "The images; events with `stream`.",
        "content": {"text/event-stream": {}},
    }
}


def router(service: Service) -> APIRouter:
    """The routes of OpenAI's protocol of a service."""
    routes = APIRouter(prefix="/v1", tags=["openai"])
    _add_images(routes, service)
    _add_models(routes, service)
    return routes


def _add_images(routes: APIRouter, service: Service) -> None:
    @routes.post("/images/generations/", include_in_schema=False)
    @routes.post(
        "/images/generations",
        openapi_extra=_BODY,
        responses=_IMAGES | _ERRORS,
        response_class=JSONResponse,
    )
    async def generate(request: Request) -> Response:
        """Generate images; the prompt chooses the class that it names."""
        body = parse(await request.body())
        # the body is here: from now on nothing waits between choosing a bundle and its queue
        loaded = service.model(body.model).loaded
        with bad_requests():
            generation = _Generation(service, request, loaded, body)
            if body.stream:
                return generation.events()
            if body.response_format == "url":
                return generation.urls()
            return await generation.images()


def _add_models(routes: APIRouter, service: Service) -> None:
    written: dict[str, int] = {}  # by digest, as another bundle may take its place on disk

    def served(name: str, loaded: Loaded) -> dict[str, Any]:
        if loaded.digest not in written:
            written[loaded.digest] = _written(loaded)
        return {
            "id": name,
            "object": "model",
            "created": written[loaded.digest],
            "owned_by": "mmf-deploy",
            "bundle": loaded.digest,
        }

    @routes.get("/models/", include_in_schema=False)
    @routes.get("/models", responses=_MODELS | _LISTING_ERRORS)
    async def models() -> Response:
        """What is served, the default first."""
        data = [served(name, model.loaded) for name, model in service.models.items()]
        return JSONResponse({"object": "list", "data": data})

    @routes.get("/models/{name}", responses=_MODEL | _NO_MODEL)
    async def model(name: str) -> Response:
        """One of them."""
        return JSONResponse(served(name, service.model(name).loaded))


def _written(loaded: Loaded) -> int:
    """When a bundle was written, seconds since 1970; now, if it is no longer on disk."""
    try:
        return int((loaded.bundle.path / MANIFEST).stat().st_mtime)
    except OSError:
        return int(time.time())


@dataclass
class _Generation:
    """One request to /v1/images/generations."""

    service: Service
    request: Request
    loaded: Loaded
    body: ImagesRequest

    def __post_init__(self) -> None:
        body, spec = self.body, self.loaded.spec
        self.items = resolve(body, spec, self.service.limits.request_images)
        self.scale = scale_of(body.size, spec)
        self.lane = self.loaded.lane(body.steps)
        self.kind = ImageFormat(body.output_format or ImageFormat.PNG)
        _, self.height, self.width = (self.scale * side for side in spec.shape)

    def _work(self) -> Work:
        deadline_ms = self.body.deadline_ms
        return Work(
            self.items,
            self.body.steps,
            Priority(self.body.priority or Priority.NORMAL),
            None if deadline_ms is None else deadline_ms / 1000,
        )

    def _encoding(self) -> Encoding[str]:
        quality = self.body.output_compression
        # to the encoders 1 is the lowest quality there is
        return base64_encoding(
            self.kind, self.scale, DEFAULT_QUALITY if quality is None else max(1, quality)
        )

    def _fields(self, item: Item) -> dict[str, Any]:
        spec = self.loaded.spec
        fields: dict[str, Any] = {"seed": item.seed}
        if spec.conditional:
            fields |= {
                "revised_prompt": prompt_for(item.label, spec),
                "class_label": item.label,
            }
        if spec.guided:
            fields["guidance_scale"] = item.guidance
        return fields

    def _about(self) -> dict[str, Any]:
        return {
            "background": "opaque",
            "output_format": str(self.kind),
            "size": f"{self.width}x{self.height}",
            "model": self.loaded.name,
            "bundle": self.loaded.digest,
            "variant": self.lane.engine.variant.name,
        }

    def _headers(self) -> dict[str, str]:
        return {
            "X-MMF-Model": self.loaded.name,
            "X-MMF-Bundle": self.loaded.digest,
            "X-MMF-Variant": self.lane.engine.variant.name,
        }

    def _reply(self, data: list[dict[str, Any]], headers: dict[str, str]) -> Response:
        content = {"created": int(time.time()), **self._about(), "data": data}
        return Response(dumps(content), headers=headers, media_type="application/json")

    async def images(self) -> Response:
        """Every image, in the reply."""
        made = await self.service.generate(
            self.request, self.loaded, self._work(), self._encoding()
        )
        data = [
            {"b64_json": text, **self._fields(item)}
            for item, text in zip(self.items, made.encoded, strict=True)
        ]
        return self._reply(data, made.headers())

    def urls(self) -> Response:
        """Where the images are; each is made when it is fetched, as its address says all of it.

        Raises:
            RequestError: the service is not ready, or the key is not for this model.
        """
        key = key_of(self.request)
        if key is not None:
            key.allow(self.loaded.name)  # elsewhere its budget is asked, which sees to that
        if not self.loaded.ready:
            raise RequestError(f"not ready: {self.service.state}", status=503, code="not_ready")
        base = str(self.request.base_url).rstrip("/")
        data = [
            {
                "url": base + image_path(self.loaded, self.lane, item, self.kind, self.height),
                **self._fields(item),
            }
            for item in self.items
        ]
        return self._reply(data, self._headers())

    def events(self) -> Response:
        """Every image as an event, as soon as it is ready."""
        stream = self.service.stream(self.request, self.loaded, self._work(), self._encoding())

        async def events() -> AsyncGenerator[bytes, None]:
            with bad_requests():
                async with aclosing(stream) as pieces:
                    async for piece in pieces:
                        if piece.index == 0:
                            reply.headers["Server-Timing"] = piece.timing.header()
                        yield event(COMPLETED, self._completed(piece))

        reply = EventStream(events(), self._headers())
        return reply

    def _completed(self, piece: Piece[str]) -> dict[str, Any]:
        return {
            "type": COMPLETED,
            "b64_json": piece.encoded,
            "created_at": int(time.time()),
            "quality": "auto",
            "usage": _USAGE,
            **self._about(),
            **self._fields(piece.item),
            "index": piece.index,
        }

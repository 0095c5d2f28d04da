"""POST /v1/generate: from a body that was understood to its reply."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from mmf_deploy.errors import RequestError

from .events import EventStream, event
from .formats import (
    ARRAYS,
    IMAGE_FORMATS,
    MEDIA_TYPES,
    Format,
    ImageFormat,
    base64_encoding,
    check_array_size,
    check_grid,
    formats,
    image_encoding,
    scale_for,
)
from .made import Encoding, Made
from .model import Loaded
from .negotiate import chosen_format
from .render import (
    VARY,
    fields_of,
    grid_of,
    identity,
    json_body,
    multipart_body,
    npy_body,
    raw_body,
)
from .resolve import resolve
from .samples import Item
from .schema import Asked, GenerateRequest
from .service import Service, Work

VECTOR: Encoding[list[float]] = Encoding("list", lambda item, value: value.tolist())


def work_of(body: Asked, items: list[Item], trajectory: bool = False) -> Work:
    """What a native request asks the service for."""
    deadline_s = None if body.deadline_ms is None else body.deadline_ms / 1000
    return Work(items, body.steps, body.priority, deadline_s, trajectory)


def reply_of(made: Made[Any], content: bytes, media_type: str) -> Response:
    """A reply with everything that its headers say."""
    headers = {**VARY, **made.headers()}
    if media_type != MEDIA_TYPES[Format.JSON]:
        headers |= identity(made)
    return Response(content, headers=headers, media_type=media_type)


def array_reply(made: Made[Any], values: NDArray[Any], form: Format) -> Response:
    """A reply that is an array, in one of ``ARRAYS``."""
    if form is Format.NPY:
        return reply_of(made, npy_body(values), MEDIA_TYPES[form])
    content, about = raw_body(values)
    reply = reply_of(made, content, MEDIA_TYPES[form])
    reply.headers.update(about)
    return reply


@dataclass
class Generation:
    """One request to /v1/generate."""

    service: Service
    request: Request
    loaded: Loaded
    body: GenerateRequest

    async def reply(self) -> Response:
        """Generate, and answer in the format that was asked for.

        Raises:
            RequestError: a field is wrong, or the service refuses.
        """
        body, spec = self.body, self.loaded.spec
        if body.stream and body.format not in (None, Format.EVENTS):
            raise RequestError(
                f"stream: it gives events, and format asks for {body.format}; leave one of them "
                "out",
                field="stream",
            )
        asked = Format.EVENTS if body.stream else body.format
        form = chosen_format(asked, self.request, formats(spec))
        check_array_size(body.size, form)
        if body.grid and not spec.is_image:
            raise RequestError("grid: this model makes vectors; leave grid out", field="grid")
        if body.grid and form not in (Format.JSON, *IMAGE_FORMATS):
            raise RequestError(f"grid: a reply as {form} has none; leave grid out", field="grid")
        self.scale = scale_for(body.size, spec)
        self.items = resolve(body, spec, self.service.limits.request_images)
        if body.grid or form in IMAGE_FORMATS:
            kind = IMAGE_FORMATS.get(form, body.image_format)
            check_grid(len(self.items), spec, kind, self.scale)
        self.work = work_of(body, self.items)
        if form in IMAGE_FORMATS:
            return await self._image(form)
        if form in ARRAYS:
            return await self._array(form)
        make: dict[Format, Callable[[], Awaitable[Response]]] = {
            Format.JSON: self._json,
            Format.MULTIPART: self._multipart,
            Format.EVENTS: self._events,
        }
        return await make[form]()

    def _fields(self, k: int, base64_image: str | None = None) -> dict[str, Any]:
        return fields_of(
            self.items[k], self.loaded, self.loaded.lane(self.body.steps), self.body.image_format,
            self.body.size, base64_image,
        )  # fmt: skip

    async def _json(self) -> Response:
        count = range(len(self.items))
        if not self.loaded.spec.is_image:
            arrays: Made[Any] = await self.service.generate(self.request, self.loaded, self.work)
            fields = [{**self._fields(k), "sample": arrays.values[k].tolist()} for k in count]
            return reply_of(arrays, json_body(arrays, fields), "application/json")
        if self.body.grid:
            arrays = await self.service.generate(self.request, self.loaded, self.work)
            grid = await self._grid(arrays, self.body.image_format)
            encoded = {f"{self.body.image_format}_base64": base64.b64encode(grid).decode("ascii")}
            fields = [self._fields(k) for k in count]
            return reply_of(arrays, json_body(arrays, fields, grid=encoded), "application/json")
        made = await self.service.generate(self.request, self.loaded, self.work, self._base64())
        fields = [self._fields(k, made.encoded[k]) for k in count]
        return reply_of(made, json_body(made, fields), "application/json")

    def _base64(self) -> Any:
        return base64_encoding(self.body.image_format, self.scale, self.body.quality)

    async def _grid(self, made: Made[Any], kind: ImageFormat) -> bytes:
        return await self.service.encoder.run(
            lambda: grid_of(made.values, kind, self.scale, self.body.quality)
        )

    async def _image(self, form: Format) -> Response:
        kind = IMAGE_FORMATS[form]
        if len(self.items) == 1 and not self.body.grid:
            encoding = image_encoding(kind, self.scale, self.body.quality)
            made = await self.service.generate(self.request, self.loaded, self.work, encoding)
            return reply_of(made, made.encoded[0], MEDIA_TYPES[form])
        arrays: Made[Any] = await self.service.generate(self.request, self.loaded, self.work)
        return reply_of(arrays, await self._grid(arrays, kind), MEDIA_TYPES[form])

    async def _array(self, form: Format) -> Response:
        made: Made[Any] = await self.service.generate(self.request, self.loaded, self.work)
        return array_reply(made, made.values, form)

    async def _multipart(self) -> Response:
        kind = self.body.image_format
        encoding = image_encoding(kind, self.scale, self.body.quality)
        made = await self.service.generate(self.request, self.loaded, self.work, encoding)
        parts = zip(self.items, made.encoded, strict=True)
        return reply_of(made, *multipart_body(parts, self.loaded.spec, kind))

    async def _events(self) -> Response:
        about = {
            "model": self.loaded.name,
            "bundle": self.loaded.digest,
            "variant": self.loaded.lane(self.body.steps).engine.variant.name,
        }
        headers = {**VARY, "X-MMF-Bundle": about["bundle"], "X-MMF-Variant": about["variant"],
                   "X-MMF-Model": about["model"]}  # fmt: skip

        async def events() -> AsyncGenerator[bytes, None]:
            images = self.loaded.spec.is_image
            stream = self.service.stream(
                self.request, self.loaded, self.work, self._base64() if images else VECTOR
            )
            async with aclosing(stream) as pieces:
                async for piece in pieces:
                    if piece.index == 0:
                        reply.headers["Server-Timing"] = piece.timing.header()
                    fields = self._fields(piece.index, piece.encoded if images else None)
                    if not images:
                        fields["sample"] = piece.encoded
                    name = "image" if images else "sample"
                    yield event(name, {"index": piece.index, **fields})
            yield event("done", {"images": len(self.items), **about})

        reply = EventStream(events(), headers)
        return reply

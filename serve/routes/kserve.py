"""The Open Inference Protocol V2 of KServe and Triton: /v2."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mmf_deploy import __version__
from mmf_deploy.errors import RequestError

from .. import kserve_codec, kserve_docs, kserve_model
from ..kserve_codec import Body, Output
from ..kserve_compression import Encoding, compress, decompress, wanted_encoding
from ..kserve_model import version_of
from ..kserve_schema import IndexRequest, InferRequest, malformed, parse
from ..kserve_stats import Statistics
from ..made import Made
from ..model import Loaded
from ..service import Service, State
from .health import ENGINE_FAILS, WHY_NOT_READY

EXTENSIONS = [
    "binary_tensor_data",
    "model_configuration",
    "parameters",
    "schedule_policy",
    "statistics",
]
INLINE_BYTES = 8192
"""Tensors up to this size are turned to JSON, or compressed, in the event loop: in less time
than handing them to a thread takes."""


def router(service: Service) -> APIRouter:
    """The V2 routes of a service."""
    routes = APIRouter(prefix="/v2", tags=["kserve"])
    v2 = _V2(service)
    versions = {name: version_of(model.loaded) for name, model in service.models.items()}
    documented = kserve_docs.documented(versions)

    def get(path: str, handler: Any) -> None:
        routes.get(path, **documented[path])(handler)

    get("", v2.server)
    get("/health/live", v2.live)
    get("/health/ready", v2.ready)
    get("/models/stats", v2.all_statistics)
    for model in kserve_docs.MODEL_PATHS:
        get(model, v2.model)
        get(f"{model}/ready", v2.model_ready)
        get(f"{model}/config", v2.config)
        get(f"{model}/stats", v2.statistics)
        routes.post(f"{model}/infer", **documented[f"{model}/infer"])(v2.infer)
    routes.post("/repository/index", **documented["/repository/index"])(v2.index)
    return routes


class _V2:
    """The handlers, which read the request themselves: path, headers, raw body."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._statistics: dict[tuple[str, str], Statistics] = defaultdict(Statistics)

    async def server(self) -> Response:
        """What this server is."""
        return JSONResponse(
            {"name": "mmf-deploy", "version": __version__, "extensions": EXTENSIONS}
        )

    async def live(self) -> Response:
        """200 as long as the process answers and a new one would do no better."""
        self._check_healthy(self._service.sick)
        return JSONResponse({"live": True})

    async def ready(self) -> Response:
        """200 once every model can be asked; 503 before that and while draining."""
        self._check_ready(self._service.sick)
        return JSONResponse({"ready": True})

    async def model(self, request: Request) -> Response:
        """The tensors of a model, and its version."""
        return JSONResponse(kserve_model.metadata(self._loaded(request)))

    async def model_ready(self, request: Request) -> Response:
        """200 when this model can be asked."""
        loaded = self._loaded(request)
        self._check_ready(loaded.sick)
        return JSONResponse({"name": loaded.name, "ready": True})

    async def config(self, request: Request) -> Response:
        """The configuration of a model, as Triton would write it."""
        limit = self._service.limits.request_images
        return JSONResponse(kserve_model.config(self._loaded(request), limit))

    async def statistics(self, request: Request) -> Response:
        """How many V2 requests a model answered, and how long they took."""
        return JSONResponse({"model_stats": [self._statistics_of(self._loaded(request))]})

    async def all_statistics(self) -> Response:
        """The statistics of every model."""
        models = self._service.models.values()
        return JSONResponse({"model_stats": [self._statistics_of(m.loaded) for m in models]})

    async def index(self, request: Request) -> Response:
        """Every model; with {"ready": true} only those that can be asked."""
        only_ready = parse(await request.body() or b"{}", IndexRequest).ready
        entries = [self._indexed(model.loaded) for model in self._service.models.values()]
        return JSONResponse([e for e in entries if not only_ready or e["state"] == "READY"])

    async def infer(self, request: Request) -> Response:
        """Make one image for each seed. The body is JSON, or JSON and then binary tensors."""
        headers, limits = request.headers, self._service.limits
        body = await self._body(request)
        # the body is here: from now on nothing waits between choosing a bundle and its queue
        loaded = self._loaded(request)
        statistics = self._statistics[loaded.name, version_of(loaded)]
        with statistics.request(), _refused_with_400():
            with statistics.timed("compute_input"):
                length = headers.get("inference-header-content-length")
                asked, tensors = kserve_codec.decode(body, length, limits.request_images)
                names = kserve_model.wanted(asked, loaded.spec)
                work = kserve_model.work_of(asked, tensors, loaded.spec)
            made: Made[Any] = await self._service.generate(request, loaded, work)
            statistics.made(made.timing, len(made.items))
            with statistics.timed("compute_output"):
                encoding = wanted_encoding(headers.get("accept-encoding"))
                outputs = kserve_model.outputs_of(made, names)
                reply = await self._written(_head(loaded, asked), outputs, encoding)
        return _response(reply, encoding, made.headers())

    async def _body(self, request: Request) -> bytes:
        body = await request.body()
        coding = request.headers.get("content-encoding")
        if coding is None:
            return body
        limit = self._service.limits.max_body_bytes
        return await self._service.encoder.run(partial(decompress, body, coding, limit))

    async def _written(
        self, head: dict[str, str], outputs: list[Output], encoding: Encoding | None
    ) -> Body:
        quick = encoding is None and all(output.binary for output in outputs)
        if quick or sum(output.values.nbytes for output in outputs) <= INLINE_BYTES:
            return _write(head, outputs, encoding)
        return await self._service.encoder.run(partial(_write, head, outputs, encoding))

    def _loaded(self, request: Request) -> Loaded:
        """What the path names, as it is served at this moment."""
        loaded = self._service.model(request.path_params["model_name"]).loaded
        version = request.path_params.get("model_version")
        if version is not None and version != version_of(loaded):
            raise kserve_model.not_that_version(loaded, version)
        return loaded

    def _check_ready(self, sick: bool) -> None:
        state = self._service.state
        if state is not State.READY:
            raise RequestError(WHY_NOT_READY[state], status=503, code=f"not_ready_{state}")
        self._check_healthy(sick)

    def _check_healthy(self, sick: bool) -> None:
        if sick:
            raise RequestError(ENGINE_FAILS, status=503, code="engine_fails")

    def _indexed(self, loaded: Loaded) -> dict[str, str]:
        state, reason = "READY", ""
        try:
            self._check_ready(loaded.sick)
        except RequestError as e:
            state, reason = "UNAVAILABLE", str(e)
        version = version_of(loaded)
        return {"name": loaded.name, "version": version, "state": state, "reason": reason}

    def _statistics_of(self, loaded: Loaded) -> dict[str, Any]:
        batches = self._service.metrics.registry.get_sample_value(
            "mmf_batch_images_count", {"model": loaded.name}
        )
        version = version_of(loaded)
        return self._statistics[loaded.name, version].reply(loaded.name, version, int(batches or 0))


def _head(loaded: Loaded, asked: InferRequest) -> dict[str, str]:
    head = {"model_name": loaded.name, "model_version": version_of(loaded)}
    return head if asked.id is None else head | {"id": asked.id}


def _write(head: dict[str, str], outputs: list[Output], encoding: Encoding | None) -> Body:
    body = kserve_codec.encode(head, outputs)
    return body if encoding is None else Body(compress(body.content, encoding), body.json_bytes)


def _response(body: Body, encoding: Encoding | None, headers: dict[str, str]) -> Response:
    if encoding is not None:
        headers["Content-Encoding"] = encoding
    if body.json_bytes is None:
        return Response(body.content, headers=headers, media_type="application/json")
    headers["Inference-Header-Content-Length"] = str(body.json_bytes)
    return Response(body.content, headers=headers, media_type="application/octet-stream")


@contextmanager
def _refused_with_400() -> Iterator[None]:
    """What other routes answer with 422 is 400 in this protocol."""
    try:
        yield
    except RequestError as e:
        if e.status != 422:
            raise
        raise malformed(str(e), e.field) from None

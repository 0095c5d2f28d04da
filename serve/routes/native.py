"""POST /v1/generate and GET /v1/model."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mmf_deploy import __version__

from ..negotiate import negotiate
from ..render import JSON, offers
from ..schema import GenerateRequest, parse, resolve
from ..service import Service

# the body is read raw, so that its errors are ours and the Content-Type does not matter;
# the documentation is told of it by hand
_BODY = {"required": False, "content": {JSON: {"schema": GenerateRequest.model_json_schema()}}}
_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The body is not JSON."},
    406: {"description": "None of the accepted media types is on offer."},
    413: {"description": "The body is too large."},
    422: {"description": "A field is wrong; the error names it."},
    503: {"description": "Overloaded (see Retry-After), starting or shutting down."},
}


def router(service: Service) -> APIRouter:
    """The native routes of a service."""
    routes = APIRouter(prefix="/v1", tags=["generate"])
    spec = service.bundle.spec
    types = offers(spec)
    ok: dict[str, Any] = {"description": "The images.", "content": {t: {} for t in types}}

    @routes.post("/generate", openapi_extra={"requestBody": _BODY}, responses={200: ok, **_ERRORS})
    async def generate(request: Request) -> Response:
        """Generate images. Accept chooses JSON with base64 PNGs, one PNG, or a .npy array."""
        media_type = negotiate(request.headers.get("accept"), types)
        body = parse(await request.body())
        items = resolve(body, spec, service.limits.request_images)
        deadline_s = None if body.deadline_ms is None else body.deadline_ms / 1000
        reply = await service.generate(request, items, deadline_s, media_type)
        return Response(reply.body, headers=reply.headers, media_type=reply.media_type)

    @routes.get("/model")
    async def model() -> Response:
        """What is being served, and how."""
        return JSONResponse(describe(service))

    return routes


def describe(service: Service) -> dict[str, Any]:
    """The reply of GET /v1/model."""
    manifest, engine, limits = service.bundle.manifest, service.engine, service.limits
    return {
        "bundle": service.bundle.digest,
        "name": manifest.name,
        "spec": manifest.spec.model_dump(mode="json"),
        "variant": engine.variant.name,
        "variants": [
            {"name": v.name, "precision": v.precision, "steps": v.steps} for v in manifest.variants
        ],
        "engine": engine.name,
        "device": engine.device,
        "precision": engine.precision,
        "buckets": list(engine.buckets),
        "limits": {
            "max_images": limits.request_images,
            "max_queue_images": limits.max_queue_images,
            "max_body_bytes": limits.max_body_bytes,
        },
        "quality": manifest.quality,
        "version": __version__,
    }

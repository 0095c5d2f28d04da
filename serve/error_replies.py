"""Errors as JSON, whatever went wrong, in the format of the protocol that was spoken.

Native routes say {"error": {"code", "message", "field"}}; OpenAI's and KServe's have their own.
"""

from __future__ import annotations

import http
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fastapi import FastAPI, routing
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from mmf_deploy.errors import EngineError, MMFError, OverloadedError, RequestError, nearest

from .disconnect import ClientGoneError

log = logging.getLogger(__name__)

CLIENT_CLOSED_REQUEST = 499
SOON = {"Retry-After": "1", "Retry-After-Ms": "1000"}
"""Of refusals that nothing predicts an end of: starting, shutting down."""

TOO_LARGE = 413
UNEXPECTED = "the service failed on this request; its log says why"


def install(app: FastAPI) -> None:
    """Answer every error of this app."""
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)


def error_reply(
    path: str,
    status: int,
    code: str,
    message: str,
    field: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """An error in the format of the protocol that a path belongs to."""
    body = error_body(path, status, code, message, field)
    return JSONResponse(body, status_code=status, headers=dict(headers or {}))


def error_body(
    path: str, status: int, code: str, message: str, field: str | None = None
) -> dict[str, Any]:
    """What such a reply says, for where it is not a reply of its own."""
    form = next((form for prefix, form in _FORMATS.items() if path.startswith(prefix)), _native)
    return form(status, code, message, field)


def _native(status: int, code: str, message: str, field: str | None) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "field": field}}


def _kserve(status: int, code: str, message: str, field: str | None) -> dict[str, Any]:
    return {"error": message}


def _openai(status: int, code: str, message: str, field: str | None) -> dict[str, Any]:
    kind = _OPENAI_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": field, "code": code}}


_OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}
_FORMATS: dict[str, Callable[[int, str, str, str | None], dict[str, Any]]] = {
    "/v2": _kserve,
    "/v1/images/generations": _openai,
    "/v1/models": _openai,
}


async def _request_error(request: Request, error: RequestError) -> Response:
    headers = {"Connection": "close"} if error.status == TOO_LARGE else {}
    if isinstance(error, OverloadedError):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
        headers["Retry-After-Ms"] = str(max(1, math.ceil(error.retry_after_s * 1000)))
    elif error.status == http.HTTPStatus.SERVICE_UNAVAILABLE:
        headers |= SOON
    return error_reply(request.url.path, error.status, error.code, str(error), error.field, headers)


async def _http_error(request: Request, error: HTTPException) -> Response:
    """404, 405 and whatever else the router says."""
    path, method = request.url.path[:100], request.method
    code = http.HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    message = str(error.detail)
    if error.status_code == http.HTTPStatus.NOT_FOUND:
        # to compare a long path takes long, and it is no slip of the pen
        hint = "" if len(request.url.path) > len(path) else nearest(path, known_paths(request.app))
        message = f"no such path {path!r}{hint}; see /docs"
    elif error.status_code == http.HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "another method")
        message = f"{path} does not take {method}; use {allowed}"
    return error_reply(request.url.path, error.status_code, code, message, None, error.headers)


def known_paths(app: FastAPI) -> list[str]:
    """The documented paths of an app."""
    # older versions of the framework keep the routes of routers in a flat list
    each: Callable[[Any], Iterable[Any]] = getattr(routing, "iter_route_contexts", iter)
    return [route.path for route in each(app.routes) if route.include_in_schema]


async def _validation_error(request: Request, error: RequestValidationError) -> Response:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    return error_reply(request.url.path, 422, "invalid_request", f"{field}: {first['msg']}", field)


async def _client_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def _failed(request: Request, error: MMFError) -> Response:
    log_failure(f"{request.method[:16]} {request.url.path[:200]} failed", error)
    return await _unexpected(request, error)


def log_failure(what: str, error: Exception) -> None:
    """Log why a client gets to hear ``UNEXPECTED``."""
    # an engine fails in its batcher, whose log has the traceback once for the whole batch
    log.error("%s: %s", what, error, exc_info=None if isinstance(error, EngineError) else error)


async def _unexpected(request: Request, error: Exception) -> Response:
    """An engine that failed, or a bug: the log has the story, the client gets none of it."""
    return error_reply(request.url.path, 500, "internal_error", UNEXPECTED)


_HANDLERS: dict[type[Exception], Any] = {
    RequestError: _request_error,
    HTTPException: _http_error,
    RequestValidationError: _validation_error,
    ClientGoneError: _client_gone,
    ClientDisconnect: _client_gone,
    MMFError: _failed,
    Exception: _unexpected,
}

"""Errors as JSON: {"error": {"code", "message", "field"}}, whatever went wrong."""

from __future__ import annotations

import http
import math
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from mmf_deploy.errors import MMFError, OverloadedError, RequestError, nearest

from .disconnect import ClientGoneError

CLIENT_CLOSED_REQUEST = 499


def install(app: FastAPI) -> None:
    """Answer every error of this app in the one format."""
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)


def error_response(
    status: int,
    code: str,
    message: str,
    field: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """The one error format."""
    body = {"error": {"code": code, "message": message, "field": field}}
    return JSONResponse(body, status_code=status, headers=headers)


async def _request_error(request: Request, error: RequestError) -> Response:
    headers = {}
    if isinstance(error, OverloadedError):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
        headers["Retry-After-Ms"] = str(max(1, math.ceil(error.retry_after_s * 1000)))
    elif error.status == http.HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = "1"
    return error_response(error.status, error.code, str(error), error.field, headers)


async def _http_error(request: Request, error: HTTPException) -> Response:
    """404, 405 and whatever else the router says."""
    path, method = request.url.path[:100], request.method
    code = http.HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    message = str(error.detail)
    if error.status_code == http.HTTPStatus.NOT_FOUND:
        known = request.app.openapi()["paths"]
        message = f"no such path {path!r}{nearest(path, known)}; see /docs"
    elif error.status_code == http.HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "another method")
        message = f"{path} does not take {method}; use {allowed}"
    return error_response(error.status_code, code, message, None, dict(error.headers or {}))


async def _validation_error(request: Request, error: RequestValidationError) -> Response:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    return error_response(422, "invalid_request", f"{field}: {first['msg']}", field)


async def _client_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def _unexpected(request: Request, error: Exception) -> Response:
    """An engine that failed, or a bug: the log has the story, the client gets none of it."""
    message = "the service failed on this request; its log says why"
    return error_response(500, "internal_error", message)


_HANDLERS: dict[type[Exception], Any] = {
    RequestError: _request_error,
    HTTPException: _http_error,
    RequestValidationError: _validation_error,
    ClientGoneError: _client_gone,
    ClientDisconnect: _client_gone,
    MMFError: _unexpected,
    Exception: _unexpected,
}

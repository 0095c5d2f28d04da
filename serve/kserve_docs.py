"""The OpenAPI documentation of the V2 routes: every body that they take, every status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field

from .kserve_schema import IndexRequest, InferRequest
from .routes.documented import body_of

MODEL_PATHS = ("/models/{model_name}", "/models/{model_name}/versions/{model_version}")


class V2ReplyParameters(BaseModel):
    """Parameters of an output tensor in a reply."""

    binary_data_size: int


class V2ReplyOutput(BaseModel):
    """One output tensor: its data, or the size of its bytes after the JSON part."""

    name: str
    shape: list[int]
    datatype: str
    parameters: V2ReplyParameters | None = None
    data: list[int] | list[float] | None = None


class V2InferReply(BaseModel):
    """The JSON part of an inference reply."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[V2ReplyOutput]


class V2Error(BaseModel):
    """Every error of the protocol."""

    error: str


class V2TensorMetadata(BaseModel):
    """What a tensor of a model looks like; -1 stands for any number of images."""

    name: str
    datatype: str
    shape: list[int]


class V2ModelMetadata(BaseModel):
    """What a model takes and gives."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[V2TensorMetadata]
    outputs: list[V2TensorMetadata]


class V2ServerMetadata(BaseModel):
    """What a server is."""

    name: str
    version: str
    extensions: list[str]


class V2Live(BaseModel):
    """GET /v2/health/live."""

    live: bool


class V2Ready(BaseModel):
    """GET /v2/health/ready."""

    ready: bool


class V2ModelReady(BaseModel):
    """Whether a model can be asked."""

    name: str
    ready: bool


class V2IndexEntry(BaseModel):
    """One model of the repository."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str


class V2Duration(BaseModel):
    """How often, and how many nanoseconds altogether."""

    count: int
    ns: int


class V2Statistics(BaseModel):
    """What became of the V2 requests of a model."""

    name: str
    version: str
    last_inference: int = Field(description="Milliseconds since 1970.")
    inference_count: int = Field(description="Images made for V2 requests.")
    execution_count: int = Field(description="Batches that ran, whatever they were for.")
    inference_stats: dict[str, V2Duration]
    batch_stats: list[Any]


class V2ModelStatistics(BaseModel):
    """Statistics of one model, or of all."""

    model_stats: list[V2Statistics]


_ERRORS = {
    400: "Malformed, or it does not fit the model; the error says what was expected.",
    401: "A key is needed, and none that is known was given.",
    403: "This key is not for that model.",
    404: "No such model or version.",
    413: "The body is too large, or would be when decompressed.",
    429: "The budget of this key is used up (see Retry-After).",
    500: "The engine failed.",
    503: "Overloaded (see Retry-After), starting or shutting down.",
}
_BYTES = {"schema": {"type": "string", "format": "binary"}}
_NUMBER = {"type": "integer", "minimum": 0}
_HEADER_LENGTH = {
    "name": "Inference-Header-Content-Length",
    "in": "header",
    "description": "Length of the JSON part, if binary tensors follow it.",
    "schema": _NUMBER,
}


def documented(models: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """What to pass to the decorator of each path.

    Args:
        models: version of every model by name, for the examples.
    """
    about: dict[str, dict[str, Any]] = {
        "": _replies(V2ServerMetadata),
        "/health/live": _replies(V2Live, 503),
        "/health/ready": _replies(V2Ready, 503),
        "/models/stats": _replies(V2ModelStatistics),
        "/repository/index": {
            **_replies(list[V2IndexEntry], 400, 413),
            "openapi_extra": body_of(IndexRequest),
        },
    }
    for path in MODEL_PATHS:
        named = {"openapi_extra": {"parameters": _path_parameters(path, models)}}
        about[path] = {**_replies(V2ModelMetadata, 404), **named}
        about[f"{path}/ready"] = {**_replies(V2ModelReady, 404, 503), **named}
        about[f"{path}/config"] = {**_replies(dict[str, Any], 404), **named}
        about[f"{path}/stats"] = {**_replies(V2ModelStatistics, 404), **named}
        about[f"{path}/infer"] = _infer(path, models)
    return about


def _infer(path: str, models: Mapping[str, str]) -> dict[str, Any]:
    body = body_of(InferRequest)["requestBody"]
    body["content"]["application/octet-stream"] = _BYTES
    replies = _replies(V2InferReply, *(s for s in _ERRORS if s != 401))
    replies["responses"][200] |= {
        "description": "The images; JSON, followed by bytes if binary outputs were asked for.",
        "content": {"application/octet-stream": _BYTES},
        "headers": {"Inference-Header-Content-Length": {"schema": _NUMBER}},
    }
    parameters = [*_path_parameters(path, models), _HEADER_LENGTH]
    return {**replies, "openapi_extra": {"requestBody": body, "parameters": parameters}}


def _replies(kind: Any, *errors: int) -> dict[str, Any]:
    said = {s: {"model": V2Error, "description": _ERRORS[s]} for s in (401, *errors)}
    return {"responses": {200: {"model": kind}, **said}}


def _path_parameters(path: str, models: Mapping[str, str]) -> list[dict[str, Any]]:
    name = {"type": "string", "examples": list(models)}
    version = {"type": "string", "examples": list(models.values())}
    about_version = "The first 12 digits of the bundle's digest; no other exists."
    found = [{"name": "model_name", "in": "path", "required": True, "schema": name}]
    if "model_version" in path:
        found.append(
            {
                "name": "model_version",
                "in": "path",
                "required": True,
                "description": about_version,
                "schema": version,
            }
        )
    return found

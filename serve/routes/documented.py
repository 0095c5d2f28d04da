"""What the documentation of several routes shares."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from ..formats import MEDIA_TYPES, Format


def errors() -> dict[int | str, dict[str, Any]]:
    """The documentation of what can go wrong."""
    return {
        400: {"description": "The body is not JSON."},
        401: {"description": "A key is needed, and none that is known was given."},
        403: {"description": "This key is not for that model."},
        404: {"description": "No such model."},
        406: {"description": "None of the accepted media types is on offer."},
        413: {"description": "The body is too large."},
        422: {"description": "A field is wrong; the error names it."},
        429: {"description": "The budget of this key is used up (see Retry-After)."},
        500: {"description": "The engine failed, or the service did; its log says why."},
        503: {"description": "Overloaded (see Retry-After), starting or shutting down."},
    }


def body_of(kind: type[BaseModel]) -> dict[str, Any]:
    """The documentation of a JSON body."""
    # the body is read raw, so that its errors are ours and the Content-Type does not matter;
    # the documentation is told of it by hand
    required = any(field.is_required() for field in kind.model_fields.values())
    schema = kind.model_json_schema(by_alias=True)
    content = {"application/json": {"schema": _inlined(schema, schema.pop("$defs", {}))}}
    return {"requestBody": {"required": required, "content": content}}


def replies(*offers: Format) -> dict[int | str, dict[str, Any]]:
    """The documentation of what a route replies."""
    good: dict[str, Any] = {
        "description": "The images.",
        "content": {MEDIA_TYPES[f]: {} for f in offers},
    }
    if Format.RAW in offers:
        good["headers"] = _OF_RAW
    return {200: good, **errors()}


_OF_RAW = {
    "X-MMF-Shape": {
        "description": "Of the array in application/octet-stream: 4,8,8,1 is [n, H, W, C].",
        "schema": {"type": "string"},
    },
    "X-MMF-Dtype": {
        "description": "Of its elements, little-endian.",
        "schema": {"type": "string", "enum": ["uint8", "float32"]},
    },
}


def _inlined(schema: Any, defs: dict[str, Any]) -> Any:
    """A schema without references into itself, which mean nothing inside another document."""
    if isinstance(schema, list):
        return [_inlined(each, defs) for each in schema]
    if not isinstance(schema, dict):
        return schema
    here = {k: _inlined(v, defs) for k, v in schema.items() if k != "$ref"}
    if "$ref" not in schema:
        return here
    return {**_inlined(defs[schema["$ref"].removeprefix("#/$defs/")], defs), **here}

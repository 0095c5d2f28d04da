"""The replies of OpenAI's images protocol, as /openapi.json describes them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class _Reply(BaseModel):
    """Documentation of what comes back; nothing is validated on its way out."""


class OneImage(_Reply):
    """One image, or where it is."""

    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = Field(None, description="A prompt that gives this class again.")
    seed: int
    class_label: int | None = None
    guidance_scale: float | None = None


class ImagesReply(_Reply):
    """The images of one request."""

    created: int
    background: Literal["opaque"]
    output_format: Literal["png", "jpeg", "webp"]
    size: str
    model: str
    bundle: str = Field(description="Digest of the bundle that made them.")
    variant: str
    data: list[OneImage]


class ServedModel(_Reply):
    """One model."""

    id: str
    object: Literal["model"]
    created: int = Field(description="When its bundle was written, seconds since 1970.")
    owned_by: str
    bundle: str = Field(description="Digest of the bundle that is served.")


class ModelList(_Reply):
    """All models, the default first."""

    object: Literal["list"]
    data: list[ServedModel]


class ErrorDetail(_Reply):
    """What went wrong."""

    message: str
    type: Literal[
        "invalid_request_error",
        "authentication_error",
        "permission_error",
        "rate_limit_error",
        "server_error",
    ]
    param: str | None
    code: str | None


class ErrorReply(_Reply):
    """An error."""

    error: ErrorDetail

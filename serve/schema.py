"""The bodies of the native routes."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError

from mmf_deploy.errors import RequestError, nearest
from mmf_deploy.noise import MAX_SEED

from .first_error import first_error, short
from .formats import MAX_SIZE, Format, ImageFormat
from .samples import Priority

Label = int | str
Body = TypeVar("Body", bound=BaseModel)


def _label(value: object) -> Label | None:
    """Accept a label; one message instead of pydantic's one per alternative."""
    if value is None or (isinstance(value, int | str) and not isinstance(value, bool)):
        return value
    raise ValueError("expected a class number or a class name")


def _labels(value: object) -> Label | list[Label] | None:
    each = value if isinstance(value, list) else [value]
    wrong = any(isinstance(x, bool) or not isinstance(x, int | str) for x in each)
    if value is not None and (wrong or not each):
        raise ValueError("expected a class number, a class name, or a list with one an image")
    return value  # type: ignore[return-value]


Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
OneLabel = Annotated[Label | None, PlainValidator(_label, json_schema_input_type=int | str | None)]
Labels = Annotated[
    Label | list[Label] | None,
    PlainValidator(_labels, json_schema_input_type=int | str | list[int | str] | None),
]


class Asked(BaseModel):
    """What every native request can say."""

    # strict: "12", 1.0 and true are no integers
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    model: str | None = Field(None, description="Which model; the first one if not given.")
    guidance: float | None = Field(
        None, allow_inf_nan=False, description="Guidance scale, if the model takes one."
    )
    steps: int | None = Field(
        None, ge=1, description="Network evaluations an image, if the model has such a variant."
    )
    size: int | None = Field(
        None,
        ge=1,
        le=MAX_SIZE,
        description="Height in pixels, a multiple of the model's own: each pixel becomes a block.",
    )
    priority: Priority = Field(
        Priority.NORMAL, strict=False, description="Who goes first when there is a queue."
    )
    deadline_ms: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Refuse, or drop, what cannot be ready within this time.",
    )


class GenerateRequest(Asked):
    """What to generate. Every field is optional; `{}` gives one image of a random seed."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"n": 4, "seed": 7},
                {"seeds": [3, 141], "labels": [0, 5]},
                {"n": 16, "labels": 3, "format": "png", "size": 64},
            ]
        }
    )

    n: int | None = Field(
        None, ge=1, le=MAX_SEED, description="How many; 1, or as many as seeds or labels."
    )
    seed: Seed | None = Field(
        None, description="Seed of the first; the others count up. Random if none is given."
    )
    # one error says as much as half a million of them
    seeds: list[Seed] | None = Field(
        None, min_length=1, fail_fast=True, description="One seed an image, instead of seed."
    )
    labels: Labels = Field(
        None,
        description="Class number or name, or a list with one an image; else seed mod classes.",
    )
    format: Format | None = Field(
        None, strict=False, description="Of the reply; instead of the Accept header."
    )
    image_format: ImageFormat = Field(
        ImageFormat.PNG, strict=False, description="Of each image in JSON, multipart and events."
    )
    quality: int = Field(90, ge=1, le=100, description="Of JPEG and WebP.")
    grid: bool = Field(False, description="One image with all of them, instead of one each.")
    stream: bool = Field(
        False, description="Server-sent events, an image each as soon as it is ready."
    )


class InterpolateRequest(Asked):
    """The way from one seed's noise to another's, on the great arc between them."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"from": 3, "to": 141, "frames": 24, "label": 5}]}
    )

    start: Seed = Field(alias="from", description="Seed of the first frame.")
    end: Seed = Field(alias="to", description="Seed of the last frame.")
    frames: int = Field(24, ge=2, le=MAX_SEED, description="How many, both ends included.")
    label: OneLabel = Field(
        None, description="Class of every frame; that of the first seed if not given."
    )
    format: Format | None = Field(
        None,
        strict=False,
        description="webp is an animation, png and jpeg a strip; instead of the Accept header.",
    )
    image_format: ImageFormat = Field(
        ImageFormat.PNG, strict=False, description="Of each frame in JSON and multipart."
    )
    quality: int = Field(90, ge=1, le=100, description="Of JPEG and WebP.")
    fps: float = Field(12.0, gt=0, le=60, allow_inf_nan=False, description="Of the animation.")


class TrajectoryRequest(Asked):
    """The whole way of one image: its noise, what it is after every step, and the image."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"seed": 7, "label": 3, "steps": 4, "size": 64}]}
    )

    seed: Seed | None = Field(None, description="Seed of the image; random if not given.")
    label: OneLabel = Field(None, description="Class number or name; else seed mod classes.")
    steps: int | None = Field(
        None, ge=1, description="Of the variant; the most that have a trajectory if not given."
    )
    format: Format | None = Field(
        None,
        strict=False,
        description="png and jpeg are a strip, webp an animation; instead of the Accept header.",
    )
    image_format: ImageFormat = Field(
        ImageFormat.PNG, strict=False, description="Of each point in JSON and multipart."
    )
    quality: int = Field(90, ge=1, le=100, description="Of JPEG and WebP.")
    fps: float = Field(4.0, gt=0, le=60, allow_inf_nan=False, description="Of the animation.")


def parse(body: bytes, kind: type[Body]) -> Body:
    """Read a request; an empty body is `{}`.

    Raises:
        RequestError: 400 if it is not JSON, 422 if it does not fit; names the field.
    """
    try:
        return kind.model_validate_json(body or b"{}")
    except ValidationError as e:
        raise _explain(first_error(e), kind) from None


def _explain(error: Any, kind: type[BaseModel]) -> RequestError:
    wrong, path, message = error["type"], error["loc"], error["msg"]
    if wrong == "json_invalid":
        why = message.removeprefix("Invalid JSON: ")
        return RequestError(f"the body is not JSON: {why}", status=400, code="invalid_json")
    if not path:
        return RequestError('the body must be a JSON object, for example {"n": 4}')
    field = ".".join(str(part) for part in path)
    if wrong == "extra_forbidden":
        known = [field.alias or name for name, field in kind.model_fields.items()]
        name = str(path[0])[:64]
        hint = nearest(name, known)
        return RequestError(
            f"unknown field {name!r}{hint}; there are {', '.join(known)}",
            field=name,
            code="unknown_field",
        )
    if wrong == "missing":
        return RequestError(f"{field}: this field is required", field=field)
    text = message.removeprefix("Value error, ")
    text = text[:1].lower() + text[1:]
    return RequestError(f"{field}: {text}, got {short(error['input'])}", field=field)

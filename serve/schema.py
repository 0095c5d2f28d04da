"""The bodies of the native routes, and what they mean for the model that is asked."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError

from mmf_deploy.errors import RequestError, nearest
from mmf_deploy.noise import MAX_SEED, random_seed
from mmf_deploy.spec import SampleSpec

from .formats import MAX_SIZE, Format, ImageFormat
from .samples import Item, Priority, Toward

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


class _Asked(BaseModel):
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


class GenerateRequest(_Asked):
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
    seeds: list[Seed] | None = Field(
        None, min_length=1, description="One seed an image, instead of seed."
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


class InterpolateRequest(_Asked):
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


def parse(body: bytes, kind: type[Body]) -> Body:
    """Read a request; an empty body is `{}`.

    Raises:
        RequestError: 400 if it is not JSON, 422 if it does not fit; names the field.
    """
    try:
        return kind.model_validate_json(body or b"{}")
    except ValidationError as e:
        # include_url and the context hold nothing that a client can use
        first = e.errors(include_url=False, include_context=False)[0]
        raise _explain(first, kind) from None


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
    return RequestError(f"{field}: {text}, got {_short(error['input'])}", field=field)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def resolve(request: GenerateRequest, spec: SampleSpec, max_images: int) -> list[Item]:
    """Say seed, label and guidance of every image.

    Args:
        max_images: most images one request may ask for.
    Raises:
        RequestError: a value does not fit the generator; names the field.
    """
    seeds = _seeds(request, max_images)
    labels = _resolve_labels(request, spec, seeds)
    guidance = guidance_of(request.guidance, spec)
    return [
        Item(seed=seed, label=label, guidance=guidance)
        for seed, label in zip(seeds, labels, strict=True)
    ]


def resolve_path(request: InterpolateRequest, spec: SampleSpec, max_images: int) -> list[Item]:
    """The frames of an interpolation, in order.

    Raises:
        RequestError: a value does not fit the generator; names the field.
    """
    _at_most(request.frames, max_images, "frames")
    label = spec.default_label(request.start)
    if request.label is not None:
        if not spec.conditional:
            raise RequestError("label: this model has no classes; leave label out", field="label")
        label = class_of(request.label, spec, "label")
    guidance = guidance_of(request.guidance, spec)
    last = request.frames - 1
    return [
        Item(request.start, label, guidance, Toward(request.end, k / last))
        for k in range(request.frames)
    ]


def _seeds(request: GenerateRequest, max_images: int) -> list[int]:
    if request.seeds is not None:
        _at_most(len(request.seeds), max_images, "seeds")
        if request.seed is not None:
            raise RequestError("seeds: give either seed or seeds, not both", field="seeds")
        if request.n not in (None, len(request.seeds)):
            raise RequestError(
                f"n: {request.n} does not match the {len(request.seeds)} seeds; leave n out",
                field="n",
            )
        return request.seeds
    count = request.n
    if count is None:
        count = len(request.labels) if isinstance(request.labels, list) else 1
        _at_most(count, max_images, "labels")
    _at_most(count, max_images, "n")
    first = random_seed() if request.seed is None else request.seed
    if first + count - 1 > MAX_SEED:
        raise RequestError(
            f"seed: the last of {count} seeds from {first} on exceeds {MAX_SEED}", field="seed"
        )
    return list(range(first, first + count))


def _at_most(count: int, limit: int, field: str) -> None:
    if count > limit:
        raise RequestError(f"{field}: {count} images in one request; at most {limit}", field=field)


def _resolve_labels(request: GenerateRequest, spec: SampleSpec, seeds: list[int]) -> list[int]:
    labels = request.labels
    if labels is None:
        return [spec.default_label(seed) for seed in seeds]
    if not spec.conditional:
        raise RequestError("labels: this model has no classes; leave labels out", field="labels")
    if not isinstance(labels, list):
        return [class_of(labels, spec)] * len(seeds)
    if len(labels) != len(seeds):
        raise RequestError(
            f"labels: {len(labels)} for {len(seeds)} images; give one, or one an image",
            field="labels",
        )
    return [class_of(label, spec) for label in labels]


def class_of(label: Label, spec: SampleSpec, field: str = "labels") -> int:
    """The number of a class given by number or name.

    Raises:
        RequestError: there is no such class; names the field.
    """
    if isinstance(label, str):
        if label in spec.class_names:
            return spec.class_names.index(label)
        hint = nearest(label, spec.class_names) if len(label) <= 64 else ""
        have = ", ".join(spec.class_names[:20]) or f"numbers only, 0 … {spec.classes - 1}"
        raise RequestError(f"{field}: no class {_short(label)}{hint}; expected {have}", field=field)
    if not 0 <= label < spec.classes:
        raise RequestError(
            f"{field}: {_short(label)} is out of range; expected 0 … {spec.classes - 1}",
            field=field,
        )
    return label


def guidance_of(guidance: float | None, spec: SampleSpec) -> float:
    """The guidance scale of a request; the lowest one if it gives none.

    Raises:
        RequestError: the model takes none, or not that much.
    """
    if spec.guidance is None:
        if guidance is not None:
            raise RequestError(
                "guidance: this model takes none; leave guidance out", field="guidance"
            )
        return 1.0
    low, high = spec.guidance
    if guidance is None:
        return low
    if not low <= guidance <= high:
        raise RequestError(
            f"guidance: {guidance:g} is out of range; expected {low:g} … {high:g}", field="guidance"
        )
    return guidance

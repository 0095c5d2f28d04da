"""The body of POST /v1/images/generations (OpenAI's protocol), and what it means here.

What a prompt means is in openai_prompt.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mmf_deploy.errors import RequestError, nearest
from mmf_deploy.noise import MAX_SEED, random_seed
from mmf_deploy.spec import SampleSpec

from .first_error import first_error, short
from .formats import MAX_SIZE
from .openai_prompt import label_of_prompt
from .resolve import class_of, guidance_of
from .samples import Item
from .schema import Label

MAX_PROMPT = 32_000
MAX_N = 10

NO_EFFECT = "Accepted for compatibility; has no effect."


class ImagesRequest(BaseModel):
    """What to generate. Only the prompt is required, and null is the same as absent."""

    # strict: "1", 1.0 and true are no integers
    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        json_schema_extra={"examples": [{"prompt": "7", "n": 2, "size": "auto", "seed": 1}]},
    )

    prompt: str = Field(
        max_length=MAX_PROMPT, description="Chooses the class that it names, if it names one."
    )
    model: str | None = Field(None, description="A name of GET /v1/models; else the default.")
    n: Annotated[int, Field(ge=1, le=MAX_N)] | None = Field(None, description="How many; 1.")
    size: str | None = Field(
        None, description='"WxH", the native size or a whole multiple; or "auto" (native).'
    )
    response_format: Literal["b64_json", "url"] | None = Field(None, description="b64_json.")
    output_format: Literal["png", "jpeg", "webp"] | None = Field(None, description="png.")
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = Field(
        None, description="Quality of jpeg and webp, 100 the best; png is lossless."
    )
    stream: bool | None = Field(None, description="Send each image when it is ready, as an event.")
    partial_images: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = Field(
        None, description="0: one step has no partial images."
    )

    user: str | None = Field(None, description=NO_EFFECT)
    safety_identifier: str | None = Field(None, description=NO_EFFECT)
    quality: Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"] | None = (
        Field(None, description=NO_EFFECT)
    )
    complexity: Literal["low", "medium", "high"] | None = Field(None, description=NO_EFFECT)
    style: Literal["vivid", "natural"] | None = Field(None, description=NO_EFFECT)
    background: Literal["auto", "opaque", "transparent"] | None = Field(None, description=NO_EFFECT)
    moderation: Literal["low", "auto"] | None = Field(None, description=NO_EFFECT)

    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = Field(
        None, description="Extension. Seed of the first image; the others count up."
    )
    class_label: Label | None = Field(
        None, description="Extension. Class number or name; the prompt is then not looked at."
    )
    guidance_scale: Annotated[float, Field(allow_inf_nan=False)] | None = Field(
        None, description="Extension. Guidance scale, if the model takes one."
    )
    steps: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Extension. Network evaluations an image."
    )
    priority: Literal["high", "normal", "low"] | None = Field(None, description="Extension.")
    deadline_ms: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="Extension. Refuse, or drop, what cannot be generated in this time."
    )


def parse(body: bytes) -> ImagesRequest:
    """Read a request.

    Raises:
        RequestError: 400, with the parameter that is wrong.
    """
    try:
        request = ImagesRequest.model_validate_json(body)
    except ValidationError as e:
        raise _explain(first_error(e, 400)) from None
    _check_combinations(request)
    return request


@contextmanager
def bad_requests() -> Iterator[None]:
    """Inside, what is 422 elsewhere is 400, as this protocol says it."""
    try:
        yield
    except RequestError as e:
        if e.status != 422:
            raise
        raise RequestError(str(e), field=e.field, status=400, code=e.code) from None


def _invalid(message: str, param: str | None, code: str = "invalid_value") -> RequestError:
    return RequestError(message, field=param, status=400, code=code)


def _explain(error: Any) -> RequestError:
    kind, path, message = error["type"], error["loc"], error["msg"]
    if kind == "json_invalid":
        why = message.removeprefix("Invalid JSON: ")
        return _invalid(f"the body is not JSON: {why}", None, "invalid_json")
    if not path:
        return _invalid('the body must be a JSON object, for example {"prompt": "7"}', None)
    param = str(path[0])[:64]
    if kind == "missing":
        return _invalid(f"{param} is required", param, "missing_required_parameter")
    if kind == "extra_forbidden":
        known = list(ImagesRequest.model_fields)
        hint = nearest(param, known)
        text = f"unknown parameter {param!r}{hint}; there are {', '.join(known)}"
        return _invalid(text, param, "unknown_parameter")
    code = "invalid_type" if kind.endswith("_type") else "invalid_value"
    got = short(error["input"])
    if param == "class_label":
        message = "expected a class number or a class name"
    return _invalid(f"{param}: {message[:1].lower()}{message[1:]}, got {got}", param, code)


def _check_combinations(request: ImagesRequest) -> None:
    """Refuse what would otherwise be passed over in silence."""
    if request.partial_images:
        raise _invalid(
            f"partial_images: {request.partial_images}, but images are made in one go and have no "
            "partial form; leave it out, or give 0",
            "partial_images",
        )
    if request.stream and request.response_format == "url":
        raise _invalid(
            "response_format: streamed events carry b64_json only; leave out stream, or the url",
            "response_format",
        )
    if request.output_compression is None:
        return
    if request.output_format in (None, "png"):
        if request.output_compression != 100:
            raise _invalid(
                "output_compression: png is lossless; leave it out, or choose jpeg or webp as "
                "output_format",
                "output_compression",
            )
    elif request.response_format == "url":
        raise _invalid(
            "output_compression: an image behind a url has one quality; leave it out, or choose "
            "b64_json as response_format",
            "output_compression",
        )


def resolve(request: ImagesRequest, spec: SampleSpec, max_images: int) -> list[Item]:
    """Say seed, label and guidance of every image.

    Args:
        max_images: most images one request may ask for.
    Raises:
        RequestError: a value does not fit the generator; names the parameter.
    """
    if not spec.is_image:
        raise _invalid("model: it makes vectors, not images; use POST /v1/generate", "model")
    first = random_seed() if request.seed is None else request.seed
    count = request.n or 1
    if count > max_images:
        raise _invalid(f"n: {count} images in one request; at most {max_images}", "n")
    if first + count - 1 > MAX_SEED:
        raise _invalid(f"seed: the last of {count} from {first} on exceeds {MAX_SEED}", "seed")
    label = _label(request, spec)
    guidance = _guidance(request.guidance_scale, spec)
    return [
        Item(seed, spec.default_label(seed) if label is None else label, guidance)
        for seed in range(first, first + count)
    ]


def _label(request: ImagesRequest, spec: SampleSpec) -> int | None:
    if request.class_label is None:
        return label_of_prompt(request.prompt, spec)
    if not spec.conditional:
        raise _invalid(
            "class_label: this model has no classes; leave class_label out", "class_label"
        )
    return class_of(request.class_label, spec, "class_label")


def _guidance(scale: float | None, spec: SampleSpec) -> float:
    try:
        return guidance_of(scale, spec)
    except RequestError as e:  # it has another name here
        raise _invalid(str(e).replace("guidance", "guidance_scale"), "guidance_scale") from None


def scale_of(size: str | None, spec: SampleSpec) -> int:
    """The whole factor by which images are enlarged; 1 for the native size.

    Raises:
        RequestError: 400, the size is no whole multiple of the native one, or too large.
    """
    if size in (None, "auto"):
        return 1
    _, height, width = spec.shape
    most = max(1, MAX_SIZE // max(height, width))
    asked = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", size)
    if asked:
        w, h = int(asked[1]), int(asked[2])
        scale = h // height
        if 1 <= scale <= most and (w, h) == (scale * width, scale * height):
            return scale
    sizes = ", ".join(f"{k * width}x{k * height}" for k in sorted({1, 2, 4, 8, most}) if k <= most)
    got = repr(size if len(size) <= 40 else size[:37] + "...")
    raise _invalid(
        f"size: {got} is not on offer; expected auto, or a whole multiple of {width}x{height} up "
        f"to {most * width}x{most * height}: {sizes}",
        "size",
    )

"""The JSON of the Open Inference Protocol V2, as far as this service speaks it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, WithJsonSchema

from mmf_deploy.errors import RequestError, nearest

from .first_error import first_error, short

Datatype = Literal[
    "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64",
    "FP16", "FP32", "FP64", "BYTES",
]  # fmt: skip
Word = Literal["high", "normal", "low"]

INT64_MAX = 2**63 - 1
MAX_RANK = 8
MAX_TENSORS = 16


def _priority(value: object) -> str | int | None:
    """Accept a word or a number; one message instead of pydantic's one per alternative."""
    if value is None or (isinstance(value, str) and value in ("high", "normal", "low")):
        return value
    # bool is an int to Python
    if type(value) is int and 0 <= value <= INT64_MAX:
        return value
    raise ValueError("expected 'high', 'normal', 'low' or an integer from 0 on")


Priority = Annotated[
    str | int | None,
    PlainValidator(
        _priority,
        json_schema_input_type=Word | Annotated[int, Field(ge=0, le=INT64_MAX)] | None,
    ),
]


class _Wire(BaseModel):
    # strict: "12", 1.0 and true are no integers
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


Wire = TypeVar("Wire", bound=_Wire)


class InputParameters(_Wire):
    """Parameters of an input tensor."""

    binary_data_size: int | None = Field(
        None, ge=0, le=INT64_MAX, description="Bytes of this tensor after the JSON part."
    )


class OutputParameters(_Wire):
    """Parameters of a requested output."""

    binary_data: bool | None = Field(
        None, description="Reply with bytes after the JSON part; else binary_data_output."
    )


class RequestParameters(_Wire):
    """Parameters of a request."""

    steps: int | None = Field(
        None, ge=1, le=INT64_MAX, description="Sampling steps; else those of the served variant."
    )
    priority: Priority = Field(
        None,
        description="high, normal or low; as numbers 1, 2, and 3 or more. 0 is the default.",
    )
    timeout: int | None = Field(
        None, ge=0, le=INT64_MAX, description="Deadline in microseconds; 0 is none."
    )
    deadline_ms: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Deadline in milliseconds."
    )
    binary_data_output: bool | None = Field(
        None, description="Reply with bytes after the JSON part."
    )


_VALUE = {"anyOf": [{"type": "number"}, {"type": "string"}]}
_NESTED_VALUE = {"type": "array", "items": _VALUE, "minItems": 1, "maxItems": 1}
Data = Annotated[
    list[Any],
    WithJsonSchema(
        {"type": "array", "minItems": 1, "items": {"anyOf": [*_VALUE["anyOf"], _NESTED_VALUE]}}
    ),
]
Shape = Annotated[
    list[int],
    Field(max_length=MAX_RANK),
    WithJsonSchema(
        {
            "type": "array",
            "minItems": 1,
            "maxItems": 2,
            "items": {"type": "integer", "minimum": 1},
            "examples": [[2]],
        }
    ),
]


class RequestInput(_Wire):
    """One input tensor."""

    name: str = Field(json_schema_extra={"enum": ["seed", "label", "guidance"]})
    shape: Shape = Field(description="[B], or [B, 1].")
    datatype: Datatype
    parameters: InputParameters | None = None
    data: Data | None = Field(
        None, description="Flat or nested, in row-major order; not with binary_data_size."
    )


class RequestOutput(_Wire):
    """One requested output."""

    name: str = Field(
        description="image, or sample for vectors; seed and label as they were used.",
        json_schema_extra={"enum": ["image", "sample", "seed", "label"]},
    )
    parameters: OutputParameters | None = None


class InferRequest(_Wire):
    """The JSON part of an inference request."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "42",
                    "inputs": [
                        {"name": "seed", "shape": [2], "datatype": "INT64", "data": [3, 141]}
                    ],
                    "parameters": {"priority": "high", "deadline_ms": 500},
                }
            ]
        }
    )

    id: str | None = Field(None, description="Comes back in the reply.")
    parameters: RequestParameters | None = None
    inputs: list[RequestInput] = Field(min_length=1, max_length=MAX_TENSORS)
    outputs: list[RequestOutput] | None = Field(
        None, max_length=MAX_TENSORS, description="What to reply with; else the images alone."
    )


class IndexRequest(_Wire):
    """The body of a repository index request."""

    ready: bool = Field(False, description="Only models that can be asked.")


def parse(body: bytes | memoryview, kind: type[Wire]) -> Wire:
    """Read the JSON of a request.

    Raises:
        RequestError: 400, one line; names the field.
    """
    try:
        return kind.model_validate_json(bytes(body))
    except ValidationError as e:
        raise _explain(first_error(e, 400), kind) from None


def malformed(message: str, field: str | None = None) -> RequestError:
    """What the protocol answers to a request that does not fit: 400."""
    return RequestError(message, field=field, status=400)


_NESTED: dict[tuple[str, ...], type[BaseModel]] = {
    ("parameters",): RequestParameters,
    ("inputs",): RequestInput,
    ("inputs", "parameters"): InputParameters,
    ("outputs",): RequestOutput,
    ("outputs", "parameters"): OutputParameters,
}


def _explain(error: Any, kind: type[BaseModel]) -> RequestError:
    wrong, path, message = error["type"], error["loc"], error["msg"]
    if wrong == "json_invalid":
        why = message.removeprefix("Invalid JSON: ")
        return RequestError(f"the request is not JSON: {why}", status=400, code="invalid_json")
    if not path:
        return malformed(f"the request must be a JSON object with {', '.join(kind.model_fields)}")
    if wrong == "extra_forbidden":
        return _unknown(path, kind)
    field = ".".join(str(part) for part in path)
    if wrong == "missing":
        return malformed(f"{field} is missing", field)
    text = message.removeprefix("Value error, ")
    return malformed(f"{field}: {text[:1].lower()}{text[1:]}, got {short(error['input'])}", field)


def _unknown(path: tuple[str | int, ...], kind: type[BaseModel]) -> RequestError:
    where = ".".join(str(part) for part in path[:-1]) or "the request"
    place = tuple(part for part in path[:-1] if isinstance(part, str))
    known = list(_NESTED.get(place, kind).model_fields)
    name = str(path[-1])[:64]
    return malformed(
        f"{where}: unknown field {short(name)}{nearest(name, known)}; there are {', '.join(known)}"
    )

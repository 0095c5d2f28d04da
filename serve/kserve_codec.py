"""Bodies of the Open Inference Protocol V2: JSON, then the bytes of the binary tensors.

With ``Inference-Header-Content-Length: N`` the first N bytes of a body are JSON, and what
follows are the tensors that announce a ``binary_data_size``, little-endian, in the order in
which the JSON lists them. Without it the whole body is JSON. Nothing here knows of HTTP or of
images: bytes and arrays in, arrays and bytes out.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json

from .first_error import short
from .kserve_schema import InferRequest, RequestInput, malformed, parse

DTYPES: dict[str, np.dtype[Any]] = {
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
"""Every datatype of fixed size; BYTES, strings of any length, is the other one."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class Tensor:
    """An input: its values in row-major order, one dimension.

    Attributes:
        values: of the datatype's dtype; for BYTES a list of str.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: NDArray[Any] | list[str]


@dataclass(frozen=True)
class Output:
    """An output and how to send it."""

    name: str
    values: NDArray[Any]
    binary: bool


@dataclass(frozen=True)
class Body:
    """A reply; ``json_bytes`` is its Inference-Header-Content-Length, None if all of it is JSON."""

    content: bytes
    json_bytes: int | None


def decode(
    body: bytes, header_length: str | None, max_elements: int
) -> tuple[InferRequest, dict[str, Tensor]]:
    """Read a request.

    Args:
        header_length: the value of Inference-Header-Content-Length, if it came.
        max_elements: most elements that a tensor may have.
    Returns:
        the JSON part, and the inputs by name. Binary inputs are views into ``body``.
    Raises:
        RequestError: 400, one line; names the field.
    """
    view = memoryview(body)
    split = len(body) if header_length is None else _split(header_length, len(body))
    request = parse(view[:split], InferRequest)
    tensors: dict[str, Tensor] = {}
    at = split
    for given in request.inputs:
        if given.name in tensors:
            raise malformed(f"inputs: {short(given.name)} is given twice", "inputs")
        count = _count(given, max_elements)
        size = given.parameters.binary_data_size if given.parameters else None
        values: NDArray[Any] | list[str]
        if size is None:
            values = _from_json(given, count)
        else:
            values = _from_bytes(given, count, _piece(view, at, size, given, header_length))
            at += size
        tensors[given.name] = Tensor(given.name, given.datatype, tuple(given.shape), values)
    if at != len(body):
        raise malformed(
            f"{len(body) - at} bytes follow the last input; "
            "every binary input says its binary_data_size"
        )
    return request, tensors


def encode(head: dict[str, Any], outputs: Sequence[Output]) -> Body:
    """Write a reply.

    Args:
        head: model_name, model_version and, if the request had one, id.
    """
    described, pieces = [], []
    for output in outputs:
        values = np.ascontiguousarray(output.values)
        about: dict[str, Any] = {
            "name": output.name,
            "shape": values.shape,
            "datatype": _NAMES[values.dtype.newbyteorder("<")],
        }
        if output.binary:
            about["parameters"] = {"binary_data_size": values.nbytes}
            pieces.append(values.data)
        else:
            about["data"] = values.ravel().tolist()
        described.append(about)
    json = to_json({**head, "outputs": described}, inf_nan_mode="null")
    if not pieces:
        return Body(json, None)
    return Body(b"".join((json, *pieces)), len(json))


def _split(header_length: str, body_bytes: int) -> int:
    text = header_length.strip()
    if not (text.isascii() and text.isdigit()):
        raise malformed(
            f"Inference-Header-Content-Length {short(header_length)}; expected a number of bytes"
        )
    # int() of thousands of digits would be refused in other words
    length = int(text[-20:]) if len(text.lstrip("0")) <= 20 else body_bytes + 1
    if length > body_bytes:
        raise malformed(
            f"Inference-Header-Content-Length {short(text)} exceeds the {body_bytes} bytes "
            "of the body"
        )
    return length


def _count(given: RequestInput, max_elements: int) -> int:
    """Number of elements that the shape says."""
    if any(size < 0 for size in given.shape):
        raise malformed(f"{short(given.name)}: negative shape {short(given.shape)}")
    count = math.prod(given.shape)
    if count > max_elements:
        raise malformed(
            f"{short(given.name)}: shape {short(given.shape)} has more than the {max_elements} "
            "elements that one request may have; send several requests"
        )
    return count


def _piece(
    view: memoryview, at: int, size: int, given: RequestInput, header_length: str | None
) -> memoryview:
    name = short(given.name)
    if given.data is not None:
        raise malformed(f"{name}: either data or binary_data_size, not both")
    if header_length is None:
        raise malformed(
            f"{name}: binary_data_size needs the header "
            "Inference-Header-Content-Length, the length of the JSON part"
        )
    if size > len(view) - at:
        raise malformed(
            f"{name}: binary_data_size {size}, but {len(view) - at} bytes are left in the body"
        )
    return view[at : at + size]


def _from_bytes(given: RequestInput, count: int, piece: memoryview) -> NDArray[Any] | list[str]:
    if given.datatype == "BYTES":
        return _strings(given, count, piece)
    dtype = DTYPES[given.datatype]
    if len(piece) != count * dtype.itemsize:
        raise malformed(
            f"{short(given.name)}: {len(piece)} bytes for shape {short(given.shape)} of "
            f"{given.datatype}; expected {count * dtype.itemsize}"
        )
    return np.frombuffer(piece, dtype)


def _strings(given: RequestInput, count: int, piece: memoryview) -> list[str]:
    """BYTES: each a length of four bytes, then as many bytes of UTF-8."""
    found: list[str] = []
    at = 0
    while at < len(piece) and len(found) < count:
        end = at + _LENGTH.size
        if end <= len(piece):
            end += _LENGTH.unpack_from(piece, at)[0]
        if end > len(piece):
            raise malformed(f"{short(given.name)}: string {len(found)} ends after the tensor")
        try:
            found.append(str(piece[at + _LENGTH.size : end], "utf-8"))
        except UnicodeDecodeError:
            raise malformed(f"{short(given.name)}: string {len(found)} is not UTF-8") from None
        at = end
    if at != len(piece) or len(found) != count:
        raise malformed(
            f"{short(given.name)}: {len(piece)} bytes do not hold exactly the {count} strings "
            f"of shape {short(given.shape)}"
        )
    return found


def _from_json(given: RequestInput, count: int) -> NDArray[Any] | list[str]:
    if given.data is None:
        raise malformed(f"{short(given.name)}: neither data nor binary_data_size")
    flat = _flatten(given, given.data, count)
    low, high, kinds = _ACCEPTED[given.datatype]
    for value in flat:
        # NaN fails every comparison, and bool is an int to Python
        if type(value) not in kinds or (kinds != _TEXT and not low <= value <= high):
            raise malformed(f"{short(given.name)}: {short(value)} is no {given.datatype}")
    return flat if given.datatype == "BYTES" else np.array(flat, DTYPES[given.datatype])


def _flatten(given: RequestInput, data: list[Any], count: int) -> list[Any]:
    """Data as one list, whether it came flat or nested as the shape says."""
    flat = data
    if data and type(data[0]) is list:
        parts: list[Any] = [data]
        for size in given.shape:
            if any(type(part) is not list or len(part) != size for part in parts):
                raise malformed(
                    f"{short(given.name)}: data is not nested as shape {short(given.shape)} says"
                )
            parts = [inner for part in parts for inner in part]
        flat = parts
    if len(flat) != count:
        raise malformed(
            f"{short(given.name)}: {len(flat)} values for shape {short(given.shape)}; "
            f"expected {count}"
        )
    return flat


_TEXT = (str,)


def _accepted(dtype: np.dtype[Any]) -> tuple[Any, Any, tuple[type, ...]]:
    if dtype.kind == "f":
        limit = float(np.finfo(dtype).max)
        return -limit, limit, (int, float)
    limits = np.iinfo(dtype)
    return int(limits.min), int(limits.max), (int,)


# lowest, highest and type of the JSON values that a datatype takes
_ACCEPTED = {name: _accepted(dtype) for name, dtype in DTYPES.items()} | {"BYTES": ("", "", _TEXT)}

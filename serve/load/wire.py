"""What the load generator says to a service, and the images in what it answers."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mmf_deploy.errors import ConfigError, nearest
from mmf_deploy.spec import SampleSpec

JSON_PART = "Inference-Header-Content-Length"
"""Header of a reply that has tensors after its JSON, which is so long."""
LARGEST_OPENAI = 10
"""Most images that a request of OpenAI's API may ask for."""


class Asked(NamedTuple):
    """What is asked for: images of seeds ``first`` … ``first + images - 1``."""

    first: int
    images: int
    deadline_ms: float | None

    @property
    def seeds(self) -> list[int]:
        """The seed of every image."""
        return list(range(self.first, self.first + self.images))


class Wire(Protocol):
    """One way to ask for images.

    Attributes:
        path: where requests go, from the root on.
        headers: of every request.
    """

    path: str
    headers: dict[str, str]

    def body(self, asked: Asked) -> bytes:
        """The body of a request."""
        ...

    def images(self, body: bytes, head: int = 0) -> NDArray[Any]:
        """The images in a reply: uint8 [n, H, W, C], or float32 [n, D] vectors.

        Args:
            head: length of its JSON part, if there is something after it.
        Raises:
            Exception: any; it is no such reply.
        """
        ...


class Native:
    """POST /v1/generate, with the reply as .npy, one PNG, or JSON with PNGs."""

    path = "/v1/generate"

    def __init__(self, form: str) -> None:
        accept, self._read = _FORMS[form]
        self.headers = {"Accept": accept, "Content-Type": "application/json"}

    def body(self, asked: Asked) -> bytes:
        """One seed and how many from there on; labels are left to the service."""
        fields: dict[str, Any] = {"n": asked.images, "seed": asked.first}
        if asked.deadline_ms is not None:
            fields["deadline_ms"] = asked.deadline_ms
        return _json(fields)

    def images(self, body: bytes, head: int = 0) -> NDArray[Any]:
        """Read the form that was asked for."""
        return self._read(body)


class OpenAI:
    """POST /v1/images/generations, with PNGs in base64."""

    path = "/v1/images/generations"
    headers: dict[str, str] = {"Content-Type": "application/json"}  # noqa: RUF012

    def body(self, asked: Asked) -> bytes:
        """The prompt says nothing: the seeds do, and the service's default labels."""
        fields = {"prompt": "", "n": asked.images, "seed": asked.first,
                  "response_format": "b64_json", "output_format": "png"}  # fmt: skip
        if asked.deadline_ms is not None:
            fields["deadline_ms"] = asked.deadline_ms
        return _json(fields)

    def images(self, body: bytes, head: int = 0) -> NDArray[Any]:
        """``data`` has one PNG an image."""
        return np.stack([_png64(image["b64_json"]) for image in json.loads(body)["data"]])


class KServe:
    """POST /v2/models/NAME/infer, with the reply's tensor as bytes after its JSON."""

    headers: dict[str, str] = {"Content-Type": "application/json"}  # noqa: RUF012

    def __init__(self, model: str) -> None:
        self.path = f"/v2/models/{model}/infer"

    def body(self, asked: Asked) -> bytes:
        """Seeds as one tensor; labels and guidance are left to the service."""
        tensor = {"name": "seed", "shape": [asked.images], "datatype": "INT64", "data": asked.seeds}
        parameters: dict[str, Any] = {"binary_data_output": True}
        if asked.deadline_ms is not None:
            parameters["deadline_ms"] = asked.deadline_ms
        return _json({"inputs": [tensor], "parameters": parameters})

    def images(self, body: bytes, head: int = 0) -> NDArray[Any]:
        """The only output, little-endian after the JSON part."""
        (output,) = json.loads(body[:head])["outputs"]
        dtype = {"UINT8": "u1", "FP32": "<f4"}[output["datatype"]]
        return np.frombuffer(body[head:], dtype).reshape(output["shape"])


def wire(protocol: str, form: str, model: str, spec: SampleSpec, images: int) -> Wire:
    """How to ask, from what a person wrote.

    Args:
        protocol: "native", "openai" or "kserve".
        form: of the reply, for "native": "npy", "png" or "json".
        model: what the service calls the model, for "kserve".
        images: in one request.
    Raises:
        ConfigError: no such protocol or form, or one that cannot carry such requests.
    """
    if protocol not in PROTOCOLS:
        raise ConfigError(f"--protocol {protocol!r}{nearest(protocol, PROTOCOLS)}: "
                          f"expected one of {', '.join(PROTOCOLS)}")  # fmt: skip
    if form not in _FORMS:
        raise ConfigError(
            f"--format {form!r}{nearest(form, _FORMS)}: expected one of {', '.join(_FORMS)}"
        )
    pictures = protocol == "openai" or (protocol == "native" and form != "npy")
    if pictures and not spec.is_image:
        raise ConfigError("this generator makes vectors, not images: --format npy")
    if protocol == "native":
        if form == "png" and images > 1:
            raise ConfigError(
                f"--format png with --images {images} is one picture of all of them, which cannot "
                "be checked one by one: --format npy or json"
            )
        return Native(form)
    if protocol == "openai" and images > LARGEST_OPENAI:
        raise ConfigError(f"--images {images}: OpenAI's API takes at most {LARGEST_OPENAI}")
    return OpenAI() if protocol == "openai" else KServe(model)


PROTOCOLS = ("native", "openai", "kserve")


def _json(content: object) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


_HEADS: dict[bytes, tuple[np.dtype[Any], tuple[int, ...], int]] = {}
"""What the heads of .npy files say; there are only a few different ones in a run."""


def _npy(body: bytes) -> NDArray[Any]:
    head = body[: 10 + int.from_bytes(body[8:10], "little")]
    if head not in _HEADS:
        first = np.load(io.BytesIO(body), allow_pickle=False)
        _HEADS[head] = (first.dtype, first.shape, len(head))
    dtype, shape, start = _HEADS[head]
    return np.frombuffer(body, dtype, offset=start).reshape(shape)


def _png(body: bytes) -> NDArray[np.uint8]:
    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(body)))
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _png64(text: str) -> NDArray[np.uint8]:
    return _png(base64.b64decode(text))


def _pngs(body: bytes) -> NDArray[np.uint8]:
    return np.stack([_png64(image["png_base64"]) for image in json.loads(body)["images"]])


_FORMS: dict[str, tuple[str, Callable[[bytes], NDArray[Any]]]] = {
    "npy": ("application/x-npy", _npy),
    "png": ("image/png", lambda body: _png(body)[None]),
    "json": ("application/json", _pngs),
}

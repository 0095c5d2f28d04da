"""Server-sent events: from bytes to events to images."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmf_deploy.errors import ServiceError

from .replies import pixels


@dataclass(frozen=True)
class StreamedImage:
    """One image of a stream, as soon as it is there.

    Attributes:
        index: its place in the request; images may come in any order.
        image: uint8 [H, W, C], or float32 [D] for models of vectors.
        digest: of the bundle that made it.
        label: None for models without classes.
        guidance: None for models without a guidance scale.
    """

    index: int
    seed: int
    image: NDArray[Any]
    digest: str
    label: int | None = None
    guidance: float | None = None


@dataclass
class EventReader:
    """Splits a stream of bytes into events; it does not matter where the pieces are cut."""

    _pieces: list[bytes] = field(default_factory=list)
    _name: str = ""
    _data: list[str] = field(default_factory=list)

    def feed(self, chunk: bytes) -> Iterator[tuple[str, str]]:
        """The events (name, data) that are complete with this chunk."""
        head, newline, rest = chunk.partition(b"\n")
        while newline:
            line = b"".join([*self._pieces, head]).removesuffix(b"\r").decode("utf-8", "replace")
            self._pieces.clear()
            if line:
                self._field(line)
            else:
                name, data = self._name, self._data
                self._name, self._data = "", []
                if data:
                    yield name or "message", "\n".join(data)
            head, newline, rest = rest.partition(b"\n")
        if head:
            self._pieces.append(head)

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")  # a comment has an empty name
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._name = value


class ImageStream:
    """What the events of one stream mean.

    Args:
        body: of the request.
        headers: of the reply.

    Attributes:
        done: whether the service said that this was all.
        arrived: how many images came.
    """

    def __init__(self, body: Mapping[str, Any] | None, headers: Mapping[str, str]) -> None:
        first = (body or {}).get("seed")
        self.done = False
        self.arrived = 0
        self._digest = headers.get("x-mmf-bundle", "")
        self._seeds = "seeds[index]" if first is None else f"{first} + index"
        self._events = EventReader()

    def feed(self, chunk: bytes) -> Iterator[StreamedImage]:
        """The images that are complete with this chunk.

        Raises:
            ServiceError: the service broke off with an error, or sent what cannot be read.
        """
        for name, data in self._events.feed(chunk):
            if name in ("image", "sample"):
                self.arrived += 1
                yield _image(data, self._digest)
            elif name == "error":
                raise self._broken(_error(data))
            self.done = self.done or name == "done"

    def check_done(self, cause: Exception | None = None) -> None:
        """Raise ServiceError if the stream ended early; ``cause`` is what the connection said."""
        if not self.done:
            why = "" if cause is None else f": {str(cause) or type(cause).__name__}"
            raise self._broken({"message": f"the connection ended{why}"}) from cause

    def _broken(self, error: dict[str, Any]) -> ServiceError:
        message = " ".join(str(error.get("message")).split())
        return ServiceError(
            f"the stream broke off after {self.arrived} images: {message}; those that came are "
            f"whole, ask again for the others by their seeds ({self._seeds})",
            code=str(error.get("code") or "stream_broken"),
            message=message,
        )


def _image(data: str, digest: str) -> StreamedImage:
    try:
        fields = json.loads(data)
        if "sample" in fields:
            image: NDArray[Any] = np.asarray(fields["sample"], np.float32)
        else:
            image = pixels(base64.b64decode(fields["png_base64"], validate=True))
        given = {name: fields.get(name) for name in ("label", "guidance")}
        return StreamedImage(fields["index"], fields["seed"], image, digest, **given)
    except (ValueError, KeyError, TypeError, OSError, binascii.Error) as e:
        raise ServiceError(f"an image of the stream cannot be read ({e}); ask again") from e


def _error(data: str) -> dict[str, Any]:
    try:
        error = json.loads(data)["error"]
        return error if isinstance(error, dict) else {"message": error}
    except (ValueError, KeyError, TypeError):
        return {"message": data[:200]}

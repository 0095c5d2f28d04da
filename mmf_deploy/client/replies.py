"""What the replies of the service say: images, and errors."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmf_deploy.errors import BusyError, ServiceError, UnreachableError

from .retry import Tries, retry_after_s

if TYPE_CHECKING:
    import httpx


@dataclass(frozen=True)
class Made:
    """Where images come from, and what they cost.

    Attributes:
        seeds, labels, guidance: one an image; None where the model takes none. The seeds of an
            interpolation are its two ends, and a trajectory has one of each.
        digest: of the bundle that made them; with it a seed means the same image for ever.
        model: the name that it is served under, or None.
        timing_ms: milliseconds by phase: queue, infer, encode.
        request_id: what the service's log calls this request, or None.
    """

    seeds: tuple[int, ...]
    labels: tuple[int, ...] | None
    guidance: tuple[float, ...] | None
    digest: str
    variant: str
    model: str | None
    timing_ms: dict[str, float]
    request_id: str | None


@dataclass(frozen=True)
class Images(Made):
    """Generated images.

    Attributes:
        array: uint8 [n, H, W, C], or float32 [n, D] for models of vectors. The n images are the
            frames of an interpolation, or the points of a trajectory.
    """

    array: NDArray[Any]

    def __len__(self) -> int:
        """How many images."""
        return len(self.array)


@dataclass(frozen=True)
class Encoded(Made):
    """An image file in memory.

    Attributes:
        data: the file's content.
        media_type: for example image/png.
    """

    data: bytes
    media_type: str


def images(reply: httpx.Response) -> Images:
    """Read a reply of media type application/x-npy.

    Raises:
        ServiceError: it is something else.
    """
    try:
        array = np.load(io.BytesIO(reply.content), allow_pickle=False)
        return Images(**_made(reply.headers), array=array)
    except (ValueError, EOFError, KeyError, OSError) as e:
        raise unreadable(reply, e) from e


def encoded(reply: httpx.Response) -> Encoded:
    """Read a reply that is one image file.

    Raises:
        ServiceError: it is something else.
    """
    media_type = reply.headers.get("content-type", "").partition(";")[0]
    try:
        if not media_type.startswith("image/"):
            raise ValueError(f"it is {media_type or 'of no media type'}")
        return Encoded(**_made(reply.headers), data=reply.content, media_type=media_type)
    except (ValueError, KeyError) as e:
        raise unreadable(reply, e) from e


def document(reply: httpx.Response) -> dict[str, Any]:
    """Read a reply that is a JSON object.

    Raises:
        ServiceError: it is something else.
    """
    try:
        content = json.loads(reply.content)
        if not isinstance(content, dict):
            raise ValueError("not an object")
        return content
    except ValueError as e:
        raise unreadable(reply, e) from e


def listing(reply: httpx.Response) -> list[dict[str, Any]]:
    """Read a reply that is a list in the manner of OpenAI.

    Raises:
        ServiceError: it is something else.
    """
    found = document(reply).get("data")
    if not isinstance(found, list):
        raise unreadable(reply, KeyError("data"))
    return found


def pixels(data: bytes) -> NDArray[np.uint8]:
    """An image file's content as uint8 [H, W, C]."""
    with Image.open(io.BytesIO(data)) as image:
        array = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
    return array[:, :, None] if array.ndim == 2 else array


def _made(headers: Mapping[str, str]) -> dict[str, Any]:
    """The fields of ``Made``; KeyError or ValueError if this is no reply of ours."""

    def each(name: str, kind: type) -> tuple[Any, ...] | None:
        text = headers.get(name)
        return None if text is None else tuple(kind(part) for part in text.split(","))

    return {
        "seeds": tuple(int(part) for part in headers["x-mmf-seeds"].split(",")),
        "labels": each("x-mmf-labels", int),
        "guidance": each("x-mmf-guidance", float),
        "digest": headers["x-mmf-bundle"],
        "variant": headers["x-mmf-variant"],
        "model": headers.get("x-mmf-model"),
        "timing_ms": _timing(headers.get("server-timing", "")),
        "request_id": headers.get("x-request-id"),
    }


def _timing(text: str) -> dict[str, float]:
    """``queue;dur=1.5, infer;dur=2`` as {"queue": 1.5, "infer": 2.0}."""
    found = {}
    for metric in text.split(","):
        name, *parameters = (part.strip() for part in metric.split(";"))
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key == "dur":
                found[name] = float(value)
    return found


def unreadable(reply: httpx.Response, cause: Exception) -> ServiceError:
    """A reply that says success, but is none of ours."""
    return ServiceError(
        f"the reply of {_where(reply)} cannot be read ({cause}); is this the address of an "
        "mmf-serve of this version?",
        status=reply.status_code,
        request_id=reply.headers.get("x-request-id"),
    )


def refusal(reply: httpx.Response, tries: Tries) -> ServiceError:
    """The error that a reply with an error status stands for, after its last attempt."""
    status = reply.status_code
    message, code, field = _said(reply)
    later_s = retry_after_s(reply.headers)
    request_id = reply.headers.get("x-request-id")
    notes = [f"HTTP {status} from {_where(reply)}"]
    if tries.attempts > 1:
        notes.append(f"{tries.attempts} attempts in {tries.taken_s:.1f} s")
    if request_id is not None:
        notes.append(f"request {request_id}")
    busy = status in (429, 503)
    text = f"{message}{_advice(status, busy, later_s, tries)} ({', '.join(notes)})"
    return (BusyError if busy else ServiceError)(
        text,
        status=status,
        code=code,
        message=message,
        field=field,
        request_id=request_id,
        retry_after_s=later_s,
    )


def _advice(status: int, busy: bool, later_s: float | None, tries: Tries) -> str:
    if status == 401:
        return "; pass Client(url, api_key=…)"
    if not busy:
        return ""
    when = "" if later_s is None else f" in {later_s:g} s"
    limits = f"timeout_s ({tries.patience.timeout_s:g})"
    if tries.patience.max_retries is not None:
        limits += f" or max_retries ({tries.patience.max_retries})"
    return f"; try again{when}, or raise {limits}"


def _said(reply: httpx.Response) -> tuple[str, str, str | None]:
    """Message, code and field of an error reply, in whichever of the service's formats."""
    try:
        error = json.loads(reply.content)["error"]
    except (ValueError, KeyError, TypeError):
        # a proxy's page, or another service
        error = reply.reason_phrase or "an error without a word"
    if not isinstance(error, dict):
        error = {"message": error}
    message = " ".join(str(error.get("message") or reply.reason_phrase).split())
    field = error.get("field") or error.get("param")
    code = error.get("code") or error.get("type") or f"http_{reply.status_code}"
    return message[:500], str(code), None if field is None else str(field)


def no_reply(url: str, cause: Exception, tries: Tries, timed_out: bool) -> UnreachableError:
    """The error of a call whose last attempt got no reply."""
    attempts = f"{tries.attempts} attempt{'s' if tries.attempts > 1 else ''}"
    spent = f"{attempts} in {tries.taken_s:.1f} s"
    if timed_out:
        limit_s = tries.patience.timeout_s
        text = f"{url}: no reply in time ({spent}); raise timeout_s ({limit_s:g}) or ask for less"
        return UnreachableError(text, code="timeout")
    why = " ".join(str(cause).split()) or type(cause).__name__
    return UnreachableError(
        f"{url}: {why} ({spent}); is mmf-serve running there?", code="unreachable"
    )


def _where(reply: httpx.Response) -> str:
    return f"{reply.request.method} {reply.request.url}"

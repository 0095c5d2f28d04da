"""What the client asks of the service: every call as a value that a transport carries out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypedDict, TypeVar
from urllib.parse import quote, urlencode, urlsplit

from mmf_deploy import images, noise
from mmf_deploy.errors import ConfigError, RequestError

from . import replies

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
Kind = Literal["png", "jpeg", "webp"]

NPY = "application/x-npy"
EVENTS = "text/event-stream"
ADDRESS = "http://HOST:PORT or https://HOST"


class Wanted(TypedDict, total=False):
    """What to generate; None, like leaving it out, is the service's default.

    seed is that of the first image, the others count up; seeds has one an image. labels is a class
    number or name for all, or a list with one an image. deadline_ms counts from the call on,
    retries included. size (pixels of height, a multiple of the model's) and quality (1 to 100, of
    jpeg and webp) are for image files.
    """

    seed: int | None
    seeds: Sequence[int] | None
    labels: int | str | Sequence[int | str] | None
    guidance: float | None
    steps: int | None
    size: int | None
    quality: int | None
    model: str | None
    priority: Literal["high", "normal", "low"] | None
    deadline_ms: float | None


class WantedWay(TypedDict, total=False):
    """What an interpolation or a trajectory is of; None, like leaving it out, is the default.

    label is one class number or name, for every point. All else is as in ``Wanted``.
    """

    label: int | str | None
    guidance: float | None
    steps: int | None
    model: str | None
    priority: Literal["high", "normal", "low"] | None
    deadline_ms: float | None


@dataclass(frozen=True)
class Call(Generic[T]):
    """One call.

    Attributes:
        read: what its reply means; raises ServiceError if it means nothing.
        body: the JSON object to send; None sends none.
        deadline_ms: kept apart from the body, because it shrinks from attempt to attempt.
    """

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    accept: str = "application/json"
    body: Mapping[str, Any] | None = None
    deadline_ms: float | None = None

    def content(self, deadline_left_ms: float | None) -> bytes | None:
        """The request's body, or None.

        Raises:
            RequestError: a value has no place in JSON.
        """
        if self.body is None:
            return None
        deadline = {} if deadline_left_ms is None else {"deadline_ms": deadline_left_ms}
        try:
            return json.dumps({**self.body, **deadline}, allow_nan=False, default=_plain).encode()
        except (TypeError, ValueError) as e:
            raise RequestError(f"the request cannot be written as JSON: {e}") from e


def generate(n: int | None, wanted: Wanted) -> Call[replies.Images]:
    """Images as an array."""
    return _generation(n, wanted, NPY, replies.images)


def encoded(kind: Kind, n: int | None, wanted: Wanted) -> Call[replies.Encoded]:
    """One image file; of several images the service makes one grid."""
    return _generation(n, wanted, _media_type(kind), replies.encoded)


def stream(n: int | None, wanted: Wanted) -> Call[None]:
    """Images one by one; the reply is read as it comes, not by the call."""
    return _generation(n, wanted, EVENTS, _nothing)


def _generation(
    n: int | None, wanted: Wanted, accept: str, read: Callable[[httpx.Response], T]
) -> Call[T]:
    asked: dict[str, Any] = {"n": n, **wanted}
    if asked.get("seeds") is None:
        asked["seed"] = _fixed(asked.get("seed"))
    return _post("/v1/generate", asked, accept, read)


def interpolate(
    start: int, end: int, frames: int | None, wanted: WantedWay
) -> Call[replies.Images]:
    """The frames between two seeds as an array."""
    asked = {"from": start, "to": end, "frames": frames, **wanted}
    return _post("/v1/interpolate", asked, NPY, replies.images)


def trajectory(seed: int | None, wanted: WantedWay) -> Call[replies.Images]:
    """The points between the noise of a seed and its image as an array."""
    asked = {"seed": _fixed(seed), **wanted}
    return _post("/v1/trajectory", asked, NPY, replies.images)


def _fixed(seed: int | None) -> int:
    """A seed that is known before the first attempt: a retry then gives the same images."""
    return noise.random_seed() if seed is None else seed


def _post(
    path: str, asked: Mapping[str, Any], accept: str, read: Callable[[httpx.Response], T]
) -> Call[T]:
    body = {name: value for name, value in asked.items() if value is not None}
    deadline_ms = body.pop("deadline_ms", None)
    return Call("POST", path, read, accept, body, deadline_ms)


def model(name: str | None) -> Call[dict[str, Any]]:
    """What is served under a name, or by default."""
    path = "/v1/model" if name is None else "/v1/model?" + urlencode({"model": name})
    return Call("GET", path, replies.document)


def models() -> Call[list[dict[str, Any]]]:
    """Everything that is served."""
    return Call("GET", "/v1/models", replies.listing)


def readiness() -> Call[None]:
    """An error unless the service is ready."""
    return Call("GET", "/readyz", _nothing)


def image_path(
    digest: str, label: int | None, seed: int, kind: Kind, query: Mapping[str, object]
) -> str:
    """The path and query of an image that never changes."""
    _media_type(kind)
    extension = "jpg" if kind == "jpeg" else kind
    which = "-" if label is None else str(label)
    path = f"/v1/images/{quote(digest, safe='')}/{quote(which, safe='')}/{noise.check_seed(seed)}"
    given = {name: str(value) for name, value in query.items() if value is not None}
    return f"{path}.{extension}{'?' + urlencode(given) if given else ''}"


def base_url(url: str) -> str:
    """The address of a service without a slash at its end.

    Raises:
        ConfigError: it is none.
    """
    if not re.fullmatch(r"https?://[^/?#\s]+[^?#\s]*", url):
        raise ConfigError(f"url {url!r}: expected {ADDRESS}")
    try:
        urlsplit(url).port  # noqa: B018  it is read when it is asked for
    except ValueError as e:
        raise ConfigError(f"url {url!r}: {e}; expected {ADDRESS}") from None
    return url.rstrip("/")


def headers(api_key: str | None) -> dict[str, str]:
    """What every request carries.

    Raises:
        ConfigError: the key cannot be sent in a header.
    """
    if api_key is None:
        return {}
    if not re.fullmatch(r"[!-~]+", api_key):
        raise ConfigError(
            "api_key: expected printable ASCII without blanks or line ends; strip what was read"
        )
    return {"Authorization": f"Bearer {api_key}"}


def _nothing(reply: httpx.Response) -> None:
    """The status says it all."""


def _media_type(kind: str) -> str:
    if kind not in images.MEDIA_TYPES:
        have = ", ".join(images.MEDIA_TYPES)
        raise RequestError(f"image format {kind!r}: expected one of {have}", field="format")
    return images.MEDIA_TYPES[kind]


def _plain(value: object) -> object:
    """NumPy's numbers and arrays, ranges and other iterables as JSON knows them."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Iterable):
        return list(value)
    raise TypeError(f"{value!r} is no number, text or list")

"""What a route gets back: images, what they were made of, and how long it took."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from numpy.typing import NDArray

from .encoding import Encode
from .model import Loaded
from .samples import Item

T = TypeVar("T")


class Encoding(NamedTuple, Generic[T]):
    """What to do with each image.

    Attributes:
        kind: names it, as far as its cost goes: format and size.
        encode: called with the item and its value, in the encoding pool.
    """

    kind: object
    encode: Encode[T]


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time of a request went.

    Attributes:
        queue_ms: from the request's arrival to the start of its first batch.
        infer_ms: from there to the end of its last batch.
        finished_s: when that was, on ``clock``.
        bucket, padding: size of its largest batch as the engine ran it, and empty places in it.
    """

    queue_ms: float
    infer_ms: float
    finished_s: float
    bucket: int
    padding: int
    clock: Callable[[], float]

    @property
    def encode_ms(self) -> float:
        """From the end of its last batch until now."""
        return (self.clock() - self.finished_s) * 1000

    def header(self) -> str:
        """As a Server-Timing header."""
        return (
            f"queue;dur={self.queue_ms:.3f}, infer;dur={self.infer_ms:.3f}, "
            f"encode;dur={self.encode_ms:.3f}, bucket;desc={self.bucket}, "
            f"padding;desc={self.padding}"
        )


@dataclass(frozen=True, slots=True)
class Piece(Generic[T]):
    """One encoded image of a stream, its place in the request, and the times up to it."""

    index: int
    item: Item
    encoded: T
    timing: Timing


@dataclass(frozen=True)
class Made(Generic[T]):
    """Everything a reply is made of.

    Attributes:
        values: uint8 [n, H, W, C], float32 [n, D] for vectors, uint8 [n, K + 1, H, W, C] for
            trajectories, in the request's order.
        encoded: what the encoding gave, one an image; empty without one.
        on_reply: told when the reply is made, to count and log its times.
    """

    loaded: Loaded
    variant: str
    items: list[Item]
    values: NDArray[Any]
    encoded: list[T]
    timing: Timing
    on_reply: Callable[[Made[T]], None]

    def headers(self) -> dict[str, str]:
        """What every reply says of its making, whatever the protocol; asked for when it is made."""
        self.on_reply(self)
        return {
            "Server-Timing": self.timing.header(),
            "X-MMF-Model": self.loaded.name,
            "X-MMF-Bundle": self.loaded.digest,
            "X-MMF-Variant": self.variant,
        }

"""What encoded images are before they become a source: samples, and the keys common to them."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, Field

from .decode import Encoded

MIB = 2**20


class ImageOptions(BaseModel):
    """Keys of every source of encoded images.

    Attributes:
        size: side in pixels of the central square that is kept; None keeps images whole.
        channels: 1, 3, or auto: 3 as soon as one image is stored in colour.
        resident_mb: a set that needs more memory than this once decoded is decoded on demand.
        max_skip_fraction: refuse the set when more of its images than this are unreadable.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int | None = Field(None, ge=1)
    channels: Literal["auto", 1, 3] = "auto"
    resident_mb: float = Field(2048, ge=0.0)
    max_skip_fraction: float = Field(0.05, ge=0.0, le=1.0)

    @property
    def fixed_channels(self) -> Literal[1, 3] | None:
        """1 or 3, or None where the images tell."""
        return None if self.channels == "auto" else self.channels

    def fits(self, count: int, height: int, width: int) -> bool:
        """Whether so many decoded images may stay in memory."""
        return count * height * width * (self.fixed_channels or 3) <= self.resident_mb * MIB


class Sample(NamedTuple):
    """One encoded image: how to name it, its path or content, its class if it has one."""

    name: str
    encoded: Encoded
    label: int | None


class Samples(Protocol):
    """Encoded images that can be indexed from several threads."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...

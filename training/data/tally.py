"""The count of what was found while a set of images was read, and what is said about it."""

from __future__ import annotations

from dataclasses import dataclass, field

from mmf_deploy.errors import ConfigError

from .decode import Header
from .image_samples import ImageOptions, Sample

NAMED = 3


@dataclass
class Tally:
    """What was found while reading, and the notes that come of it."""

    shape: tuple[int, int] | None
    read: int = 0
    grey: int = 0
    enlarged: int = 0
    unreadable: list[str] = field(default_factory=list)
    reason: str = ""

    def add(self, sample: Sample, header: Header | str, options: ImageOptions, where: str) -> bool:
        """Count one image, given its header or why it is unreadable; True if it is readable.

        Raises:
            ConfigError: whole images of different sizes.
        """
        if isinstance(header, str):
            self.unreadable.append(sample.name)
            self.reason = self.reason or header
            return False
        height, width, colour = header
        self.read += 1
        self.grey += not colour
        if options.size is not None:
            self.enlarged += min(height, width) < options.size
            return True
        self.shape = self.shape or (height, width)
        if self.shape != (height, width):
            raise ConfigError(
                f"{where}: images differ in size: {self.shape[1]}×{self.shape[0]} and "
                f"{width}×{height} ({sample.name}); set data.size, e.g. data.size=32"
            )
        return True

    def check(self, options: ImageOptions, where: str) -> None:
        """Refuse a set with too many unreadable images.

        Raises:
            ConfigError: more of them than ``max_skip_fraction``, or all.
        """
        total = self.read + len(self.unreadable)
        if not self.read or len(self.unreadable) > options.max_skip_fraction * total:
            raise ConfigError(
                f"{where}: {self._skipped()} ({self.reason}); remove them, or allow more with "
                f"data.max_skip_fraction (now {options.max_skip_fraction:g})"
            )

    def notes(self, options: ImageOptions, channels: int) -> tuple[str, ...]:
        """A line for each thing that whoever trains on this should know."""
        lines = [f"{self._skipped()}; they are left out"] if self.unreadable else []
        if channels == 3 and self.grey:
            lines.append(f"{self.grey:,} of {self.read:,} images are grey; converted to colour")
        if channels == 1 and self.grey < self.read:
            colour = self.read - self.grey
            lines.append(f"{colour:,} of {self.read:,} images are in colour; converted to grey")
        if self.enlarged:
            lines.append(
                f"{self.enlarged:,} of {self.read:,} images are smaller than "
                f"{options.size}×{options.size} and were enlarged"
            )
        return tuple(lines)

    def _skipped(self) -> str:
        listed = ", ".join(self.unreadable[:NAMED]) + (", …" * (len(self.unreadable) > NAMED))
        total = self.read + len(self.unreadable)
        return f"{len(self.unreadable):,} of {total:,} images cannot be read: {listed}"

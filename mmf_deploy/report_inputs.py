"""What `mmf report` joins: the results it finds, and their pictures."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmf_deploy import files, results
from mmf_deploy.errors import ConfigError
from mmf_deploy.results import Picture, Result

ORDER = (
    "bench", "profile", "limit", "step", "load", "service", "litserve", "ray", "plan", "demo",
    "web-page", "scale", "peers", "repeat",
)  # fmt: skip
"""Kinds of result, as they follow each other; others come last, as they were given."""
PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Image:
    """A picture of a result.

    Attributes:
        png: its bytes; empty where there is a ``problem``.
        width, height: in pixels.
        problem: why it cannot be shown.
    """

    title: str
    png: bytes = b""
    width: int = 0
    height: int = 0
    problem: str = ""


@dataclass(frozen=True)
class Found:
    """A result, the name of its file with the folder it is in, and its pictures."""

    name: str
    result: Result
    images: tuple[Image, ...]


def find(paths: Sequence[Path], on_skipped: Callable[[str], None]) -> list[Found]:
    """Every result, in the order of a page.

    Args:
        paths: files, and directories, which are searched together with those directly in them.
        on_skipped: called with a line about each JSON in a directory that is no result.
    Raises:
        ConfigError: a path does not exist, a file is no result, or there is no result at all.
    """
    found: dict[Path, Found] = {}
    for path in paths:
        for file in _candidates(path):
            if file.resolve() in found:
                continue
            try:
                found[file.resolve()] = _read(file)
            except ConfigError as e:
                if not path.is_dir():
                    raise
                on_skipped(str(e))
    if not found:
        raise ConfigError(
            f"{', '.join(map(str, paths))}: no result there; expected what a benchmark wrote with "
            "--out, for example: mmf bench --out runs/bench"
        )
    return sorted(found.values(), key=lambda f: _rank(f.result.kind))


def _candidates(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    for pattern in ("*.json", "*/*.json"):
        for file in sorted(path.glob(pattern)):
            hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
            if file.is_file() and not hidden:
                yield file


def _rank(kind: str) -> int:
    return ORDER.index(kind) if kind in ORDER else len(ORDER)


def _read(file: Path) -> Found:
    result = results.read(file)
    images = tuple(_image(file, picture) for picture in result.pictures)
    return Found("/".join(file.absolute().parts[-2:]), result, images)


def _image(file: Path, picture: Picture) -> Image:
    def without(why: str) -> Image:
        return Image(picture.title, problem=f"picture {picture.file!a} {why}")

    if not files.stays_inside(file.parent, picture.file):
        return without("is not in the folder of its result")
    try:
        png = (file.parent / picture.file).read_bytes()
    except FileNotFoundError:
        return without("is missing; it belongs beside the result")
    except OSError as e:
        return without(f"cannot be read ({e.strerror})")
    # signature, length and name of the first chunk, then its width and height
    if not png.startswith(PNG) or len(png) < 24:
        return without("is no PNG")
    width, height = struct.unpack(">II", png[16:24])
    return Image(picture.title, png, width, height)

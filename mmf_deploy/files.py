"""Files that are whole or absent: hashes, atomic writes, paths that stay inside."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a kill, sees the old one or the new one whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of ``path``; on success it takes the name, else it vanishes.

    An existing ``path`` is replaced: it is moved aside first and removed last. A kill between
    the two moves leaves it aside, whole; the next call for the same path moves it back.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _recover(path)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for file in sorted(temporary.rglob("*")):
            if file.is_file():
                _sync(file)
        _sync(temporary)
        _swap(temporary, path)
        _sync(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _recover(path: Path) -> None:
    name = re.compile(rf"\.(old|tmp)-(\d+)-{re.escape(path.name)}")
    for entry in list(path.parent.iterdir()):
        match = name.fullmatch(entry.name)
        if match is None or _runs(int(match[2])):
            continue
        if match[1] == "old" and not path.exists():
            entry.rename(path)
        else:
            shutil.rmtree(entry, ignore_errors=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _swap(temporary: Path, path: Path) -> None:
    if not path.exists():
        temporary.rename(path)
        return
    aside = path.with_name(f".old-{os.getpid()}-{path.name}")
    path.rename(aside)
    temporary.rename(path)
    shutil.rmtree(aside)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_leftovers(directory: Path) -> None:
    """Remove what a killed ``atomic_directory`` left behind in ``directory``."""
    for leftover in directory.glob(".tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def stays_inside(directory: Path, name: str) -> bool:
    """True if the relative path ``name`` names a file inside ``directory``, links followed."""
    pure = PurePosixPath(name)
    if not name or "\\" in name or pure.is_absolute() or ".." in pure.parts:
        return False
    try:
        fits = len(os.fsencode(name)) <= 255
        # not Path.resolve, which raises on a loop of links
        target = Path(os.path.realpath(directory / name))
    except ValueError:  # a null byte, half a character
        return False
    return fits and target.is_relative_to(os.path.realpath(directory))

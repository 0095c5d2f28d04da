"""Who may come in: names and passwords from options, the environment, or a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmf_deploy.errors import ConfigError

Guest = tuple[str, str]


def guests(given: Sequence[str], file: Path | None) -> list[Guest]:
    """Names and passwords; nobody in particular, so everybody, if there are none.

    Args:
        given: each ``USER:PASSWORD``.
        file: the same, one a line; empty lines and those that begin with # are passed over.
    Raises:
        ConfigError: one is none, a name comes twice, or the file cannot be read.
    """
    found = [_guest(text, "--auth") for text in given]
    if file is not None:
        found += _from(file)
    names = [name for name, _ in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"user {twice!r} is given twice; one password each")
    return found


def _from(file: Path) -> list[Guest]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as e:
        raise ConfigError(f"--auth-file {file}: cannot be read ({e})") from e
    found = [
        _guest(line.strip(), f"--auth-file {file}, line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.startswith("#")
    ]
    if not found:
        raise ConfigError(f"--auth-file {file}: names nobody; expected USER:PASSWORD lines")
    return found


def _guest(text: str, where: str) -> Guest:
    name, colon, password = text.partition(":")
    if not (name and colon and password):
        # not the text itself: a part of it may be a password
        raise ConfigError(f"{where}: expected USER:PASSWORD, both not empty")
    return name, password

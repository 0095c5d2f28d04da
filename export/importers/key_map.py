"""Renaming the entries of a weight file: patterns with * and **.

A map is a YAML file of lines ``"pattern": "name"``. In a pattern, ``*`` stands for any text
without a dot and ``**`` for any text; the same wildcards in the name repeat, in order, what
they stood for. ``null`` instead of a name drops the entry. The first pattern that fits
decides; an entry that no pattern fits keeps its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mmf_deploy.errors import ConfigError

_WILDCARD = re.compile(r"\*\*|\*")


@dataclass(frozen=True)
class Rule:
    """One line of a map; ``name`` None drops."""

    pattern: str
    name: str | None

    def __post_init__(self) -> None:
        wildcards = _WILDCARD.findall(self.pattern)
        if self.name is not None and _WILDCARD.findall(self.name) != wildcards:
            raise ConfigError(
                f'"{self.pattern}": "{self.name}": expected the same wildcards on both sides, '
                "in the same order"
            )

    def apply(self, entry: str) -> tuple[bool, str | None]:
        """Whether the pattern fits an entry, and its new name; None drops it."""
        parts = [re.escape(text) for text in _WILDCARD.split(self.pattern)]
        groups = ["(.*)" if w == "**" else "([^.]*)" for w in _WILDCARD.findall(self.pattern)]
        pattern = "".join(a + b for a, b in zip(parts, [*groups, ""], strict=True))
        match = re.fullmatch(pattern, entry, re.DOTALL)
        if match is None or self.name is None:
            return match is not None, None
        texts = iter(match.groups())
        return True, _WILDCARD.sub(lambda _: next(texts), self.name)


@dataclass(frozen=True)
class Renaming:
    """What a map does to the entries of a file.

    Attributes:
        names: new name by old name, None for what is dropped.
        idle: patterns that fit no entry.
    """

    names: dict[str, str | None]
    idle: list[str]

    def sources(self) -> dict[str, str]:
        """Old name by new name, of what is kept."""
        return {new: old for old, new in self.names.items() if new is not None}


def read_map(path: Path) -> list[Rule]:
    """Read a map.

    Raises:
        ConfigError: no such file, or not such a map.
    """
    try:
        content: Any = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"--map {path}: not a readable text file ({e})") from None
    except yaml.YAMLError as e:
        raise ConfigError(
            f"--map {path}: not valid YAML: {' '.join(str(e).split())}; "
            'put names with * into quotes, as in "net.**": "**"'
        ) from None
    if not isinstance(content, dict):
        raise ConfigError(f'--map {path}: expected lines such as "net.**": "**"')
    for pattern, name in content.items():
        if not isinstance(pattern, str) or not isinstance(name, str | None) or name == "":
            raise ConfigError(f"--map {path}: {pattern!r}: {name!r}: expected a name or null")
    try:
        return [Rule(pattern, name) for pattern, name in content.items()]
    except ConfigError as e:
        raise ConfigError(f"--map {path}: {e}") from None


def rename(entries: Iterable[str], rules: list[Rule]) -> Renaming:
    """Apply a map.

    Raises:
        ConfigError: two entries would have the same name.
    """
    names: dict[str, str | None] = {}
    taken: dict[str, str] = {}
    used = set()
    for entry in entries:
        name: str | None = entry
        for rule in rules:
            fits, new = rule.apply(entry)
            if fits:
                name = new
                used.add(rule.pattern)
                break
        if name is not None and name in taken:
            raise ConfigError(
                f"--map: {taken[name]} and {entry} would both be {name}; drop one of them with null"
            )
        names[entry] = name
        if name is not None:
            taken[name] = entry
    return Renaming(names, [r.pattern for r in rules if r.pattern not in used])

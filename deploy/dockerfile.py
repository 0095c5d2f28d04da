"""Reads a Dockerfile into stages, as far as ours needs it; hadolint says whether it is valid."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Step:
    """One instruction: its word in capitals, its ``--name=value`` flags, and the rest."""

    word: str
    flags: dict[str, str]
    text: str

    def words(self) -> list[str]:
        """The arguments, of the JSON form or of the plain one."""
        return list(json.loads(self.text)) if self.text.startswith("[") else shlex.split(self.text)


@dataclass
class Stage:
    """A ``FROM`` and what follows it; ``base`` is an image or an earlier stage."""

    name: str
    base: str
    steps: list[Step] = field(default_factory=list)


def read(path: Path) -> dict[str, Stage]:
    """The stages of a Dockerfile by name, in its order.

    Raises:
        ValueError: a stage without a name.
    """
    stages: list[Stage] = []
    for step in _steps(path.read_text()):
        if step.word == "FROM":
            match step.words():
                case [base, as_, name] if as_.upper() == "AS":
                    stages.append(Stage(name, base))
                case _:
                    raise ValueError(f"{path}: FROM {step.text}: give the stage a name")
        elif stages:  # an ARG before the first stage is for FROM alone
            stages[-1].steps.append(step)
    return {stage.name: stage for stage in stages}


def needed(stages: dict[str, Stage], target: str) -> list[Stage]:
    """What has to be built for ``target``, in order."""
    wanted = {target}
    for stage in reversed(stages.values()):
        if stage.name in wanted:
            wanted |= {stage.base, *(s.flags["from"] for s in stage.steps if "from" in s.flags)}
    return [stage for stage in stages.values() if stage.name in wanted]


def environment(step: Step, before: dict[str, str]) -> dict[str, str]:
    """What an ENV step adds to ``before``; ``$NAME`` in a value is looked up there."""
    pairs = (word.partition("=") for word in step.words())
    return {
        name: re.sub(r"\$\{?(\w+)\}?", lambda m: before.get(m[1], ""), value)
        for name, _, value in pairs
    }


def context(root: Path) -> list[Path]:
    """The files below ``root`` that .dockerignore lets through, relative to it."""
    rules = [r for r in (root / ".dockerignore").read_text().splitlines() if r and r[0] != "#"]

    def ignored(path: Path) -> bool:
        verdict = False
        for rule in rules:
            pattern = rule.removeprefix("!").removeprefix("**/")
            anywhere = rule.startswith("**/")
            parts = [path, *path.parents][:-1]
            names = [p.name if anywhere else p.as_posix() for p in parts]
            if rule == "**" or any(fnmatch.fnmatch(name, pattern) for name in names):
                verdict = not rule.startswith("!")
        return verdict

    def walk(folder: Path) -> Iterator[Path]:
        for entry in sorted(folder.iterdir()):
            relative = entry.relative_to(root)
            if ignored(relative):
                continue
            if entry.is_dir():
                yield from walk(entry)
            else:
                yield relative

    return list(walk(root))


def _steps(text: str) -> Iterator[Step]:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines():
        if not line.strip():
            continue
        word, _, rest = line.strip().partition(" ")
        flags: dict[str, str] = {}
        while match := re.match(r"\s*--([a-z-]+)=(\S+)\s+", rest):
            flags[match[1]] = match[2]
            rest = rest[match.end() :]
        yield Step(word.upper(), flags, rest.strip())

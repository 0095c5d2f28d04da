"""Results in the form that every benchmark writes (mmf_deploy/results.py), as sections of pages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, TypeVar

from mmf_deploy.results import HEAD, Picture, Result, Table

Write = Callable[[dict[str, Any], str], str]
Shown = TypeVar("Shown", Table, Picture)


def common(
    found: dict[str, Any],
    link: str,
    tables: Sequence[str] | None = None,
    pictures: Sequence[str] | None = None,
) -> str:
    """Where it comes from, its tables and its pictures.

    Args:
        found: the content of the file.
        link: to the file, from the page.
        tables, pictures: which of them to show, in this order: words that their titles hold;
            all of them if None.
    Raises:
        SystemExit: there is nothing with such a title.
    """
    folder = PurePosixPath(link).parent
    parts = [origin(found, link)]
    for table in _chosen([Table(**t) for t in found["tables"]], tables, link):
        title = "" if table.title == found["title"] else f"**{table.title}**\n\n"
        parts.append(title + table.markdown())
    for picture in _chosen([Picture(**p) for p in found["pictures"]], pictures, link):
        parts.append(f"![{picture.title}]({folder / picture.file})")
    return "\n\n".join(parts)


def either(before: Write, now: Write = common) -> Write:
    """For files that may be from before there was a common form: ``before`` writes those."""
    return lambda found, link: (now if "format" in found else before)(found, link)


def origin(found: Mapping[str, Any], link: str) -> str:
    """What was measured, on which machine, by which command, with which versions."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return (
        f"{found['title']}. Measured on {machine(found)}, by\n`{found['command']}`\n"
        f"([results]({link})), with {versions}."
    )


def machine(found: Mapping[str, Any]) -> str:
    """``2 cores (AMD EPYC), Linux``, and whatever else it says about itself."""
    rest = dict(found["machine"])
    cores = rest.pop("cores")
    known = f"{cores} {'core' if cores == '1' else 'cores'} ({rest.pop('cpu')})"
    system = [rest.pop("system")] if "system" in rest else []
    return ", ".join([known, *system, *(f"{k.replace('_', ' ')} {v}" for k, v in rest.items())])


def result(kind: str, title: str, found: Mapping[str, Any], tables: Sequence[Table]) -> Result:
    """What a script measured, in the common form.

    Args:
        found: the numbers, with the command and the machine, and versions if it notes them.
    """
    return Result(
        kind=kind,
        title=title,
        command=found["command"],
        machine=found["machine"],
        versions=found.get("versions", {}),
        tables=tables,
        content={name: value for name, value in found.items() if name not in HEAD},
    )


def body(rows: Sequence[Sequence[str]]) -> str:
    """Lines of a Markdown table, without its head."""
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _chosen(shown: list[Shown], words: Sequence[str] | None, link: str) -> list[Shown]:
    if words is None:
        return shown
    by_word = {word: [s for s in shown if word in s.title] for word in words}
    for word, those in by_word.items():
        if not those:
            titles = "; ".join(s.title for s in shown)
            raise SystemExit(f"{link}: nothing is called {word!r}; expected a part of: {titles}")
    return [s for those in by_word.values() for s in those]

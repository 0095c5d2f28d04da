"""What a benchmark leaves behind: one JSON file of one form, and its pictures.

    format     version of this form
    kind       what was measured: bench, step, load, plan …
    title      one line for people
    command    what measures it again
    machine    processor, cores, system (machine.py); versions of the packages that took part
    tables     as a person sees them: on the terminal, in Markdown, in HTML
    pictures   PNG files beside it, with what they show
    …          the numbers themselves, in the fields of each kind

Every benchmark of the project writes it, `mmf report` joins several into one page, and the tables
of the documentation come from committed ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmf_deploy import files
from mmf_deploy.errors import ConfigError, require

if TYPE_CHECKING:
    from rich.console import Console

FORMAT = 1
HEAD = ("format", "kind", "title", "command", "machine", "versions", "tables", "pictures")
WIDTH = 118


@dataclass(frozen=True)
class Table:
    """A table of finished cells; the same on every medium.

    Attributes:
        columns: headings, with their units.
        rows: as many cells as there are columns, in each.
        notes: lines below it.
        left: leading columns that are text and so aligned to the left.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    left: int = 1

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{len(row)} cells in a table of {len(self.columns)} columns")

    def markdown(self) -> str:
        """The table and its notes, without the title."""
        aligned = ["---" if k < self.left else "---:" for k in range(len(self.columns))]
        lines = [list(self.columns), aligned, *self.rows]
        body = "\n".join("| " + " | ".join(map(_markdown_cell, row)) + " |" for row in lines)
        notes = "\n".join(f"- {note}" for note in self.notes)
        return f"{body}\n\n{notes}" if notes else body

    def print(self, console: Console | None = None) -> None:
        """On the terminal; a table wider than that is not cut off."""
        from rich import table as rich_table
        from rich.console import Console
        from rich.text import Text

        shown = rich_table.Table(box=None, padding=(0, 2, 0, 0))
        for k, column in enumerate(self.columns):
            shown.add_column(
                Text(column), justify="left" if k < self.left else "right", no_wrap=True
            )
        for row in self.rows:
            shown.add_row(*map(Text, row))
        needed = Console(width=10_000).measure(shown).maximum
        console = console or Console(width=max(WIDTH, needed), highlight=False)
        console.print(Text(self.title, style="italic"), soft_wrap=True)
        console.print(shown)
        for note in self.notes:
            console.print(note, markup=False, soft_wrap=True)


def _markdown_cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


@dataclass(frozen=True)
class Picture:
    """A PNG beside the result.

    Attributes:
        file: its name.
        title: what it shows; the text for those who do not see it.
    """

    file: str
    title: str


@dataclass(frozen=True)
class Result:
    """One measurement.

    Attributes:
        content: the numbers, in the fields of its kind; none may have a name of ``HEAD``.
    """

    kind: str
    title: str
    command: str
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    content: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if taken := set(self.content) & set(HEAD):
            raise ValueError(f"content may not have {sorted(taken)}")

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        head = {
            "format": FORMAT,
            "kind": self.kind,
            "title": self.title,
            "command": self.command,
            "machine": dict(self.machine),
            "versions": dict(self.versions),
        }
        shown = {
            "tables": [asdict(t) for t in self.tables],
            "pictures": [asdict(p) for p in self.pictures],
        }
        return {**head, **self.content, **shown}


def read(path: Path) -> Result:
    """A result that was written.

    Raises:
        ConfigError: there is none, or it is not of this form.
    """
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; expected the JSON of a benchmark") from None
    except (OSError, ValueError, RecursionError) as e:
        raise ConfigError(f"{path}: cannot be read as JSON ({e})") from e
    form = found.get("format") if isinstance(found, dict) else None
    if form != FORMAT:
        what = "no result" if form is None else f"result format {form!r}, this reads {FORMAT}"
        raise ConfigError(f"{path}: {what}; expected what a benchmark wrote with --out")
    try:
        return Result(
            **{k: str(found[k]) for k in ("kind", "title", "command")},
            machine=_strings(found["machine"]),
            versions=_strings(found["versions"]),
            tables=[_table(table) for table in found["tables"]],
            pictures=[Picture(**_strings(picture)) for picture in found["pictures"]],
            content={k: v for k, v in found.items() if k not in HEAD},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise ConfigError(f"{path}: not the result of a benchmark ({e})") from e


def _strings(found: Mapping[str, Any]) -> dict[str, str]:
    return {str(k): str(v) for k, v in found.items()}


def _table(found: Mapping[str, Any]) -> Table:
    table = Table(**found)
    for texts in ([table.title], table.columns, table.notes, *table.rows):
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
            raise TypeError(f"table {table.title!r}: expected texts in every cell")
    if not isinstance(table.left, int):
        raise TypeError(f"table {table.title!r}: left {table.left!r} is no number of columns")
    return table


def prepare(out: Path, pictures: bool = True) -> None:
    """Make the directory: what would fail after the measurement shall fail before it.

    Raises:
        ConfigError: it is a file.
        DependencyError: there is nothing to draw the pictures with.
    """
    if pictures:
        require("matplotlib", "bench")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: is a file; expected a directory")
    out.mkdir(parents=True, exist_ok=True)


Draw = Callable[[Path], None]


def write(out: Path, name: str, result: Result, draw: Mapping[str, Draw] | None = None) -> str:
    """Write ``name``.json and ``name``.md, and draw the pictures; says where they are.

    Args:
        draw: for the file of each of its pictures, what draws it.
    """
    made = [out / f"{name}.json", out / f"{name}.md"]
    files.write_atomic(made[0], (json.dumps(result.as_dict(), indent=1) + "\n").encode())
    files.write_atomic(made[1], markdown(result).encode())
    for picture in result.pictures:
        made.append(out / picture.file)
        (draw or {})[picture.file](made[-1])
    return f"written: {', '.join(map(str, made))}"


def markdown(result: Result) -> str:
    """The whole result as a Markdown page."""
    parts = [
        f"# {result.title}",
        origin(result),
        *(f"## {table.title}\n\n{table.markdown()}" for table in result.tables),
        *(f"![{picture.title}]({picture.file})" for picture in result.pictures),
    ]
    return "\n\n".join(parts) + "\n"


def origin(result: Result) -> str:
    """Where and how it was measured, as Markdown."""
    machine = ", ".join(f"{k} {v}" for k, v in result.machine.items())
    versions = ", ".join(f"{k} {v}" for k, v in result.versions.items())
    return f"`{result.command}`\n\n{machine}\n\n{versions}"

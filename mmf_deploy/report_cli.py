"""`mmf report`: results as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmf_deploy import files
from mmf_deploy.errors import ConfigError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def report(
    paths: Annotated[
        list[Path],
        typer.Argument(help="JSON files that benchmarks wrote with --out, or their directories."),
    ],
    out: Annotated[Path, typer.Option(help="The page.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Of the page.")] = "Benchmark report",
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite a file that is no such page.")
    ] = False,
) -> None:
    """Join the results of benchmarks into one HTML page that needs nothing else."""
    from mmf_deploy.report_inputs import find
    from mmf_deploy.report_page import page
    from mmf_deploy.report_summary import warnings

    _check(out, force)
    found = find(paths, lambda line: typer.echo(f"skipped: {line}"))
    for one in found:
        for image in one.images:
            if image.problem:
                typer.echo(f"{one.name}: {image.problem}")
    for line in warnings([one.result for one in found]):
        typer.echo(f"warning: {line}")
    # half a character, which JSON can hold, is no text
    data = page(title, found).encode("utf-8", "replace")
    files.write_atomic(out, data)
    joined = "1 result" if len(found) == 1 else f"{len(found)} results"
    typer.echo(f"written: {out}, {len(data) / 1e6:.2f} MB, {joined}; open it in a browser")


def _check(out: Path, force: bool) -> None:
    """A page is made again as often as wanted; any other file is somebody's work."""
    from mmf_deploy.report_page import GENERATOR

    if out.is_dir():
        raise ConfigError(f"--out {out}: is a directory; expected the name of a file")
    if not out.exists() or force:
        return
    with out.open("rb") as f:
        if GENERATOR.encode() not in f.read(1024):
            raise ConfigError(
                f"--out {out}: exists, and mmf report did not write it; give another name, or "
                "--force to overwrite it"
            )

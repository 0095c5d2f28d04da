"""`mmf-bench`: latency per image, per engine and batch size, against PyTorch eager."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmf_deploy.errors import ConfigError, require
from mmf_deploy.progress import TaskProgress

if TYPE_CHECKING:
    from .bench import Report

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def bench(
    bundle: Annotated[
        Path | None, typer.Argument(help="The bundle; the embedded digits if not given.")
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            help="The checkpoint the bundle was made from: PyTorch eager is measured too."
        ),
    ] = None,
    batches: Annotated[str, typer.Option(help="Batch sizes, comma-separated.")] = "1,8,64",
    threads: Annotated[
        str | None,
        typer.Option(help="Compute threads, comma-separated; 1 and all cores if not given."),
    ] = None,
    seconds: Annotated[float, typer.Option(help="Time per batch size, after warm-up.")] = 4.0,
    out: Annotated[
        Path | None, typer.Option(help="Directory for bench.json and bench.png.")
    ] = None,
) -> None:
    """Measure milliseconds per image; each engine in its own process, taking turns in one run."""
    from mmf_deploy import bundle as bundles
    from mmf_deploy.embedded import digits_bundle
    from mmf_deploy.machine import available_cores

    from .bench import Plan, measure

    if not seconds > 0:
        raise ConfigError(f"--seconds {seconds:g}: expected more than 0")
    if out is not None:
        _prepare(out)
    sizes = _integers("--batches", batches)
    counts = _integers("--threads", threads) if threads else sorted({1, available_cores()})
    found = bundles.load(bundle or digits_bundle())
    plan = Plan(sizes, counts, seconds, checkpoint=baseline)
    typer.echo(
        f"benchmarking {found.manifest.name}: batch {batches}, threads "
        f"{', '.join(map(str, counts))}, about {seconds:g} s a batch size"
    )
    command = _command(bundle, baseline, batches, threads, seconds)
    with _Progress(len(sizes)) as progress:
        report = measure(found, plan, command, progress.show)
    _table(report)
    if baseline is None:
        typer.echo("no --baseline CHECKPOINT given, so there is no ratio to PyTorch")
    if out is not None:
        _write(report, out)


def _integers(option: str, text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} {text!r}: expected integers such as 1,8,64") from None
    if min(numbers) < 1:
        raise ConfigError(f"{option} {text!r}: expected integers of at least 1")
    return numbers


def _command(
    bundle: Path | None, baseline: Path | None, batches: str, threads: str | None, seconds: float
) -> str:
    """The command that repeats this report, with every value that is not a default."""
    parts = ["mmf-bench", *([str(bundle)] if bundle else [])]
    parts += ["--baseline", str(baseline)] if baseline else []
    parts += ["--batches", batches] if batches != "1,8,64" else []
    parts += ["--threads", threads] if threads else []
    parts += ["--seconds", f"{seconds:g}"] if seconds != 4.0 else []
    return shlex.join(parts)


class _Progress(TaskProgress):
    """Percent of the whole benchmark, from the percent of each batch size."""

    def __init__(self, sizes: int) -> None:
        super().__init__("%", 100 * sizes)
        self._seen: list[str] = []

    def show(self, what: str, done: int, status: str = "") -> None:
        if what not in self._seen:
            self._seen.append(what)
        super().show(what, 100 * (len(self._seen) - 1) + done, status)


def _table(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{report.bundle}: milliseconds per image", title_justify="left")
    columns = ("engine", "threads", "batch", "median", "p90", "p99", "images/s", "vs PyTorch eager")
    for column in columns:
        table.add_column(column, justify="left" if column == "engine" else "right")
    for row in report.rows:
        table.add_row(
            f"{row.engine} {row.variant}",
            str(row.threads),
            str(row.batch),
            f"{row.median_ms:.3f}",
            f"{row.p90_ms:.3f}",
            f"{row.p99_ms:.3f}",
            f"{row.images_per_s:,.0f}",
            "" if row.speedup is None else f"{row.speedup:.2f}×",
        )
    Console(width=100).print(table)


def _prepare(out: Path) -> None:
    """What would fail after the measurement shall fail before it."""
    require("matplotlib", "bench")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: is a file; expected a directory")
    out.mkdir(parents=True, exist_ok=True)


def _write(report: Report, out: Path) -> None:
    from mmf_deploy import files

    from .bench_plot import plot

    text = json.dumps(report.as_dict(), indent=1) + "\n"
    files.write_atomic(out / "bench.json", text.encode())
    plot(report, out / "bench.png")
    typer.echo(f"written: {out / 'bench.json'}, {out / 'bench.png'}")

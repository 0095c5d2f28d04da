"""`mmf-bench`: latency per image, per engine and batch size, against PyTorch eager."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmf_deploy.errors import ConfigError

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
        int | None, typer.Option(help="Compute threads of every engine; the cores if not given.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Time per batch size, after warm-up.")] = 4.0,
    out: Annotated[
        Path | None, typer.Option(help="Directory for bench.json and bench.png.")
    ] = None,
) -> None:
    """Measure milliseconds per image; engines take turns call by call in one run."""
    from mmf_deploy import bundle as bundles
    from mmf_deploy.embedded import digits_bundle

    from .bench import Plan, available_cores, measure

    sizes = _sizes(batches)
    found = bundles.load(bundle or digits_bundle())
    plan = Plan(sizes, threads or available_cores(), seconds, checkpoint=baseline)
    typer.echo(
        f"benchmarking {found.manifest.name}: batch sizes {', '.join(map(str, sizes))}, "
        f"{plan.threads} threads, about {seconds * len(sizes):.0f} s"
    )
    report = measure(found, plan, _command(bundle, baseline, batches, threads, seconds), _say)
    _table(report)
    if baseline is None:
        typer.echo("no --baseline CHECKPOINT given, so there is no ratio to PyTorch")
    if out is not None:
        _write(report, out)


def _sizes(text: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--batches {text!r}: expected integers such as 1,8,64") from None
    if min(sizes) < 1:
        raise ConfigError(f"--batches {text!r}: expected integers of at least 1")
    return sizes


def _command(
    bundle: Path | None, baseline: Path | None, batches: str, threads: int | None, seconds: float
) -> str:
    """The command that repeats this report, with every value that is not a default."""
    parts = ["mmf-bench", *([str(bundle)] if bundle else [])]
    parts += ["--baseline", str(baseline)] if baseline else []
    parts += ["--batches", batches] if batches != "1,8,64" else []
    parts += ["--threads", str(threads)] if threads else []
    parts += ["--seconds", f"{seconds:g}"] if seconds != 4.0 else []
    return shlex.join(parts)


def _say(what: str, done: int, total: int) -> None:
    typer.echo(f"  {what} ({done + 1} of {total}) …")


def _table(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{report.bundle}: milliseconds per image", title_justify="left")
    for column in ("engine", "batch", "median", "p90", "p99", "images/s", "vs PyTorch eager"):
        table.add_column(column, justify="left" if column == "engine" else "right")
    for row in report.rows:
        table.add_row(
            f"{row.engine} {row.variant}",
            str(row.batch),
            f"{row.median_ms:.3f}",
            f"{row.p90_ms:.3f}",
            f"{row.p99_ms:.3f}",
            f"{row.images_per_s:,.0f}",
            "" if row.speedup is None else f"{row.speedup:.2f}×",
        )
    Console(width=100).print(table)


def _write(report: Report, out: Path) -> None:
    from mmf_deploy import files

    from .bench_plot import plot

    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report.as_dict(), indent=1) + "\n"
    files.write_atomic(out / "bench.json", text.encode())
    plot(report, out / "bench.png")
    typer.echo(f"written: {out / 'bench.json'}, {out / 'bench.png'}")

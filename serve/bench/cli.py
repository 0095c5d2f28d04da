"""`mmf-bench`: latency per image, per engine and batch size, against PyTorch eager."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmf_deploy.errors import ConfigError, nearest
from mmf_deploy.progress import TaskProgress

if TYPE_CHECKING:
    from .measure import Report

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
    device: Annotated[
        str | None,
        typer.Option(help="Device of the baseline: cpu or cuda; the first variant's."),
    ] = None,
    batches: Annotated[str, typer.Option(help="Batch sizes, comma-separated.")] = "1,8,64",
    threads: Annotated[
        str | None,
        typer.Option(help="Compute threads, comma-separated; 1 and all cores if not given."),
    ] = None,
    pytorch: Annotated[
        str,
        typer.Option(help="Modes of the baseline, comma-separated: eager, compile, channels_last, "
                     "bf16, compile-bf16, cudagraph."),
    ] = "eager",
    variants: Annotated[
        str | None,
        typer.Option(help="Variants, comma-separated; every one that runs here if not given."),
    ] = None,
    seconds: Annotated[float, typer.Option(help="Time per batch size, after warm-up.")] = 4.0,
    out: Annotated[
        Path | None, typer.Option(help="Directory for bench.json and bench.png.")
    ] = None,
) -> None:  # fmt: skip
    """Measure milliseconds per image; each engine in its own process, taking turns in one run."""
    from mmf_deploy import bundle as bundles
    from mmf_deploy.embedded import digits_bundle
    from mmf_deploy.machine import available_cores

    from .measure import Plan, measure

    if not seconds > 0:
        raise ConfigError(f"--seconds {seconds:g}: expected more than 0")
    if out is not None:
        from mmf_deploy.results import prepare

        prepare(out)
    sizes = _integers("--batches", batches)
    counts = _integers("--threads", threads) if threads else sorted({1, available_cores()})
    found = bundles.load(bundle or digits_bundle())
    modes = _words(pytorch)
    if baseline is not None:
        _check_modes(modes)
    elif modes != ("eager",):
        raise ConfigError("--pytorch goes with --baseline, the checkpoint that PyTorch runs")
    chosen = _words(variants) if variants else None
    plan = Plan(
        sizes, counts, seconds, checkpoint=baseline, device=device, modes=modes, variants=chosen
    )
    typer.echo(
        f"benchmarking {found.manifest.name}: batch {batches}, threads "
        f"{', '.join(map(str, counts))}, about {seconds:g} s a batch size"
    )
    command = _command(bundle, baseline, batches, threads, seconds, pytorch, variants, device)
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


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(","))


def _check_modes(modes: Sequence[str]) -> None:
    from mmf_deploy.engines.base import engine_class

    known = engine_class("pytorch").modes
    for mode in modes:
        if mode not in known:
            raise ConfigError(
                f"--pytorch {mode!r}{nearest(mode, known)}: expected some of {', '.join(known)}"
            )


def _command(
    bundle: Path | None,
    baseline: Path | None,
    batches: str,
    threads: str | None,
    seconds: float,
    pytorch: str = "eager",
    variants: str | None = None,
    device: str | None = None,
) -> str:
    """The command that repeats this report, with every value that is not a default."""
    parts = ["mmf-bench", *([str(bundle)] if bundle else [])]
    parts += ["--baseline", str(baseline)] if baseline else []
    parts += ["--device", device] if device else []
    parts += ["--batches", batches] if batches != "1,8,64" else []
    parts += ["--threads", threads] if threads else []
    parts += ["--pytorch", pytorch] if pytorch != "eager" else []
    parts += ["--variants", variants] if variants else []
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

    table = Table(
        title=f"{report.bundle}: milliseconds per image; ×: times faster than PyTorch eager, "
        "or than what the column names",
        title_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
    )
    others = list(dict.fromkeys(name for row in report.rows for name in row.versus))
    columns = ["engine", "threads", "batch", "median", "p90", "p99", "img/s", "MB", "× eager",
               *(f"× {name.removesuffix('-fp32')}" for name in others)]  # fmt: skip
    for column in columns:
        left = column == "engine"
        table.add_column(column, justify="left" if left else "right", no_wrap=True)
    for row in report.rows:
        name = row.variant.removeprefix(f"{row.engine}-")
        times = (row.median_ms, row.p90_ms, row.p99_ms)
        table.add_row(
            f"{row.engine} {name}",
            str(row.threads),
            str(row.batch),
            *(f"{ms:.3f}" if ms < 10 else f"{ms:.1f}" for ms in times),
            f"{row.images_per_s:,.0f}" if row.images_per_s >= 100 else f"{row.images_per_s:.1f}",
            "" if row.memory_mb is None else f"{row.memory_mb:,.0f}",
            *(_ratio(r) for r in (row.speedup, *(row.versus.get(name) for name in others))),
        )
    Console(width=118).print(table)
    for line in report.left_out:
        typer.echo(f"left out: {line}")


def _ratio(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}×"


def _write(report: Report, out: Path) -> None:
    import json

    from mmf_deploy import files

    from .plot import plot

    data, picture = out / "bench.json", out / "bench.png"
    files.write_atomic(data, (json.dumps(report.as_dict(), indent=1) + "\n").encode())
    plot(report, picture)
    typer.echo(f"written: {data}, {picture}")

"""`mmf bench-step`: what an optimiser step of each objective costs, against flow matching."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmf_deploy.errors import ConfigError, require
from mmf_deploy.machine import available_cores
from mmf_deploy.progress import TaskProgress

from . import devices
from .recipe_files import recipe_names

if TYPE_CHECKING:
    from .bench_step import Report, Row

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
DEFAULTS = {
    "--shape": "3,32,32",
    "--classes": "10",
    "--gap-fraction": "0.25,0.75",
    "--batch": "16",
    "--seconds": "60",
    "--threads": "",
    "--device": "auto",
}


@app.command()
def bench_step(
    recipe: Annotated[
        str,
        typer.Argument(
            help=f"One of {', '.join(recipe_names())}, or the path of a YAML file; its network "
            "and its optimizer are used, its data are not."
        ),
    ] = "cifar10-small",
    shape: Annotated[
        str, typer.Option(help="Shape of a sample: channels,height,width; or one number.")
    ] = DEFAULTS["--shape"],
    classes: Annotated[int, typer.Option(min=0, help="Number of classes, 0 for none.")] = int(
        DEFAULTS["--classes"]
    ),
    gap_fraction: Annotated[
        str, typer.Option(help="Shares of samples with r ≠ t, comma-separated.")
    ] = DEFAULTS["--gap-fraction"],
    batch: Annotated[int, typer.Option(min=1, help="Samples a step.")] = int(DEFAULTS["--batch"]),
    seconds: Annotated[float, typer.Option(help="Time to spend on everything together.")] = float(
        DEFAULTS["--seconds"]
    ),
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; all cores if not given.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = DEFAULTS["--device"],
    out: Annotated[Path | None, typer.Option(help="Directory for bench-step.json.")] = None,
) -> None:
    """Time a whole optimiser step of flow matching, of mmf and of a naive mmf, taking turns."""
    require("torch", "train")
    from mmf_deploy.spec import SampleSpec

    from .bench_step import Plan, measure
    from .read_recipe import load_config
    from .step_variants import variants

    _check(seconds, out)
    plan = Plan(
        recipe=load_config(recipe),
        spec=SampleSpec(shape=_integers("--shape", shape), classes=classes),
        batch=batch,
        gap_fractions=_shares("--gap-fraction", gap_fraction),
        seconds=seconds,
        device=devices.chosen(device),
        threads=threads or available_cores(),
    )
    typer.echo(
        f"timing an optimiser step of {len(variants(plan.gap_fractions))} kinds: network of "
        f"{recipe}, batch {batch} of {shape.replace(',', '×')}, {plan.device}, "
        f"threads {plan.threads}, about {seconds:g} s"
    )
    given = {
        "--shape": shape, "--classes": f"{classes}", "--gap-fraction": gap_fraction,
        "--batch": f"{batch}", "--seconds": f"{seconds:g}", "--threads": f"{threads or ''}",
        "--device": device,
    }  # fmt: skip
    command = _command(recipe, given)
    with TaskProgress("%", 100) as progress:
        report = measure(plan, command, progress.show)
    _table(report)
    for line in conclusions(report.rows):
        typer.echo(line)
    if out is not None:
        _write(report, out / "bench-step.json")


def _check(seconds: float, out: Path | None) -> None:
    if not 0 < seconds < math.inf:
        raise ConfigError(f"--seconds {seconds:g}: expected more than 0")
    if out is not None:
        if out.exists() and not out.is_dir():
            raise ConfigError(f"--out {out}: is a file; expected a directory")
        out.mkdir(parents=True, exist_ok=True)


def _integers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} {text!r}: expected integers such as 3,32,32") from None


def _shares(option: str, text: str) -> tuple[float, ...]:
    try:
        shares = tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        raise ConfigError(f"{option} {text!r}: expected numbers such as 0.25,0.75") from None
    if not all(0 < share <= 1 for share in shares):
        raise ConfigError(f"{option} {text!r}: expected shares above 0, at most 1")
    return shares


def _command(recipe: str, given: Mapping[str, str]) -> str:
    """The command that repeats this report, with every value that is not a default."""
    parts = ["mmf", "bench-step", *([recipe] if recipe != "cifar10-small" else [])]
    for option, value in given.items():
        parts += [option, value] if value != DEFAULTS[option] else []
    return shlex.join(parts)


def conclusions(rows: list[Row]) -> list[str]:
    """A line for each share of r ≠ t and each λ that a naive step was timed with."""
    compared = [row for row in rows if row.naive_speedup is not None]
    lines = []
    for share, lam in dict.fromkeys((row.gap_fraction, row.lam) for row in compared):
        best = min(
            (row for row in compared if (row.gap_fraction, row.lam) == (share, lam)),
            key=lambda row: row.ratio,
        )
        lines.append(
            f"λ={lam:g}, r ≠ t for {share:.0%}: {best.ratio:.2f}× a flow-matching step, "
            f"{best.naive_speedup:.1f}× faster than the naive step ({best.derivative})"
        )
    return lines


def _table(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"one optimiser step, batch {report.config['batch']}, {report.rounds} rounds"
    table = Table(title=title, title_justify="left")
    for column in ("objective", "derivative"):
        table.add_column(column, no_wrap=True)
    for column in ("r ≠ t", "λ", "median", "× flow matching", "p10–p90", "× faster than naive"):
        table.add_column(column, justify="right")
    for row in report.rows:
        table.add_row(
            row.objective,
            row.derivative or "",
            "" if row.gap_fraction is None else f"{row.gap_fraction:.0%}",
            f"{row.lam:g}" if row.derivative else "",
            f"{row.median_ms:.1f} ms",
            f"{row.ratio:.2f}",
            f"{row.ratio_p10:.2f}–{row.ratio_p90:.2f}",
            "" if row.naive_speedup is None else f"{row.naive_speedup:.2f}",
        )
    Console(width=100).print(table)


def _write(report: Report, path: Path) -> None:
    from mmf_deploy import files

    files.write_atomic(path, (json.dumps(report.as_dict(), indent=1) + "\n").encode())
    typer.echo(f"written: {path}")

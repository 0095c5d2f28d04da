"""`mmf bench-step`: what an optimiser step of each objective costs, against flow matching."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmf_deploy.command_line import again
from mmf_deploy.errors import ConfigError, require
from mmf_deploy.machine import available_cores
from mmf_deploy.progress import TaskProgress
from mmf_deploy.results import Picture, prepare, write

from . import devices
from .recipe_files import recipe_names

if TYPE_CHECKING:
    from .bench_step_report import Report

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def bench_step(
    ctx: typer.Context,
    recipe: Annotated[
        str,
        typer.Argument(
            help=f"One of {', '.join(recipe_names())}, or the path of a YAML file; its network "
            "and its optimizer are used, its data are not."
        ),
    ] = "cifar10-small",
    shape: Annotated[
        str, typer.Option(help="Shape of a sample: channels,height,width; or one number.")
    ] = "3,32,32",
    classes: Annotated[int, typer.Option(min=0, help="Number of classes, 0 for none.")] = 10,
    gap_fraction: Annotated[
        str, typer.Option(help="Shares of samples with r ≠ t, comma-separated.")
    ] = "0.25,0.75",
    batch: Annotated[int, typer.Option(min=1, help="Samples a step.")] = 16,
    seconds: Annotated[float, typer.Option(help="Time to spend on everything together.")] = 60.0,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; all cores if not given.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    out: Annotated[
        Path | None,
        typer.Option(help="Directory for bench-step.json, bench-step.md and bench-step.png."),
    ] = None,
) -> None:
    """Time a whole optimiser step of flow matching, of mmf and of a naive mmf, taking turns."""
    require("torch", "train")
    from mmf_deploy.spec import SampleSpec

    from .bench_step import Plan, measure
    from .read_recipe import load_config
    from .step_variants import variants

    if not 0 < seconds < math.inf:
        raise ConfigError(f"--seconds {seconds:g}: expected more than 0")
    plan = Plan(
        recipe=load_config(recipe),
        spec=SampleSpec(shape=_integers("--shape", shape), classes=classes),
        batch=batch,
        gap_fractions=_shares("--gap-fraction", gap_fraction),
        seconds=seconds,
        device=devices.chosen(device),
        threads=threads or available_cores(),
    )
    if out is not None:
        prepare(out)
    typer.echo(
        f"timing an optimiser step of {len(variants(plan.gap_fractions))} kinds: network of "
        f"{recipe}, batch {batch} of {shape.replace(',', '×')}, {plan.device}, "
        f"threads {plan.threads}, about {seconds:g} s"
    )
    with TaskProgress("%", 100) as progress:
        report = measure(plan, again(ctx, "mmf bench-step"), progress.show)
    _show(report, out)


def _show(report: Report, out: Path | None) -> None:
    from .bench_step_plot import plot

    name = "bench-step.png"
    result = report.result([Picture(name, "time of an optimiser step of each objective, in "
                                          "flow-matching steps")])  # fmt: skip
    for table in result.tables:
        table.print()
    if out is not None:
        typer.echo(write(out, "bench-step", result, {name: lambda path: plot(report, path)}))


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

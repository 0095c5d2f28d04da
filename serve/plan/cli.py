"""`mmf plan`: how many replicas a rate needs, from what this machine measures."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmf_deploy.command_line import again
from mmf_deploy.errors import ConfigError, require
from mmf_deploy.progress import TaskProgress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .basis import Measured
    from .check import Checked
    from .cost import EngineCost
    from .observe import Served
    from .planner import Plan, Planner

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

STAGES = 11
"""Of the measurement: batches, start, eight loads, the search."""


@app.command(name="plan")
def plan(
    ctx: typer.Context,
    rate: Annotated[float, typer.Option(help="Requests a second, of all replicas together.")],
    p99: Annotated[
        str, typer.Option(help="Time that 99 of 100 requests are to stay under: 50ms, 0.05s.")
    ],
    bundle: Annotated[
        Path | None, typer.Argument(help="A bundle made by mmf export; digits if not given.")
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Images in a request.")] = 1,
    form: Annotated[
        str | None,
        typer.Option("--format", help="Of the replies: json, png or npy; json, or npy of vectors, "
                     "if not given."),
    ] = None,
    variant: Annotated[str | None, typer.Option(help="Of the bundle to serve.")] = None,
    engine: Annotated[str | None, typer.Option(help="To serve the bundle with.")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Compute threads of a replica.")
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Load the service at several rates, and compare."),
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of arrival times.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Directory for plan.json, plan.md and plan.png.")
    ] = None,
) -> None:  # fmt: skip
    """Say how many replicas of a bundle keep a latency at a rate.

    Measures the engine and the service on this machine for some seconds, then simulates replicas.
    """
    require("aiohttp", "bench")
    from mmf_deploy import bundle as bundles
    from mmf_deploy.embedded import digits_bundle
    from mmf_deploy.results import prepare

    from .observe import Served

    if not 0 < rate < math.inf:
        raise ConfigError(f"--rate {rate:g}: expected requests a second, more than 0")
    target_ms = milliseconds(p99)
    opened = bundles.load(bundle or digits_bundle())
    form = form or ("json" if opened.spec.is_image else "npy")
    served = Served(opened, images, form, variant, engine, threads, seed, bundle is None)
    served.check()
    if out is not None:
        prepare(out)
    typer.echo(f"planning {opened.manifest.name}: {rate:g} requests/s, p99 under {target_ms:g} ms; "
               "measuring first")  # fmt: skip
    measured = _measure(served, target_ms)
    from .planner import Planner

    planner = Planner(measured.fitted.replica, images, target_ms, seed)
    found = planner.plan(rate, _helps(served, measured.engine))
    checked = _check(planner, served) if check else []
    _show(measured, planner, found, checked, again(ctx, "mmf plan"), out)


_TIME = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(ms|s)")


def milliseconds(text: str) -> float:
    """The time that somebody wrote as 50ms or 0.05s.

    Raises:
        ConfigError: as something else, or it is none.
    """
    found = _TIME.fullmatch(text.strip())
    if found is None or not 0 < float(found[1]) < math.inf:
        raise ConfigError(f"--p99 {text!r}: expected a time above 0 such as 50ms or 0.05s")
    return float(found[1]) * (1e3 if found[2] == "s" else 1.0)


class _Progress(TaskProgress):
    """Percent of the whole, from the share of each stage."""

    def __init__(self, stages: int) -> None:
        super().__init__("%", 100 * stages)
        self._stage, self._what = -1, ""

    def at(self, what: str, share: float) -> None:
        """Report the share of a stage; a name that is new begins one."""
        if what != self._what:
            self._what = what
            self._stage += 1
        super().show(what, round(100 * (self._stage + share)))


def _measure(served: Served, target_ms: float) -> Measured:
    from mmf_deploy.engines.base import EngineOptions

    from ..load.pace import run_async
    from .basis import Measured
    from .cost import engine_cost
    from .fit import fit
    from .observe import observe

    options = EngineOptions(threads=served.threads)
    with _Progress(STAGES) as progress:
        engine = engine_cost(served.bundle, served.variant, served.engine, options,
                             lambda share: progress.at("batches", share))  # fmt: skip
        _refuse_what_the_engine_cannot(engine, served, target_ms)
        progress.at("starting mmf-serve", 0.0)
        observed = run_async(lambda: observe(served, engine, progress.at))
        progress.at("simulating", 0.0)
        fitted = fit(engine, observed)
    return Measured(served, engine, observed, fitted)


def _check(planner: Planner, served: Served) -> list[Checked]:
    from ..load.cli import verdict
    from ..load.pace import run_async
    from .check import check, rates, seconds

    levels = rates(planner.capacity_per_s)
    typer.echo(f"checking: {len(levels)} rates of {seconds(planner.capacity_per_s):g} s")
    with _Progress(len(levels) + 1) as progress:
        checked, report = run_async(lambda: check(planner, served, progress.at))
    verdict(report)
    return checked


def _refuse_what_the_engine_cannot(engine: EngineCost, served: Served, target_ms: float) -> None:
    alone_ms = engine.request_s(served.images) * 1e3
    if alone_ms > target_ms:
        raise ConfigError(
            f"--p99 {target_ms:g}ms: the engine alone takes {alone_ms:.1f} ms for "
            f"{_images(served)}, so no number of replicas keeps it; {_helps(served, engine)}"
        )


def _images(served: Served) -> str:
    return "one image" if served.images == 1 else f"{served.images} images"


def _helps(served: Served, engine: EngineCost) -> str:
    """What may make one request faster."""
    from mmf_deploy.machine import available_cores

    used = served.bundle.variant(engine.variant)
    others = [v.name for v in served.bundle.manifest.variants
              if v.name != used.name and v.steps <= used.steps and v.device == used.device
              and v.target != "web"]  # fmt: skip
    helps = ["fewer --images"] if served.images > 1 else []
    helps += [f"--variant {' or '.join(others[:3])}"] if others else []
    if served.threads is not None and served.threads < available_cores():
        helps.append(f"more --threads (there are {available_cores()} cores)")
    return f"try {', '.join(helps)}" if helps else "a smaller network or a faster machine would"


def _show(
    measured: Measured,
    planner: Planner,
    plan: Plan,
    checked: Sequence[Checked],
    command: str,
    out: Path | None,
) -> None:
    from mmf_deploy.results import Picture, write

    from .contradiction import warning
    from .plot import plot
    from .report import answer, result

    name = "plan.png"
    what = f"{measured.title}: latency of one replica against its rate"
    found = result(measured, plan, checked, command, [Picture(name, what)])
    for table in found.tables:
        table.print()
        typer.echo("")
    typer.echo(answer(measured, plan))
    if (line := warning(checked, plan)) is not None:
        typer.echo(f"warning: {line}")
    if out is not None:
        curve = planner.curve()
        draw = {name: lambda path: plot(what, plan, curve, checked, path)}
        typer.echo(write(out, "plan", found, draw))

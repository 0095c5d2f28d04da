"""`mmf-bench`: latency per image, against PyTorch and against what the machine can do."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmf_deploy.command_line import again, integers, words
from mmf_deploy.errors import ConfigError, nearest
from mmf_deploy.progress import TaskProgress

if TYPE_CHECKING:
    from mmf_deploy.bundle import Bundle
    from mmf_deploy.results import Result

    from .report import Report
    from .subjects import Plan

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def bench(
    ctx: typer.Context,
    bundle: Annotated[
        Path | None, typer.Argument(help="The bundle; the embedded digits if not given.")
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            help="The checkpoint the bundle was made from: PyTorch runs it, as the baseline. The "
            "embedded digits bring theirs."
        ),
    ] = None,
    engines: Annotated[
        str | None,
        typer.Option(help="Engines to run every variant with, comma-separated; each variant's own "
                     "if not given."),
    ] = None,
    variants: Annotated[
        str | None,
        typer.Option(help="Variants, comma-separated, or all; if not given, those of as many steps "
                     "as the first."),
    ] = None,
    pytorch: Annotated[
        str,
        typer.Option(help="Ways of running the baseline beside eager, comma-separated, such as "
                     "compile, bf16, compile-bf16, cudagraph-bf16."),
    ] = "eager",
    batches: Annotated[str, typer.Option(help="Batch sizes, comma-separated.")] = "1,8,64",
    threads: Annotated[
        str | None,
        typer.Option(help="Compute threads, comma-separated: each engine with each of them. If not "
                     "given, all cores where they are used to 80% at least, else 1."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda, of all; each variant's own if not given.")
    ] = None,
    seconds: Annotated[
        float, typer.Option(help="At most so long for each batch size, after warm-up.")
    ] = 10.0,
    within: Annotated[
        float,
        typer.Option(help="Percent: a batch size is done when every ratio is known so well, with "
                     "95% confidence."),
    ] = 2.0,
    limit: Annotated[
        bool, typer.Option(help="Measure what the machine can do, and how near each engine comes.")
    ] = True,
    profile: Annotated[
        bool, typer.Option("--profile", help="Say which operators the time goes to.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Directory for bench.json, bench.md and the pictures.")
    ] = None,
) -> None:  # fmt: skip
    """Measure milliseconds per image; each engine in its own process, taking turns in one run."""
    from mmf_deploy import bundle as bundles
    from mmf_deploy.embedded import digits_bundle, digits_checkpoint
    from mmf_deploy.machine import available_cores

    from .measure import measure
    from .subjects import Plan

    if out is not None:
        from mmf_deploy.results import prepare

        prepare(out)
    counts = integers("--threads", threads) if threads else sorted({1, available_cores()})
    sizes = integers("--batches", batches)
    if bundle is None and baseline is None and importlib.util.find_spec("torch"):
        baseline = digits_checkpoint()
    modes = words(pytorch)
    _check_modes(modes, baseline)
    plan = Plan(
        sizes,
        counts if device in (None, "cpu") else counts[:1],
        threads is not None,
        seconds,
        within / 100,
        checkpoint=baseline,
        device=device,
        modes=modes,
        variants=words(variants) if variants else None,
        engines=words(engines) if engines else None,
        limit=limit,
    )
    plan.check()
    found = bundles.load(bundle or digits_bundle())
    typer.echo(
        f"benchmarking {found.manifest.name}: batch {', '.join(map(str, sizes))}, threads "
        f"{', '.join(map(str, plan.threads))}, up to {seconds:g} s a batch size"
    )
    with _Progress(len(sizes)) as progress:
        report = measure(found, plan, again(ctx, "mmf-bench"), progress.show)
    where = _profiles(found, plan, report) if profile else None
    for table in [*report.tables(), *(where.tables if where else [])]:
        table.print()
        typer.echo()
    if baseline is None:
        typer.echo("no --baseline CHECKPOINT given, so there is no ratio to PyTorch")
    if out is not None:
        _write(report, where, out)


def _check_modes(modes: Sequence[str], baseline: Path | None) -> None:
    if baseline is None:
        if modes != ("eager",):
            raise ConfigError("--pytorch goes with --baseline, the checkpoint that PyTorch runs")
        return
    from mmf_deploy import checkpoint
    from mmf_deploy.engines.base import engine_class

    checkpoint.resolve(baseline)  # or says that there is none, before anything slow
    if modes == ("eager",):
        return
    known = engine_class("pytorch").modes
    for mode in modes:
        if mode not in known:
            raise ConfigError(
                f"--pytorch {mode!r}{nearest(mode, known)}: expected some of {', '.join(known)}"
            )


class _Progress(TaskProgress):
    """Percent of the whole benchmark, from the percent of each batch size and of loading."""

    def __init__(self, sizes: int) -> None:
        super().__init__("%", 100 * (sizes + 1))
        self._seen: list[str] = []

    def show(self, what: str, done: int, status: str = "") -> None:
        if what not in self._seen:
            self._seen.append(what)
        super().show(what, 100 * (len(self._seen) - 1) + done, status)


def _profiles(bundle: Bundle, plan: Plan, report: Report) -> Result:
    from .profiles import profiled, profiles

    with TaskProgress("engines profiled", len(profiled(report))) as progress:
        return profiles(bundle, plan, report, progress.show)


def _write(report: Report, profile: Result | None, out: Path) -> None:
    from mmf_deploy.results import write

    from .pictures import pictures

    drawn = pictures(report)
    draw = {picture.file: made for picture, made in drawn.items()}
    typer.echo(write(out, "bench", report.result(list(drawn)), draw))
    if profile is not None:
        typer.echo(write(out, "profile", profile))

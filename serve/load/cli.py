"""`mmf bench-serve`: load a service, and check every image that comes back."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmf_deploy.command_line import again
from mmf_deploy.errors import ConfigError, ParityError, ServiceError, require
from mmf_deploy.progress import TaskProgress
from mmf_deploy.results import Picture, prepare, write

if TYPE_CHECKING:
    from .report import Report
    from .session import Plan, Subject

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

CLOSED = "1,4,16"


@app.command(name="bench-serve")
def bench_serve(
    ctx: typer.Context,
    target: Annotated[
        str | None,
        typer.Argument(
            help="Address of a running service, or a bundle to serve here; digits if not given."
        ),
    ] = None,
    concurrency: Annotated[
        str | None,
        typer.Option(
            help="Clients that each wait for their reply, comma-separated; 1,4,16 if no rate is "
            "given."
        ),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(help="Requests a second that wait for nothing, comma-separated; or auto: "
                     "0.25 … 2 times the capacity."),
    ] = None,
    overload: Annotated[
        float | None, typer.Option(help="Requests at so many times the capacity.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Duration of each level of load.")] = 5.0,
    images: Annotated[int, typer.Option(min=1, help="Images in a request.")] = 1,
    deadline_ms: Annotated[
        float | None, typer.Option(help="Deadline that requests carry; none if not given.")
    ] = None,
    form: Annotated[
        str, typer.Option("--format", help="Of the native protocol's replies: npy, png or json.")
    ] = "npy",
    protocol: Annotated[str, typer.Option(help="native, openai or kserve.")] = "native",
    api_key: Annotated[
        str | None, typer.Option(envvar="MMF_API_KEY", help="Key of a service that asks for one.")
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(help="With an address: the bundle it serves, to compare its images with."),
    ] = None,
    pool: Annotated[
        int | None,
        typer.Option(min=1, help="Seeds to draw from; 512, or as many as can be made in 20 s."),
    ] = None,
    variant: Annotated[str | None, typer.Option(help="Of the bundle to serve.")] = None,
    engine: Annotated[str | None, typer.Option(help="To serve the bundle with.")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Compute threads of the server that is started.")
    ] = None,
    server_options: Annotated[
        str, typer.Option(help="More options of mmf-serve, as one argument.")
    ] = "",
    timeout: Annotated[float, typer.Option(help="Seconds to wait for a reply.")] = 60.0,
    seed: Annotated[
        int, typer.Option(min=0, help="Of arrival times, and of what is asked for.")
    ] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Directory for load.json, load.md and load.png.")
    ] = None,
) -> None:  # fmt: skip
    """Load a service in a closed loop (--concurrency) or an open one (--rate, --overload).

    Every image is compared with the one its seed must give. Ends with an error if one is wrong, or
    if a request got neither images nor a refusal that says when to come back.
    """
    require("aiohttp", "bench")
    from mmf_deploy.engines.base import EngineOptions

    from .client import Load
    from .pace import run_async
    from .session import Subject, measure

    _positive({"--seconds": seconds, "--timeout": timeout, "--deadline-ms": deadline_ms})
    plan = _plan(concurrency, rate, overload, seconds, deadline_ms)
    url, bundle = _target(target, check)
    if url is not None:
        _only_for_bundles(url, {"--variant": variant, "--engine": engine, "--threads": threads,
                                "--server-options": server_options or None})  # fmt: skip
    more = _words("--server-options", server_options)
    options = EngineOptions(threads=threads)
    subject = Subject(url, bundle, protocol, form, variant, engine, options, more, pool)
    load = Load(images, timeout, api_key, seed)
    if out is not None:
        prepare(out)
    command = again(ctx, "mmf bench-serve", leave_out=("out", "api_key"))
    _announce(subject, plan)
    with _Progress(plan.levels) as progress:
        report = run_async(lambda: measure(subject, plan, load, command, progress.at))
    _show(report, out)
    verdict(report)


def _positive(values: Mapping[str, float | None]) -> None:
    for flag, value in values.items():
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{flag} {value:g}: expected more than 0")


def _plan(
    concurrency: str | None,
    rate: str | None,
    overload: float | None,
    seconds: float,
    deadline_ms: float | None,
) -> Plan:
    """Closed loops where nothing else is asked for."""
    from .session import Plan

    _positive({"--overload": overload})
    relative = rate == "auto" or overload is not None
    at_once = concurrency or (None if rate or relative else CLOSED)
    return Plan(
        tuple(map(int, _numbers("--concurrency", at_once, whole=True))),
        () if rate == "auto" else tuple(_numbers("--rate", rate)),
        auto=rate == "auto",
        overload=overload,
        seconds=seconds,
        deadline_ms=deadline_ms,
    )


def _announce(subject: Subject, plan: Plan) -> None:
    what = subject.url or (subject.bundle.manifest.name if subject.bundle else "")
    levels = "1 level" if plan.levels == 1 else f"{plan.levels} levels"
    typer.echo(f"loading {what}: {levels} of {plan.seconds:g} s")


def _target(target: str | None, check: Path | None) -> tuple[str | None, Any]:
    """The address or None, and the bundle or None."""
    from mmf_deploy.bundle import load
    from mmf_deploy.embedded import digits_bundle

    if target is not None and target.startswith(("http://", "https://")):
        return target, None if check is None else load(check)
    if check is not None:
        raise ConfigError("--check goes with the address of a service; a bundle is its own check")
    return None, load(digits_bundle() if target is None else Path(target))


def _only_for_bundles(url: str | None, serving: Mapping[str, object]) -> None:
    given = [flag for flag, value in serving.items() if value is not None]
    if url is not None and given:
        raise ConfigError(f"{', '.join(given)}: for a server that is started here, not for {url}")


def _numbers(option: str, text: str | None, whole: bool = False) -> list[float]:
    kind: type[float] = int if whole else float
    try:
        numbers = [kind(part) for part in text.split(",")] if text is not None else []
    except ValueError:
        numbers = [0]
    if not all(0 < n < float("inf") for n in numbers):
        example = "whole numbers such as 1,4,16" if whole else "numbers such as 50,100, or auto"
        raise ConfigError(f"{option} {text!r}: expected {example}, all above 0")
    return numbers


def _words(option: str, text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as e:
        raise ConfigError(f"{option} {text!r}: {e}; expected options as for mmf-serve") from None


class _Progress(TaskProgress):
    """Percent of the whole, from the share of each level."""

    def __init__(self, levels: int) -> None:
        super().__init__("%", 100 * levels)
        self._level = -1
        self._what = ""

    def at(self, what: str, share: float) -> None:
        """Report the share of a level; making the images to compare with is not one."""
        if what != self._what:
            self._what = what
            self._level += not what.startswith("images")
        done = 0 if self._level < 0 else round(100 * (self._level + share))
        super().show(what, done, f"{share:.0%}" if self._level < 0 else "")


def _show(report: Report, out: Path | None) -> None:
    from .plot import plot
    from .table import result

    name = "load.png"
    found = result(report, [Picture(name, f"{report.model}: latency against the load")])
    for table in found.tables:
        table.print()
    if out is not None:
        typer.echo(write(out, "load", found, {name: lambda path: plot(report, path)}))


def verdict(report: Report) -> None:
    """Raise what makes the exit code non-zero.

    Raises:
        ParityError: an image is wrong.
        ServiceError: a request got neither images nor an announced refusal, or the server ended
            badly.
    """
    total = report.checked
    if total.wrong:
        count = total.identical + total.within_one + total.wrong
        raise ParityError(f"{total.wrong} of {count} images are wrong: off by more than one of 255 "
                          f"levels from {report.checked_by}")  # fmt: skip
    if report.failed:
        kinds: dict[str, int] = {}
        for found in report.levels:
            for what, n in found.failed.items():
                kinds[what] = kinds.get(what, 0) + n
        each = ", ".join(f"{n} × {what}" for what, n in kinds.items())
        raise ServiceError(f"{report.failed} requests got neither images nor an announced refusal: "
                           f"{each}")  # fmt: skip
    if report.problem is not None:
        raise ServiceError(report.problem)

"""A load test in the form of every benchmark: the table, and what is to be said about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from mmf_deploy.results import HEAD, Picture, Result, Table

from .report import Level, Report

QUIET = 0.2
"""Cores that other processes may use before a measurement counts as disturbed."""


def result(report: Report, pictures: Sequence[Picture] = ()) -> Result:
    """In the common form, with every number."""
    return Result(
        kind="load",
        title=f"{report.model}: the service under load",
        command=report.command,
        machine=report.machine,
        versions=report.versions,
        tables=[table(report)],
        pictures=pictures,
        content={k: v for k, v in asdict(report).items() if k not in HEAD},
    )


def table(report: Report) -> Table:
    """A row a level of load."""
    levels = report.levels
    deadline = any(f.deadline_met is not None for f in levels)
    memory = any(f.memory_mb for f in levels)
    parts = _parts(report)
    columns = ["load", "req/s", "img/s", "p50", "p90", "p99", "max", "shed",
               *(["in time"] if deadline else []), *parts, *(["MB"] if memory else [])]  # fmt: skip
    rows = [
        [
            _load(found),
            _short(found.requests_per_s),
            _short(found.images_per_s),
            *(_short(found.latency_ms.get(p)) for p in ("p50", "p90", "p99", "max")),
            f"{found.shed:.1%}",
            *([_share(found.deadline_met)] if deadline else []),
            *(_short(found.server_ms.get(part)) for part in parts),
            *([f"{found.memory_mb['max']:,.0f}" if found.memory_mb else ""] if memory else []),
        ]
        for found in levels
    ]
    title = (
        f"{report.model} ({report.digest[:12]}), {report.protocol}{_form(report)}: "
        "milliseconds until the reply"
    )
    return Table(title, columns, rows, notes(report))


def _parts(report: Report) -> list[str]:
    """What the service says of the time inside it."""
    return list(dict.fromkeys(name for f in report.levels for name in f.server_ms))[:3]


def notes(report: Report) -> list[str]:
    """What is to be said beside the numbers, a line each."""
    lines = [*_about_columns(report), *_about_images(report), *_about_the_generator(report)]
    for found in report.levels:
        lines += [f"{_load(found)}: {line}" for line in _about_a_level(found)]
    other = max((f.other_cores or 0.0 for f in report.levels), default=0.0)
    if other > QUIET:
        lines.append(f"the machine was not quiet: other processes used up to {other:.2f} cores")
    return [*lines, *_about_the_server(report)]


def _about_columns(report: Report) -> list[str]:
    parts = _parts(report)
    return [
        "shed: refused with a time to come back",
        *([f"{', '.join(parts)}: medians by the service's own clock"] if parts else []),
    ]


def _about_images(report: Report) -> list[str]:
    total = report.checked
    return [
        f"images: {total.identical:,} identical, {total.within_one:,} within one level, "
        f"{total.wrong:,} wrong; compared with {report.checked_by}"
    ]


def _about_the_generator(report: Report) -> list[str]:
    client = report.client
    return [
        f"the generator itself costs {client['cpu_ms']:.3f} ms of processor time a request, and "
        f"{client['round_trip_ms']:.3f} ms until a server that does nothing has answered"
    ]


def _about_a_level(found: Level) -> list[str]:
    lines = []
    if found.bottleneck is not None:
        lines.append(f"the generator was the bottleneck: {found.bottleneck}")
    for kind, counts in (("refused", found.refused), ("FAILED", found.failed)):
        if counts:
            each = ", ".join(f"{n:,} × {what}" for what, n in counts.items())
            lines.append(f"{kind} of {found.requests:,}: {each}")
    if found.recovery is not None:
        lines.append(_recovery(found.recovery))
    return lines


def _recovery(after: dict[str, Any]) -> str:
    if after["first_ms"] is None:
        return "no images came after the load had ended"
    each = ", ".join(f"{ms:.1f}" for ms in after["latency_ms"][:6])
    return (
        f"images came {after['first_ms']:.0f} ms after the load had ended ({after['refused']} "
        f"refusals before); the first requests took {each} … ms"
    )


def _about_the_server(report: Report) -> list[str]:
    lines = []
    if memory := [f.memory_mb for f in report.levels if f.memory_mb]:
        lines.append(f"server memory: {memory[0]['before']:.0f} MB before, "
                     f"{max(m['max'] for m in memory):.0f} at most, "
                     f"{memory[-1]['after']:.0f} after")  # fmt: skip
    if report.ready_s is not None:
        lines.append(f"the server was ready after {report.ready_s:.2f} s")
    return [*lines, *([] if report.problem is None else [report.problem])]


def _form(report: Report) -> str:
    form = f" {report.reply_format}" if report.protocol == "native" else ""
    images = max((f.images for f in report.levels), default=1)
    return f"{form}, {images} images a request" if images > 1 else f"{form}, one image a request"


def _load(found: Level) -> str:
    return f"{found.concurrency} at once" if found.mode == "closed" else (
        f"{_short(found.offered_per_s)} req/s"
    )  # fmt: skip


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _short(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"

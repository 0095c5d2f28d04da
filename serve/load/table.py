"""A load test on the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from .report import Level, Report

WIDTH = 118
QUIET = 0.2
"""Cores that other processes may use before a measurement counts as disturbed."""


def show(report: Report) -> None:
    """A line a level, and what is to be said about them."""
    console = Console(width=WIDTH, highlight=False)
    console.print(
        f"{report.model} ({report.digest[:12]}), {report.protocol}{_form(report)}: "
        "milliseconds until the reply",
        style="italic",
    )
    console.print(_table(report))
    for line in notes(report):
        console.print(line, markup=False, soft_wrap=True)


def _table(report: Report) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    some = [f for f in report.levels if f.deadline_met is not None]
    names = list(dict.fromkeys(n for f in report.levels for n in f.server_ms))[:3]
    columns = ["load", "req/s", "img/s", "p50", "p90", "p99", "max", "shed",
               *(["in time"] if some else []), *names,
               *(["MB"] if any(f.memory_mb for f in report.levels) else [])]  # fmt: skip
    for column in columns:
        table.add_column(column, justify="left" if column == "load" else "right", no_wrap=True)
    for found in report.levels:
        met = "" if found.deadline_met is None else f"{found.deadline_met:.1%}"
        memory = found.memory_mb
        table.add_row(
            _load(found),
            _short(found.requests_per_s),
            _short(found.images_per_s),
            *(_short(found.latency_ms.get(p)) for p in ("p50", "p90", "p99", "max")),
            f"{found.shed:.1%}",
            *([met] if some else []),
            *(_short(found.server_ms.get(name)) for name in names),
            *([f"{memory['max']:,.0f}"] if memory else []),
        )
    return table


def notes(report: Report) -> list[str]:
    """What is to be said beside the numbers, a line each."""
    client, total = report.client, report.checked
    lines = [
        f"images: {total.identical:,} identical, {total.within_one:,} within one level, "
        f"{total.wrong:,} wrong; compared with {report.checked_by}",
        f"the generator itself costs {client['cpu_ms']:.3f} ms of processor time a request, and "
        f"{client['round_trip_ms']:.3f} ms until a server that does nothing has answered",
    ]
    for found in report.levels:
        name = _load(found)
        if found.bottleneck is not None:
            lines.append(f"{name}: the generator was the bottleneck: {found.bottleneck}")
        for kind, counts in (("refused", found.refused), ("FAILED", found.failed)):
            if counts:
                each = ", ".join(f"{n:,} × {what}" for what, n in counts.items())
                lines.append(f"{name}: {kind} of {found.requests:,}: {each}")
        if found.recovery is not None:
            lines.append(f"{name}: {_recovery(found.recovery)}")
    other = max((f.other_cores or 0.0 for f in report.levels), default=0.0)
    if other > QUIET:
        lines.append(f"the machine was not quiet: other processes used up to {other:.2f} cores")
    if memory := [f.memory_mb for f in report.levels if f.memory_mb]:
        lines.append(f"server memory: {memory[0]['before']:.0f} MB before, "
                     f"{max(m['max'] for m in memory):.0f} at most, "
                     f"{memory[-1]['after']:.0f} after")  # fmt: skip
    if report.ready_s is not None:
        lines.append(f"the server was ready after {report.ready_s:.2f} s")
    return lines


def _recovery(after: dict[str, Any]) -> str:
    if after["first_ms"] is None:
        return "no images came after the load had ended"
    each = ", ".join(f"{ms:.1f}" for ms in after["latency_ms"][:6])
    return (
        f"images came {after['first_ms']:.0f} ms after the load had ended ({after['refused']} "
        f"refusals before); the first requests took {each} … ms"
    )


def _form(report: Report) -> str:
    images = report.levels[0].images
    form = f" {report.format}" if report.protocol == "native" else ""
    return f"{form}, {images} images a request" if images > 1 else f"{form}, one image a request"


def _load(found: Level) -> str:
    return f"{found.concurrency} at once" if found.mode == "closed" else (
        f"{_short(found.offered_per_s)} req/s"
    )  # fmt: skip


def _short(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"

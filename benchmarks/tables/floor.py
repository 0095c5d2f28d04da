"""How near the engines come to their floor, against what the project asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmf_deploy.serve.bench.profile_beyond import BEYOND
from mmf_deploy.serve.bench.profile_words import title
from mmf_deploy.serve.bench.profiles import from_content
from mmf_deploy.serve.bench.subjects import shown_name

from mmf_deploy.results import Table

from .common import common

TARGETS = {"fp32": 0.85, "int8": 0.55}
"""Share of the floor of the CIFAR-10 UNet on two cores (docs/benchmarks.md)."""
BASELINES = ("pytorch", "plain-")
"""Neither an engine nor an export of ours."""


def verdict(found: dict[str, Any], link: str) -> str:
    """The target of each type, what every engine of ours reaches, and whether that is enough."""
    rows = [
        (dtype, row, row["of_floor"] >= target)
        for dtype, target in TARGETS.items()
        for row in sorted(_ours(found["rows"], dtype), key=lambda r: -r["of_floor"])
    ]
    sums = []
    for dtype, target in TARGETS.items():
        best = max(_ours(found["rows"], dtype), key=lambda r: r["of_floor"])
        reached = "reached" if best["of_floor"] >= target else "missed"
        sums.append(f"{target:.0%} of the floor in {dtype}: **{reached}**, with "
                    f"{best['of_floor']:.0%} by {_name(best)}")  # fmt: skip
    table = Table(
        "",
        ["engine", "asked for", "of floor", "floor ms", "median ms", "verdict"],
        [
            [_name(row), f"{TARGETS[dtype]:.0%}", f"{row['of_floor']:.0%}",
             f"{row['floor_ms']:.2f}", f"{row['median_ms']:.2f}", "reached" if kept else "missed"]
            for dtype, row, kept in rows
        ],
    )  # fmt: skip
    asked = ";\n".join(sums)
    return f"The project asks for {asked}\n([results]({link})).\n\n{table.markdown()}"


def beyond(found: dict[str, Any], link: str) -> str:
    """Where the fastest engine of each type loses what is between its time and its floor."""
    tables = []
    for dtype in TARGETS:
        best = min(_ours(found["profiles"], dtype), key=lambda p: p["plain_ms"])
        tables.append(f"{BEYOND}: {title(from_content(best))}")
    return common(found, link, tables=tables, pictures=[])


def _ours(rows: Sequence[dict[str, Any]], dtype: str) -> list[dict[str, Any]]:
    found = [
        row for row in rows
        if row["variant"].endswith(dtype)
        and not any(row[key].startswith(BASELINES) for key in ("engine", "variant"))
    ]  # fmt: skip
    if not found:
        raise SystemExit(f"no engine in {dtype}, which has a target")
    return found


def _name(row: dict[str, Any]) -> str:
    return shown_name(row["engine"], row["variant"])

"""Quality against latency: which variants are worth having."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmf_deploy.figures import GREY, bare, figure, log_ticks, save

from .plot import best_rows, colours, markers
from .report import Report, name, quality_key, quality_of
from .rows import Row
from .subjects import BASELINE

LABELS = {"frechet": "Fréchet distance to real data (less is better)",
          "psnr": "PSNR to PyTorch fp32, dB (more is better)"}  # fmt: skip
EQUAL_DB = 100.0
"""What is equal to every bit has no finite PSNR; a PSNR is drawn up to here."""


def frontier_rows(report: Report) -> list[tuple[Row, float, bool]]:
    """Variants at the smallest batch: row, quality, and whether it is worth having.

    It is not where another one is better in latency or in quality, and no worse in the other.
    """
    quality, sign = quality_of(report), -1.0 if quality_key(report) == "psnr" else 1.0
    batch = min(row.batch for row in report.rows)
    points = [
        (row, min(quality[row.variant], EQUAL_DB) if sign < 0 else quality[row.variant])
        for rows in best_rows(report).values()
        for row in rows
        if row.batch == batch and row.engine != BASELINE and row.variant in quality
    ]
    costs = [(row.median_ms, sign * q) for row, q in points]
    return [
        (row, q, not any(_beats(other, cost) for other in costs))
        for (row, q), cost in zip(points, costs, strict=True)
    ]


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def plot(report: Report, path: Path) -> None:
    """A point a variant, filled and joined by a line where it is worth having, as a PNG."""
    points = frontier_rows(report)
    series = best_rows(report)
    colour_of, marker_of = colours(series), markers(series)
    drawn = figure(9, 4.5)
    axis = drawn.subplots()
    for row, quality, top in points:
        key = row.engine, row.variant
        axis.plot(row.median_ms, quality, marker_of[key], label=name(row), color=colour_of[key],
                  markersize=9, markeredgewidth=1.6, fillstyle="full" if top else "none",
                  )  # fmt: skip
    best = sorted(((r.median_ms, q) for r, q, top in points if top))
    axis.plot([x for x, _ in best], [y for _, y in best], "-", color=GREY, linewidth=1,
              zorder=0)  # fmt: skip
    _milliseconds(axis, [row.median_ms for row, _, _ in points])
    batch = points[0][0].batch
    axis.set_xlabel(f"milliseconds per image at batch {batch}, best number of threads")
    axis.set_ylabel(LABELS[quality_key(report) or "psnr"])
    axis.margins(y=0.15)
    bare(axis)
    # points lie close together, so their names stand beside the picture
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axis.set_title(f"{report.bundle}: quality against latency; hollow where another is at least as "
                   "good in both", fontsize=10)  # fmt: skip
    save(drawn, path)


def _milliseconds(axis: Any, values: Sequence[float]) -> None:
    low, high = min(values) / 1.2, max(values) * 1.2
    axis.set_xscale("log")
    axis.set_xlim(low, high)
    ticks = log_ticks(low, high)
    axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axis.minorticks_off()

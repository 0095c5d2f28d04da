"""Quality against latency: which variants are worth having."""

from __future__ import annotations

from pathlib import Path

from mmf_deploy.figures import bare, figure, save

from .plot import best_rows, colours
from .report import Report, name, quality_key, quality_of
from .rows import Row
from .subjects import BASELINE

LABELS = {"frechet": "Fréchet distance to real data (less is better)",
          "psnr": "PSNR to PyTorch fp32, dB (more is better)"}  # fmt: skip
MARKERS = "osD^vPX*"
EQUAL_DB = 100.0
"""What is equal to every bit has no finite PSNR; a PSNR is drawn up to here."""


def frontier_rows(report: Report) -> list[tuple[Row, float, bool]]:
    """Variants at the smallest batch: row, quality, and whether no other is better in both."""
    quality, sign = quality_of(report), -1.0 if quality_key(report) == "psnr" else 1.0
    batch = min(row.batch for row in report.rows)
    points = [
        (row, min(quality[row.variant], EQUAL_DB) if sign < 0 else quality[row.variant])
        for rows in best_rows(report).values()
        for row in rows
        if row.batch == batch and row.engine != BASELINE and row.variant in quality
    ]
    return [
        (row, q, not any(o.median_ms < row.median_ms and sign * other < sign * q
                         for o, other in points))
        for row, q in points
    ]  # fmt: skip


def plot(report: Report, path: Path) -> None:
    """A point a variant, a line through those that no other beats in both, as a PNG."""
    points = frontier_rows(report)
    colour_of = colours(best_rows(report))
    drawn = figure(9, 4.5)
    axis = drawn.subplots()
    for k, (row, quality, _) in enumerate(points):
        axis.plot(row.median_ms, quality, MARKERS[k % len(MARKERS)], label=name(row),
                  color=colour_of[row.engine, row.variant], markersize=9)  # fmt: skip
    best = sorted(((r.median_ms, q) for r, q, top in points if top))
    axis.plot([x for x, _ in best], [y for _, y in best], "-", color="#8c8c8c", linewidth=1,
              zorder=0)  # fmt: skip
    axis.set_xscale("log")
    low, high = min(r.median_ms for r, _, _ in points), max(r.median_ms for r, _, _ in points)
    ticks = [m * 10.0**e for e in range(-4, 6) for m in (1, 2, 5)]
    ticks = [t for t in ticks if low / 1.5 <= t <= high * 2]
    axis.set_xlim(low / 1.3, high * 1.3)
    axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axis.minorticks_off()
    batch = points[0][0].batch
    axis.set_xlabel(f"milliseconds per image at batch {batch}, best number of threads")
    axis.set_ylabel(LABELS[quality_key(report) or "psnr"])
    axis.margins(y=0.15)
    bare(axis)
    # points lie close together, so their names stand beside the picture
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axis.set_title(f"{report.bundle}: quality against latency; the line joins what nothing beats "
                   "in both", fontsize=10)  # fmt: skip
    save(drawn, path)

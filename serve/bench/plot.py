"""The benchmark as a picture."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from mmf_deploy.figures import COLOURS, GREY, MARKERS, figure, log_ticks, save

from .report import Report
from .rows import Row
from .subjects import BASELINE, EAGER, shown_name

GREYS = (GREY, "#b5b5b5", "#5f5f5f", "#d0d0d0")
HATCHES = ("", "///", "...", "xxx")
MANY = 3
"""More engines than this need narrower labels, and a legend outside."""


def plot(report: Report, path: Path) -> None:
    """Latency per image and the speed-up over PyTorch eager, as a PNG."""
    series = best_rows(report)
    if len({row.batch for row in report.rows}) == 1:
        drawn = figure(8, 1.5 + 0.36 * len(series))
        _one_batch(drawn.subplots(), series)
    else:
        drawn = _several_batches(series)
    drawn.suptitle(
        f"{report.bundle}: {report.parameters / 1e6:.2f}M parameters, {report.machine['cpu']}",
        fontsize=11,
    )
    save(drawn, path)


def _several_batches(series: Series) -> Any:
    """Lines of latency by batch size, and bars of the speed-up where there is a baseline."""
    with_ratio = any(r.speedup is not None and not _is_baseline(r) for r in _rows(series))
    many = len(series) > MANY
    drawn = figure((14 if many else 10) if with_ratio else 5.5, 4.6 if many else 4)
    axes = drawn.subplots(1, 2 if with_ratio else 1, squeeze=False)
    _latency(axes[0][0], series)
    if with_ratio:
        _speedup(axes[0][1], series)
    if many:
        axes[0][-1].legend(*axes[0][0].get_legend_handles_labels(), frameon=False,
                           loc="center left", bbox_to_anchor=(1.0, 0.5))  # fmt: skip
    else:
        axes[0][0].legend(frameon=False)
    return drawn


def _one_batch(axis: Any, series: Series) -> None:
    """A bar an engine: nothing to draw a line through."""
    colour_of, hatch_of = colours(series), hatches(series)
    batch = next(iter(_rows(series))).batch
    longest = max(r.p90_ms for r in _rows(series))
    for k, ((engine, variant), (row,)) in enumerate(reversed(series.items())):
        axis.barh(k, row.median_ms, 0.7, color=colour_of[engine, variant],
                  hatch=hatch_of[engine, variant], edgecolor="white", linewidth=0)  # fmt: skip
        axis.plot([row.median_ms, row.p90_ms], [k, k], color="#333333", linewidth=1)
        if row.floor_ms is not None:
            axis.plot([row.floor_ms] * 2, [k - 0.35, k + 0.35], color="#000000", linewidth=2)
        ratio = "" if row.speedup is None else f"   {row.speedup:.2f}×"
        axis.text(row.p90_ms + longest / 80, k, f"{row.median_ms:.3g} ms{ratio}",
                  va="center", fontsize=9)  # fmt: skip
    axis.set_yticks(range(len(series)), [shown_name(*key) for key in reversed(series)])
    axis.set_xlim(0, longest * 1.22)
    floor = "; black: the floor" if any(r.floor_ms is not None for r in _rows(series)) else ""
    axis.set_xlabel(f"milliseconds per image at batch {batch}: median, line up to p90{floor}")
    axis.spines[["top", "right"]].set_visible(False)


def _rows(series: Series) -> list[Row]:
    return [row for rows in series.values() for row in rows]


def _is_baseline(row: Row) -> bool:
    return _is_eager(row.engine, row.variant)


def _is_eager(engine: str, variant: str) -> bool:
    return engine == BASELINE and variant.startswith(EAGER)


Series = dict[tuple[str, str], list[Row]]


def best_rows(report: Report) -> Series:
    """For every engine and variant, its fastest row at each batch size."""
    best: dict[tuple[str, str, int], Row] = {}
    for row in report.rows:
        key = (row.engine, row.variant, row.batch)
        if key not in best or row.median_ms < best[key].median_ms:
            best[key] = row
    series: Series = {}
    for row in best.values():
        series.setdefault((row.engine, row.variant), []).append(row)
    return series


def colours(series: Series) -> dict[tuple[str, str], str]:
    """Greys for PyTorch eager in each number of steps, other colours for everything else.

    More than there are colours begin again; ``markers`` and ``hatches`` tell those apart.
    """
    eager = [key for key in series if _is_eager(*key)]
    others = [key for key in series if not _is_eager(*key)]
    greys = {key: GREYS[k % len(GREYS)] for k, key in enumerate(eager)}
    return greys | {key: COLOURS[k % len(COLOURS)] for k, key in enumerate(others)}


def markers(series: Series) -> dict[tuple[str, str], str]:
    """A marker for each, in turn."""
    return {key: MARKERS[k % len(MARKERS)] for k, key in enumerate(series)}


def hatches(series: Series) -> dict[tuple[str, str], str]:
    """None for the first of a colour; for bars, which have no markers."""
    found, seen = {}, Counter[str]()
    for key, colour in colours(series).items():
        found[key] = HATCHES[seen[colour] % len(HATCHES)]
        seen[colour] += 1
    return found


def _latency(axis: Any, series: Series) -> None:
    colour_of, marker_of = colours(series), markers(series)
    for (engine, variant), rows in series.items():
        batches = [r.batch for r in rows]
        median, p90 = [r.median_ms for r in rows], [r.p90_ms for r in rows]
        colour = colour_of[engine, variant]
        marker = marker_of[engine, variant]
        axis.plot(batches, median, f"{marker}-", color=colour, label=shown_name(engine, variant))
        axis.fill_between(batches, median, p90, color=colour, alpha=0.2, linewidth=0)
    axis.set(xscale="log", yscale="log", xlabel="batch size", ylabel="milliseconds per image")
    batches = sorted({r.batch for rows in series.values() for r in rows})
    axis.set_xticks(batches, [str(b) for b in batches])
    axis.minorticks_off()
    values = [v for rows in series.values() for r in rows for v in (r.median_ms, r.p90_ms)]
    ticks = log_ticks(min(values) / 1.3, max(values) * 1.3)
    axis.set_yticks(ticks, [f"{t:g}" for t in ticks])
    axis.set_ylim(min(values) / 1.3, max(values) * 1.3)
    axis.grid(alpha=0.3)
    axis.set_title("best number of threads; median, shaded up to p90", fontsize=10)


def _speedup(axis: Any, series: Series) -> None:
    shown = [(key, rows) for key, rows in series.items() if not _is_eager(*key)]
    colour_of, hatch_of = colours(series), hatches(series)
    width = 0.8 / len(shown)
    for k, ((engine, variant), rows) in enumerate(shown):
        positions = [i + (k - (len(shown) - 1) / 2) * width for i in range(len(rows))]
        bars = axis.bar(
            positions,
            [r.speedup or 0.0 for r in rows],
            width * 0.9,
            color=colour_of[engine, variant],
            hatch=hatch_of[engine, variant],
            edgecolor="white",
            linewidth=0,
            label=shown_name(engine, variant),
        )
        axis.bar_label(
            bars,
            [f"{r.speedup:.2f}×" for r in rows],
            fontsize=9 if len(shown) <= MANY else 8,
            padding=2,
            rotation=0 if len(shown) <= MANY else 90,
        )
    margin = 0.5 + max(0, 3 - len(shown[0][1])) / 2  # no wider bars than with three batch sizes
    axis.set_xlim(-margin, len(shown[0][1]) - 1 + margin)
    axis.axhline(1.0, color=GREY, linestyle="--", linewidth=1)
    axis.set_xticks(range(len(shown[0][1])), [str(r.batch) for r in shown[0][1]])
    axis.set(xlabel="batch size", ylabel="times faster than PyTorch eager")
    axis.margins(y=0.15)
    axis.set_title("speed-up over PyTorch eager (dashed)", fontsize=10)

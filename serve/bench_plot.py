"""The benchmark as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmf_deploy.errors import require

from .bench import BASELINE, Report, Row

COLOURS = {BASELINE: "#8c8c8c", "onnxruntime": "#1f6fb2"}


def plot(report: Report, path: Path) -> None:
    """Latency per image by batch size, and the speed-up over PyTorch eager, as a PNG."""
    matplotlib = require("matplotlib", "bench")
    matplotlib.use("Agg")
    plt: Any = require("matplotlib.pyplot", "bench")
    with_ratio = any(row.speedup is not None and row.engine != BASELINE for row in report.rows)
    figure, axes = plt.subplots(
        1, 2 if with_ratio else 1, figsize=(10 if with_ratio else 5.5, 4), squeeze=False
    )
    series = best_rows(report)
    _latency(axes[0][0], series)
    if with_ratio:
        _speedup(axes[0][1], series)
    figure.suptitle(
        f"{report.bundle}: {report.parameters / 1e6:.2f}M parameters, {report.machine['cpu']}",
        fontsize=11,
    )
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


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


def _latency(axis: Any, series: Series) -> None:
    for (engine, variant), rows in series.items():
        batches = [r.batch for r in rows]
        median, p90 = [r.median_ms for r in rows], [r.p90_ms for r in rows]
        colour = COLOURS.get(engine)
        axis.plot(batches, median, "o-", color=colour, label=f"{engine} {variant}")
        axis.fill_between(batches, median, p90, color=colour, alpha=0.2, linewidth=0)
    axis.set(xscale="log", yscale="log", xlabel="batch size", ylabel="milliseconds per image")
    batches = sorted({r.batch for rows in series.values() for r in rows})
    axis.set_xticks(batches, [str(b) for b in batches])
    axis.minorticks_off()
    values = [v for rows in series.values() for r in rows for v in (r.median_ms, r.p90_ms)]
    ticks = _decade_ticks(min(values), max(values))
    axis.set_yticks(ticks, [f"{t:g}" for t in ticks])
    axis.set_ylim(min(values) / 1.3, max(values) * 1.3)
    axis.grid(alpha=0.3)
    axis.set_title("best number of threads; median, shaded up to p90", fontsize=10)
    axis.legend(frameon=False)


def _decade_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, … around the range: a log axis of less than a decade has no ticks otherwise."""
    ticks = [m * 10.0**e for e in range(-5, 6) for m in (1, 2, 5)]
    return [t for t in ticks if low / 1.3 <= t <= high * 1.3]


def _speedup(axis: Any, series: Series) -> None:
    shown = [(key, rows) for key, rows in series.items() if key[0] != BASELINE]
    width = 0.8 / len(shown)
    for k, ((engine, variant), rows) in enumerate(shown):
        positions = [i + (k - (len(shown) - 1) / 2) * width for i in range(len(rows))]
        bars = axis.bar(
            positions,
            [r.speedup or 0.0 for r in rows],
            width * 0.9,
            color=COLOURS.get(engine),
            label=f"{engine} {variant}",
        )
        axis.bar_label(bars, [f"{r.speedup:.2f}×" for r in rows], fontsize=9, padding=2)
    margin = 0.5 + max(0, 3 - len(shown[0][1])) / 2  # no wider bars than with three batch sizes
    axis.set_xlim(-margin, len(shown[0][1]) - 1 + margin)
    axis.axhline(1.0, color=COLOURS[BASELINE], linestyle="--", linewidth=1)
    axis.set_xticks(range(len(shown[0][1])), [str(r.batch) for r in shown[0][1]])
    axis.set(xlabel="batch size", ylabel="times faster than PyTorch eager")
    axis.margins(y=0.15)
    axis.set_title("speed-up over PyTorch eager (dashed)", fontsize=10)

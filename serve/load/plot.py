"""A load test as a picture: latency against the load, and the share that was refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmf_deploy.figures import COLOURS, GREY, bare, figure, save

from .report import Level, Report

QUANTILES = ("p50", "p90", "p99")


def plot(report: Report, path: Path) -> None:
    """Draw the open loops against the offered load, or the closed ones if there are no others."""
    opened = sorted((f for f in report.levels if f.mode == "open"), key=lambda f: f.offered_per_s)
    shown = opened or [f for f in report.levels if f.mode == "closed"]
    drawn = figure(8, 5.6)
    upper, lower = drawn.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    x = [f.offered_per_s if opened else float(f.concurrency or 0) for f in shown]
    _latency(upper, x, shown)
    if opened:
        _shed(lower, x, shown)
        lower.set_xlabel("requests a second, offered")
        if report.capacity_per_s is not None:
            _capacity(upper, lower, report.capacity_per_s)
    else:
        _throughput(lower, x, shown)
        lower.set_xscale("log")
        lower.set_xticks(x, [f"{v:g}" for v in x])
        lower.minorticks_off()
        lower.set_xlabel("clients, each waiting for its reply")
    drawn.legend(*upper.get_legend_handles_labels(), frameon=False, ncols=4,
                 loc="outside lower center")  # fmt: skip
    images = shown[0].images
    each = "one image a request" if images == 1 else f"{images} images a request"
    drawn.suptitle(f"{report.model}: {each}, {report.machine['cpu']}", fontsize=11)
    save(drawn, path)


def _latency(axis: Any, x: list[float], shown: list[Level]) -> None:
    values = [f.latency_ms[q] for f in shown for q in QUANTILES if q in f.latency_ms]
    for quantile, colour in zip(QUANTILES, COLOURS, strict=False):
        y = [f.latency_ms.get(quantile, float("nan")) for f in shown]
        axis.plot(x, y, "o-", color=colour, label=quantile, markersize=4)
    late = [k for k, f in enumerate(shown) if f.bottleneck is not None and f.latency_ms]
    if late:
        axis.plot(
            [x[k] for k in late], [shown[k].latency_ms["p99"] for k in late], "o", color=GREY,
            markersize=11, fillstyle="none", label="the generator was the bottleneck",
        )  # fmt: skip
    axis.set_yscale("log")
    if values:
        low, high = min(values) / 1.5, max(values) * 1.5
        ticks = _ticks(low, high)
        axis.set_yticks(ticks, [f"{t:g}" for t in ticks])
        axis.minorticks_off()
        axis.set_ylim(low, high)
    axis.set_ylabel("milliseconds until the reply")
    axis.set_title("latency of what was answered with images, from the time it was due",
                   fontsize=10)  # fmt: skip
    bare(axis)


def _ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, …; more of them where the range has fewer than three of these."""
    for steps in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        ticks = [m * 10.0**e for e in range(-3, 7) for m in steps]
        ticks = [t for t in ticks if low <= t <= high]
        if len(ticks) >= 3:
            break
    return ticks


def _shed(axis: Any, x: list[float], shown: list[Level]) -> None:
    axis.fill_between(x, [100 * f.shed for f in shown], color=COLOURS[1], alpha=0.25, linewidth=0)
    axis.plot(x, [100 * f.shed for f in shown], "o-", color=COLOURS[1], markersize=4)
    axis.set_ylabel("% refused")
    axis.set_ylim(0, max(10.0, 105 * max(f.shed for f in shown)))
    axis.set_xlim(left=0)
    bare(axis)


def _throughput(axis: Any, x: list[float], shown: list[Level]) -> None:
    axis.plot(x, [f.requests_per_s for f in shown], "o-", color=COLOURS[2], markersize=4)
    axis.set_ylabel("replies/s")
    axis.set_ylim(0, 1.15 * max(f.requests_per_s for f in shown) or 1.0)
    bare(axis)


def _capacity(upper: Any, lower: Any, per_s: float) -> None:
    for axis in (upper, lower):
        axis.axvline(per_s, color=GREY, linestyle="--", linewidth=1)
    upper.annotate(
        "capacity", (per_s, 1.0), xycoords=("data", "axes fraction"), xytext=(4, -12),
        textcoords="offset points", color=GREY, fontsize=9,
    )  # fmt: skip

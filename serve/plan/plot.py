"""The plan as a picture: latency of one replica against its rate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmf_deploy.figures import COLOURS, GREY, bare, figure, save

from .check import Checked
from .planner import Plan, Point

NAMES = ("p50", "p99")


def plot(
    title: str, plan: Plan, curve: Sequence[Point], checked: Sequence[Checked], path: Path
) -> None:
    """Draw the simulated percentiles, the target and the answer, and what was measured.

    Args:
        curve: one replica at rising rates.
    """
    drawn = figure(8, 4.8)
    axis = drawn.subplots()
    for name, colour in zip(NAMES, COLOURS, strict=False):
        values = [getattr(p, f"{name}_ms") for p in curve]
        axis.plot([p.per_s for p in curve], values, color=colour, label=f"{name}, simulated")
    _answer(axis, plan)
    for name, colour in zip(NAMES, COLOURS, strict=False):
        _measured(axis, name, colour, checked)
    axis.axhline(plan.target_ms, color=GREY, linestyle="--", linewidth=1)
    axis.axvline(plan.capacity_per_s, color=GREY, linestyle=":", linewidth=1)
    _scale(axis, plan, curve, checked)
    axis.set_xlabel("requests a second to one replica")
    axis.set_ylabel("milliseconds until the reply")
    axis.legend(frameon=False, loc="upper left", fontsize=9)
    bare(axis)
    drawn.suptitle(title, fontsize=11)
    save(drawn, path)


def _measured(axis: Any, name: str, colour: str, checked: Sequence[Checked]) -> None:
    """Points, and what chance alone would do to them; only the first name is in the legend."""
    if not checked:
        return
    quiet = "_" if name != NAMES[0] else ""
    x = [c.per_s for c in checked]
    low, high = ([c.band_ms[name][k] for c in checked] for k in (0, 1))
    axis.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    for limited, what in (
        (False, "measured"),
        (True, "measured; the generator was the bottleneck"),
    ):
        shown = [c for c in checked if (c.bottleneck is not None) is limited]
        y = [c.measured_ms[name] for c in shown]
        axis.plot([c.per_s for c in shown], y, "o", color=colour, markersize=6,
                  fillstyle="none" if limited else "full")  # fmt: skip
        if shown:
            axis.plot([], [], "o", color=GREY, markersize=6, label=quiet + what,
                      fillstyle="none" if limited else "full")  # fmt: skip
    axis.fill_between([], [], [], color=GREY, alpha=0.3, linewidth=0,
                      label=quiet + "19 of 20 simulations as short as the measurement")  # fmt: skip


def _answer(axis: Any, plan: Plan) -> None:
    answer = plan.answer
    axis.plot([answer.per_s], [answer.p99_ms], "D", color="black", markersize=6,
              label="p99 of the answer: " + ("one replica" if plan.replicas == 1 else
                                                  f"each of {plan.replicas} replicas"))  # fmt: skip


def _scale(axis: Any, plan: Plan, curve: Sequence[Point], checked: Sequence[Checked]) -> None:
    values = [p.p50_ms for p in curve] + [p.p99_ms for p in curve] + [plan.target_ms]
    values += [c.measured_ms[name] for c in checked for name in NAMES]
    low, high = min(values) / 1.5, max(values) * 2.5
    axis.set_yscale("log")
    ticks = [m * 10.0**e for e in range(-3, 7) for m in (1, 2, 5)]
    ticks = [t for t in ticks if low <= t <= high]
    axis.set_yticks(ticks, [f"{t:g}" for t in ticks])
    axis.minorticks_off()
    axis.set_ylim(low, high)
    axis.set_xlim(0, plan.capacity_per_s * 1.06)
    axis.annotate("target", (0, plan.target_ms), xytext=(4, 3), textcoords="offset points",
                  color=GREY, fontsize=9)  # fmt: skip
    axis.annotate("capacity", (plan.capacity_per_s, low), xytext=(-3, 6), rotation=90, ha="right",
                  textcoords="offset points", color=GREY, fontsize=9)  # fmt: skip

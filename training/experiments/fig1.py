"""Figure 1: the loss over training, and how steady training is, by λ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from mmf_deploy.figures import bare, figure, save
from mmf_deploy.results import Picture, Table

from .cells import mean_sd
from .lab import Found, Lab, Measurement, Report
from .style import colour, label, legend_below, plain_ticks

BY_LAMBDA = ("mmf-lambda0", "mmf-lambda0.5", "mmf-lambda1", "mmf")


def plan(lab: Lab) -> list[Measurement]:
    """Every λ with every seed."""
    return [Measurement(run, "stability") for o in BY_LAMBDA for run in lab.images(o)]


def report(found: Found) -> Report:
    """Curves, and a row a λ."""
    rows = [
        [
            objective,
            mean_sd(found.values(runs, "stability", "loss"), ".4f"),
            mean_sd(found.values(runs, "stability", "rolling_variance"), ".2f", 1e6),
            mean_sd(found.values(runs, "stability", "gradient_variation"), ".3f"),
        ]
        for objective in BY_LAMBDA
        for runs in [found.lab.images(objective)]
    ]
    columns = ["objective", "loss, last half", "rolling variance × 10⁶",
               "variation of the gradient norm"]  # fmt: skip
    notes = (
        "unweighted squared error of the identity, divided by the number of elements; it does not "
        "depend on λ, only its gradient does",
        "rolling variance: median over windows of ten logged steps; variation: standard deviation "
        "over mean; both over the last half of the run",
        *found.lost(found.lab.by_objective(BY_LAMBDA), "stability"),
    )
    picture = Picture("loss.png", "unweighted loss over training and its steadiness, by λ")
    return Report("Figure 1: loss and steadiness of training by λ",
                  [Table("Steadiness", columns, rows, notes)],
                  {picture: lambda path: _draw(found, path)})  # fmt: skip


def _draw(found: Found, path: Path) -> None:
    drawn = figure(9.5, 3.8)
    left, middle, right = drawn.subplots(1, 3, width_ratios=(2, 1, 1))
    for place, objective in enumerate(BY_LAMBDA):
        runs, tint = found.lab.images(objective), colour(objective)
        curves = [c for run in runs if (c := found.of(run, "stability").get("curve"))]
        _band(left, curves, tint, label(objective))
        for axis, key, scale in ((middle, "rolling_variance", 1e6),
                                 (right, "gradient_variation", 1.0)):  # fmt: skip
            values = [scale * v for v in found.values(runs, "stability", key)]
            axis.bar(place, fmean(values) if values else 0, color=tint)
            axis.plot([place] * len(values), values, ".", color="#222222")
    left.set_xlabel("optimiser step")
    left.set_ylabel("squared error / d")
    left.set_yscale("log")
    plain_ticks(left)
    middle.set_title("rolling variance of the loss × 10⁶", fontsize=9)
    right.set_title("variation of the gradient norm", fontsize=9)
    for axis in (middle, right):
        axis.set_xticks([])
    for axis in (left, middle, right):
        bare(axis)
    legend_below(drawn, left, 4)
    save(drawn, path)


def _band(axis: Any, curves: Sequence[Mapping[str, list[float]]], tint: str, name: str) -> None:
    """The mean over seeds, and one standard deviation to both sides."""
    whole = [c for c in curves if None not in c["loss"]]
    if not whole:
        return
    columns = list(zip(*(c["loss"] for c in whole), strict=True))
    mean = [fmean(values) for values in columns]
    axis.plot(whole[0]["step"], mean, color=tint, label=name)
    if len(whole) > 1:
        apart = [stdev(values) for values in columns]
        axis.fill_between(
            whole[0]["step"],
            [m - a for m, a in zip(mean, apart, strict=True)],
            [m + a for m, a in zip(mean, apart, strict=True)],
            color=tint, alpha=0.2, linewidth=0,
        )  # fmt: skip

"""Figure 4: how different two samples of one class are, and how much the loss varies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from mmf_deploy.figures import bare, figure, save
from mmf_deploy.results import Picture, Table

from .cells import mean_sd
from .lab import SIX, Found, Lab, Measurement, Report
from .style import REAL, colour, label


def plan(lab: Lab) -> list[Measurement]:
    """The six objectives with every seed."""
    return [
        Measurement(run, probe)
        for objective in SIX
        for run in lab.images(objective)
        for probe in ("diversity", "stability")
    ]


def report(found: Found) -> Report:
    """A row an objective, and one for the real data."""
    rows: list[list[str]] = []
    distance, reality = "LPIPS", list[float]()
    for objective in SIX:
        runs = found.lab.images(objective)
        numbers = [n for run in runs if "failed" not in (n := found.of(run, "diversity"))]
        distance = numbers[0]["distance"] if numbers else distance
        reality = reality or [n["real"]["mean"] for n in numbers[:1]]
        rows.append([
            objective,
            mean_sd([n["generated"]["mean"] for n in numbers]),
            mean_sd([n["generated"]["quantiles"][0] for n in numbers]),
            mean_sd([n["generated"]["quantiles"][-1] for n in numbers]),
            mean_sd(found.values(runs, "stability", "rolling_variance"), ".2f", 1e6),
            mean_sd(found.values(runs, "stability", "loss_variation"), ".3f"),
        ])  # fmt: skip
    rows.append(["real data", mean_sd(reality), "", "", "", ""])
    columns = ["objective", f"{distance} of pairs", "5% below", "5% above",
               "rolling variance of the loss × 10⁶", "variation of the loss"]  # fmt: skip
    notes = (
        f"{found.lab.scale.pairs:,} pairs a class; less is not better by itself: the right value "
        "is that of pairs of real images",
        "variation: standard deviation over mean, which compares losses of different sizes",
        *found.lost(found.lab.by_objective(SIX), "diversity"),
    )
    picture = Picture("diversity.png", f"{distance} between two samples of one class: median, "
                                       "quartiles, 5% and 95%")  # fmt: skip
    return Report("Figure 4: diversity and variance of training",
                  [Table("Pairs of one class", columns, rows, notes)],
                  {picture: lambda path: _draw(found, distance, path)})  # fmt: skip


def _draw(found: Found, distance: str, path: Path) -> None:
    drawn = figure(10, 4)
    left, right = drawn.subplots(1, 2, width_ratios=(3, 2))
    boxes, tints, names = [], [], []
    for objective in SIX:
        numbers = [n for run in found.lab.images(objective)
                   if "failed" not in (n := found.of(run, "diversity"))]  # fmt: skip
        if numbers:
            boxes.append(_box([n["generated"] for n in numbers]))
            tints.append(colour(objective))
            names.append(label(objective))
            real = [n["real"] for n in numbers[:1]]
    if not boxes:
        return save(drawn, path)
    boxes, tints, names = [*boxes, _box(real)], [*tints, REAL], [*names, "real data"]
    shown = left.bxp(boxes, showfliers=False, patch_artist=True, orientation="horizontal",
                     medianprops={"color": "white"})  # fmt: skip
    for patch, tint in zip(shown["boxes"], tints, strict=True):
        patch.set_facecolor(tint)
    left.set_yticks(range(1, len(names) + 1), names)
    left.axvline(boxes[-1]["med"], color=REAL, linestyle="--", linewidth=1)
    left.set_xlabel(f"{distance} within pairs of one class")
    for place, objective in enumerate(SIX):
        values = [1e6 * v for v in found.values(found.lab.images(objective), "stability",
                                                "rolling_variance")]  # fmt: skip
        right.barh(place, fmean(values) if values else 0, color=colour(objective))
        right.plot(values, [place] * len(values), ".", color=REAL)
    right.set_yticks(range(len(SIX)), [label(o) for o in SIX])
    right.set_xscale("log")
    right.set_xlabel("rolling variance of the loss × 10⁶")
    for axis in (left, right):
        axis.invert_yaxis()
        bare(axis)
    return save(drawn, path)


def _box(spreads: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Quantiles, each the mean over seeds, as matplotlib wants them."""
    columns = zip(*(s["quantiles"] for s in spreads), strict=True)
    low, first, median, third, high = (fmean(column) for column in columns)
    return {"whislo": low, "q1": first, "med": median, "q3": third, "whishi": high, "label": ""}

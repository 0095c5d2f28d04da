"""Figure 3b: out of distribution. Encode what is unlike the training data, decode in one step."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from mmf_deploy.figures import bare, figure, save
from mmf_deploy.results import Picture, Table

from ..metrics.corruptions import CORRUPTIONS, SEVERITIES
from .cells import NOTHING, mean_sd
from .lab import SIX, Found, Lab, Measurement, Report
from .style import colour, label, legend_below

SHOWN = (1, 3, 5)


def plan(lab: Lab) -> list[Measurement]:
    """The six objectives with every seed."""
    return [Measurement(run, "shifts") for objective in SIX for run in lab.images(objective)]


def report(found: Found) -> Report:
    """A row an objective, a column a kind and severity."""
    others = list(found.lab.scale.shifts)
    columns = ["objective", "clean", *(f"{k} {s}" for k in CORRUPTIONS for s in SHOWN), *others]
    rows = [
        [
            objective,
            _cell(_errors(found, objective, "clean")),
            *(_cell(_errors(found, objective, k, s)) for k in CORRUPTIONS for s in SHOWN),
            *(_cell(_errors(found, objective, k)) for k in others),
        ]
        for objective in SIX
    ]
    notes = [
        "squared error of decoding in one step what the solver encoded, × 10³; severity 1 to 5",
        "noise and blur as in CIFAR-10-C; shift by sixteenths of the width, whole pixels; "
        "inversion 5 is the negative",
        *_missing(found),
        *found.lost(found.lab.by_objective(SIX), "shifts"),
    ]
    picture = Picture("shifts.png", "one-step error of images unlike the training data")
    return Report("Figure 3b: out of distribution", [Table("One-step error", columns, rows, notes)],
                  {picture: lambda path: _draw(found, path)})  # fmt: skip


def _errors(found: Found, objective: str, kind: str, severity: int = 1) -> list[float]:
    numbers = [found.of(run, "shifts").get("kinds", {}).get(kind)
                          for run in found.lab.images(objective)]  # fmt: skip
    return [float(n[severity - 1]) for n in numbers if n is not None]


def _cell(values: list[float]) -> str:
    return mean_sd(values, ".1f", 1e3) if values else NOTHING


def _missing(found: Found) -> list[str]:
    """Why a set could not be read, once."""
    reasons: dict[str, str] = {}
    for objective in SIX:
        for run in found.lab.images(objective):
            reasons.update(found.of(run, "shifts").get("lacks", {}))
    return [f"{kind}: {reason}" for kind, reason in reasons.items()]


def _draw(found: Found, path: Path) -> None:
    drawn = figure(11, 3.6)
    axes = drawn.subplots(1, len(CORRUPTIONS), sharey=True)
    for axis, kind in zip(axes, CORRUPTIONS, strict=True):
        for objective in SIX:
            line = [_errors(found, objective, "clean"),
                    *(_errors(found, objective, kind, s) for s in SEVERITIES)]  # fmt: skip
            if all(line):
                axis.plot([0, *SEVERITIES], [fmean(v) for v in line], "o-", markersize=3,
                          color=colour(objective), label=label(objective))  # fmt: skip
        axis.set_title(kind, fontsize=10)
        axis.set_xlabel("severity")
        axis.set_yscale("log")
        bare(axis)
    axes[0].set_ylabel("squared error / d")
    legend_below(drawn, axes[0], 6)
    save(drawn, path)

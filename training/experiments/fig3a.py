"""Figure 3a: little data. The same budget on 1, 10, 50 and 100 percent, class by class."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from mmf_deploy.figures import bare, figure, save
from mmf_deploy.results import Picture, Table

from .cells import mean_sd, percent
from .lab import Found, Lab, Measurement, Report
from .runs import Run
from .style import colour, label, legend_below, plain_ticks

COMPARED = ("mmf", "mmf-lambda0", "meanflow")
FRACTIONS = (0.01, 0.1, 0.5, 1.0)


def _runs(lab: Lab, objective: str, fraction: float) -> list[Run]:
    """One seed of a part, all seeds of the whole, which other experiments have trained."""
    if fraction == 1.0:
        return lab.images(objective)
    more = (f"data.subset.fraction={fraction:g}",)
    return [lab.image(objective, lab.seeds[0], f"-{fraction:.0%}", more)]


def plan(lab: Lab) -> list[Measurement]:
    """Every objective with every part of the data."""
    return [
        Measurement(run, "quality")
        for objective in COMPARED
        for fraction in FRACTIONS
        for run in _runs(lab, objective, fraction)
    ]


def report(found: Found) -> Report:
    """A row an objective and fraction."""
    name = found.lab.scale.frechet
    rows = [
        [
            objective,
            f"{fraction:.0%}",
            mean_sd(found.values(runs, "quality", "frechet")),
            percent(found.values(runs, "quality", "class_accuracy")),
            percent(found.values(runs, "quality", "recall")),
            percent(found.values(runs, "quality", "coverage")),
        ]
        for objective in COMPARED
        for fraction in FRACTIONS
        for runs in [_runs(found.lab, objective, fraction)]
    ]
    columns = ["objective", "data", name, "right class", "recall", "coverage"]
    notes = (
        "a smaller part is in every larger one; parts have one seed, the whole has "
        f"{len(found.lab.seeds)}; the number of steps is the same, so a small part is seen often",
        *found.lost(
            {f"{o}, {f:.0%}": _runs(found.lab, o, f) for o in COMPARED for f in FRACTIONS},
            "quality",
        ),
    )

    def draw(path: Path) -> None:
        drawn = figure(6, 3.8)
        axis = drawn.subplots()
        for objective in COMPARED:
            line = [found.values(_runs(found.lab, objective, f), "quality", "frechet")
                    for f in FRACTIONS]  # fmt: skip
            if all(line):
                axis.plot([100 * f for f in FRACTIONS], [fmean(v) for v in line], "o-",
                          color=colour(objective), label=label(objective))  # fmt: skip
        axis.set_xscale("log")
        axis.set_yscale("log")
        plain_ticks(axis)
        axis.set_xticks([100 * f for f in FRACTIONS], [f"{f:.0%}" for f in FRACTIONS])
        axis.xaxis.minorticks_off()
        axis.set_xlabel("share of the training data")
        axis.set_ylabel(name)
        bare(axis)
        legend_below(drawn, axis)
        save(drawn, path)

    picture = Picture("data.png", f"{name} by the share of the training data")
    return Report("Figure 3a: little data", [Table("By share of the data", columns, rows, notes)],
                  {picture: draw})  # fmt: skip

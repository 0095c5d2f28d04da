"""One, two, four and eight network evaluations with the same weights."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from mmf_deploy.figures import bare, figure, save
from mmf_deploy.results import Picture, Table

from .cells import mean_sd
from .lab import SIX, Found, Lab, Measurement, Report
from .probes_images import NFE, SOLVER
from .style import colour, label, legend_below, plain_ticks


def plan(lab: Lab) -> list[Measurement]:
    """The six objectives with every seed."""
    return [Measurement(run, "steps") for objective in SIX for run in lab.images(objective)]


def report(found: Found) -> Report:
    """A row an objective, a column a number of evaluations."""
    name = found.lab.scale.frechet
    keys = [*(str(count) for count in NFE), "solver"]

    def values(objective: str, key: str) -> list[float]:
        return found.values(found.lab.images(objective), "steps", key)

    rows = [[objective, *(mean_sd(values(objective, key)) for key in keys)] for objective in SIX]
    columns = ["objective", *(f"{count} NFE" for count in NFE), f"solver, {2 * SOLVER} NFE"]
    notes = (
        f"solver: {SOLVER} Heun steps of v̂(x, t) = u(x, t, t)",
        *found.lost(found.lab.by_objective(SIX), "steps"),
    )

    def draw(path: Path) -> None:
        drawn = figure(6.4, 4)
        axis = drawn.subplots()
        for objective in SIX:
            line = [values(objective, str(count)) for count in NFE]
            if all(line):
                axis.plot(NFE, [fmean(v) for v in line], "o-", color=colour(objective),
                          label=label(objective))  # fmt: skip
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        plain_ticks(axis)
        axis.set_xticks(NFE, [str(count) for count in NFE])
        axis.set_xlabel("network evaluations an image")
        axis.set_ylabel(name)
        bare(axis)
        legend_below(drawn, axis)
        save(drawn, path)

    picture = Picture("nfe.png", f"{name} by the number of network evaluations")
    return Report("Few steps", [Table(f"{name} by network evaluations", columns, rows, notes)],
                  {picture: draw})  # fmt: skip

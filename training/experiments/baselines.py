"""Other objectives with the same network and budget: the consistency model and flow matching."""

from __future__ import annotations

from mmf_deploy.results import Table

from .cells import NOTHING, mean_sd, percent
from .lab import Found, Lab, Measurement, Report
from .probes_images import NFE, SOLVER

COMPARED = ("mmf", "mmf-lambda0", "meanflow", "consistency", "flow-matching", "paper-literal")
WITHOUT_V = ("consistency", "paper-literal")
"""Not trained where r = t on one flow, so that v̂ means nothing."""
ONE_STEP = ("consistency", "paper-literal")
"""Only trained for one step."""


def plan(lab: Lab) -> list[Measurement]:
    """Every objective with every seed."""
    return [
        Measurement(run, probe)
        for objective in COMPARED
        for run in lab.images(objective)
        for probe in ("quality", "steps")
    ]


def report(found: Found) -> Report:
    """A row an objective."""
    name = found.lab.scale.frechet
    few = [count for count in NFE if count > 1]
    rows = []
    for objective in COMPARED:
        runs = found.lab.images(objective)

        def of(key: str, runs: list = runs) -> str:  # type: ignore[type-arg]
            return mean_sd(found.values(runs, "steps", key))

        rows.append([
            objective,
            of("1"),
            *(NOTHING if objective in ONE_STEP else of(str(count)) for count in few),
            NOTHING if objective in WITHOUT_V else of("solver"),
            percent(found.values(runs, "quality", "class_accuracy")),
        ])  # fmt: skip
    columns = ["objective", f"{name}, 1 step", *(f"{count} steps" for count in few),
               f"solver, {2 * SOLVER} evaluations", "right class"]  # fmt: skip
    notes = (
        f"solver: {SOLVER} Heun steps of v̂(x, t) = u(x, t, t)",
        "flow matching trains r = t alone, so its steps are Euler steps of v̂; the consistency "
        "model and the paper's literal objective are trained for one step, and have no v̂",
        *found.lost(found.lab.by_objective(COMPARED), "steps"),
    )
    return Report("Baselines: the same network and budget, other objectives",
                  [Table("One step, few steps, and a solver", columns, rows, notes)])  # fmt: skip

"""Table 3: the six objectives, by what they do along the path."""

from __future__ import annotations

from mmf_deploy.results import Table

from ..metrics.trajectories import ENCODER_STEPS, POINTS, SOLVER_STEPS
from .cells import mean_sd
from .lab import SIX, Found, Lab, Measurement, Report


def plan(lab: Lab) -> list[Measurement]:
    """Every objective with every seed."""
    return [Measurement(run, "paths") for objective in SIX for run in lab.images(objective)]


def report(found: Found) -> Report:
    """A row an objective."""
    rows = []
    for objective in SIX:
        runs = found.lab.images(objective)
        rows.append([
            objective,
            mean_sd(found.values(runs, "paths", "one_step_error"), ".1f", 1e3),
            mean_sd(found.values(runs, "paths", "one_step_gap"), ".1f", 1e3),
            mean_sd(found.values(runs, "paths", "path_deviation"), ".2f", 1e3),
            mean_sd(found.values(runs, "paths", "smoothness")),
            mean_sd(found.values(runs, "paths", "along_path"), ".3f"),
            mean_sd(found.values(runs, "paths", "residual"), ".2f", 1e3),
        ])  # fmt: skip
    numbers = [found.of(run, "paths") for o in SIX for run in found.lab.images(o)]
    distance = next((n["distance"] for n in numbers if "distance" in n), "LPIPS")
    lacks = list(dict.fromkeys(n["lacks"] for n in numbers if "lacks" in n))
    columns = ["objective", "1-step error × 10³", "1 step − solver × 10³", "D_path × 10³",
               "smoothness", f"{distance} along path", "Eq. 6 residual × 10³"]  # fmt: skip
    notes = (
        f"held-out images encoded by {ENCODER_STEPS} Heun steps of v̂ and decoded in one; one step "
        f"against {SOLVER_STEPS} Heun steps from the same noise; D_path over {POINTS} steps with u",
        "all squared errors are divided by the number of elements of a sample",
        "smoothness is the mean square of the second time derivative of the path: less is "
        "straighter, and the right value is that of the true flow, not zero",
        *(f"{distance}: {reason}" for reason in lacks),
        *found.lost(found.lab.by_objective(SIX), "paths"),
    )
    return Report("Table 3: metrics of paths by objective",
                  [Table("Along the path", columns, rows, notes)])  # fmt: skip

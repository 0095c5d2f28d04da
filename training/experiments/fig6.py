"""Figure 6: two low-dimensional tasks, an ODE and a point mass, from ends or from whole paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmf_deploy.figures import bare, figure, save
from mmf_deploy.results import Picture, Table

from .cells import mean_sd
from .lab import Found, Lab, Measurement, Numbers, Report
from .runs import Run
from .style import REAL, colour, label, legend_below

TASKS = {"ode": "dx/dt = −x", "control": "minimum jerk to a target"}
COMPARED = ("mmf-lambda0", "mmf-lambda1", "mmf")
MODES = ("endpoints", "trajectory")
Points = list[list[float]]
Motions = list[Points]


def _runs(lab: Lab, task: str, objective: str, mode: str) -> list[Run]:
    """One seed: tasks differ by far more than seeds."""
    return [lab.vectors(task, objective, f"-{mode}", (f"data.supervise={mode}",), lab.seeds[0])]


def plan(lab: Lab) -> list[Measurement]:
    """Both tasks with every λ and kind of supervision."""
    return [
        Measurement(run, "motion")
        for task in TASKS
        for mode in MODES
        for objective in COMPARED
        for run in _runs(lab, task, objective, mode)
    ]


def report(found: Found) -> Report:
    """A table a task, a row a kind of supervision and λ."""
    keys = {"path_error": "path error", "chord_error": "distance to the chord",
            "one_step_end_error": "end error, one step", "end_error": "end error, 16 steps",
            "jerk": "jerk"}  # fmt: skip
    tables = []
    for task, title in TASKS.items():
        rows = [
            [mode, objective, *(mean_sd(found.values(runs, "motion", key), ".3f") for key in keys)]
            for mode in MODES
            for objective in COMPARED
            for runs in [_runs(found.lab, task, objective, mode)]
        ]
        some = _runs(found.lab, task, COMPARED[0], MODES[0])[:1]
        true = [mean_sd(found.values(some, "motion", key), ".3f")
                for key in ("chord_to_path", "jerk_reference")]  # fmt: skip
        rows.append(["true motion", "", "", true[0], "", "", true[1]])
        tables.append(Table(
            f"{task}: {title}",
            ["supervision", "objective", *keys.values()],
            rows,
            (
                "root mean square over fresh starts, in the units of the plane (starts are "
                "N(0, I)); motions of 16 steps with u; jerk by third differences",
                "endpoints alone determine where a motion ends and not how it gets there: what is "
                "learned is the chord, at constant speed",
                *found.lost({f"{o}, {m}": _runs(found.lab, task, o, m) for m in MODES
                             for o in COMPARED}, "motion"),
            ),
            left=2,
        ))  # fmt: skip
    picture = Picture("motions.png", "motions from six fresh starts, and the share of the way done "
                                     "over time")  # fmt: skip
    return Report("Figure 6: an ordinary differential equation and a point mass", tables,
                  {picture: lambda path: _draw(found, path)})  # fmt: skip


def _draw(found: Found, path: Path) -> None:
    drawn = figure(11, 6)
    axes = drawn.subplots(len(TASKS), 2 * len(MODES), width_ratios=(1, 1, 1, 1))
    for line, (task, title) in zip(axes, TASKS.items(), strict=True):
        for k, mode in enumerate(MODES):
            plane, profile = line[2 * k], line[2 * k + 1]
            plane.set_title(f"{title}\n{mode}", fontsize=9)
            profile.set_title("share of the way done", fontsize=9)
            true: Numbers = {}
            # they lie on each other: wide lines first
            for objective, width in zip(COMPARED, (4.0, 2.4, 1.0), strict=True):
                numbers = found.of(_runs(found.lab, task, objective, mode)[0], "motion")
                if "failed" in numbers:
                    continue
                true = numbers
                look = {"color": colour(objective), "label": label(objective), "linewidth": width}
                _motions(plane, numbers["walked"], look)
                _profile(profile, numbers["profile"], look)
            if true:
                look = {"color": REAL, "label": "true motion", "linestyle": "--", "linewidth": 1.2}
                _motions(plane, true["reference"], look)
                _profile(profile, true["profile_reference"], look)
            plane.set_aspect("equal", adjustable="datalim")
            plane.set_xlabel("x₁")
            plane.set_ylabel("x₂")
            profile.set_xlabel("time")
            bare(plane)
            bare(profile)
    legend_below(drawn, axes[0][1], 4)
    save(drawn, path)


def _motions(axis: Any, motions: Motions, look: dict[str, Any]) -> None:
    for k, motion in enumerate(motions):
        x, y = zip(*motion, strict=True)
        axis.plot(x, y, **{**look, "label": None if k else look["label"]})
        axis.plot(x[:1], y[:1], "o", markersize=2.5, color=REAL)


def _profile(axis: Any, points: Points, look: dict[str, Any]) -> None:
    values = [value for (value,) in points]
    axis.plot([k / (len(values) - 1) for k in range(len(values))], values, **look)

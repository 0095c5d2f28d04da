"""Figure 2: the average velocity that is learned in the plane, by λ."""

from __future__ import annotations

from pathlib import Path

from mmf_deploy.figures import bare, figure, save
from mmf_deploy.results import Picture, Table

from .cells import mean_sd
from .fig1 import BY_LAMBDA
from .lab import Found, Lab, Measurement, Report
from .style import REAL, colour, label

RECIPE = "ring2d"


def plan(lab: Lab) -> list[Measurement]:
    """A run of eight Gaussians on a ring for every λ and seed."""
    return [
        Measurement(lab.vectors(RECIPE, objective, seed=seed), "plane")
        for objective in BY_LAMBDA
        for seed in lab.seeds
    ]


def report(found: Found) -> Report:
    """A field a λ, and how far its samples are from the data."""
    lab = found.lab
    groups = {o: [lab.vectors(RECIPE, o, seed=seed) for seed in lab.seeds] for o in BY_LAMBDA}
    rows = [
        [
            objective,
            mean_sd(found.values(runs, "plane", "energy_distance"), ".2f", 1e3),
            mean_sd(found.values(runs, "plane", "energy_distance_real")[:1], ".2f", 1e3),
            mean_sd(found.values(runs, "plane", "path_deviation"), ".2f", 1e3),
        ]
        for objective, runs in groups.items()
    ]
    table = Table(
        "Eight Gaussians on a ring",
        [
            "objective",
            "energy distance of one-step samples × 10³",
            "of two halves of the data × 10³",
            "D_path × 10³",
        ],
        rows,
        (
            "the estimate is unbiased: of equal laws it is 0 on average, and may be below",
            *found.lost(groups, "plane"),
        ),
    )
    picture = Picture("field.png", "arrows: −u(x, 0, 1) on a grid, the way that one step takes; "
                                   "dots: one-step samples")  # fmt: skip
    return Report("Figure 2: the field of average velocities in the plane, by λ", [table],
                  {picture: lambda path: _draw(found, path)})  # fmt: skip


def _draw(found: Found, path: Path) -> None:
    drawn = figure(12, 3.6)
    axes = drawn.subplots(1, len(BY_LAMBDA), sharex=True, sharey=True)
    for axis, objective in zip(axes, BY_LAMBDA, strict=True):
        numbers = found.of(found.lab.vectors(RECIPE, objective, seed=found.lab.seeds[0]), "plane")
        axis.set_title(label(objective), fontsize=10)
        axis.set_aspect("equal")
        bare(axis)
        if "failed" in numbers:
            continue
        (x, y), (u, v) = zip(*numbers["grid"], strict=True), zip(*numbers["arrows"], strict=True)
        axis.scatter(*zip(*numbers["data"], strict=True), s=3, color=REAL, alpha=0.15, linewidths=0)
        axis.scatter(*zip(*numbers["samples"], strict=True), s=3, color=colour(objective),
                     linewidths=0)  # fmt: skip
        axis.quiver(x, y, [-a for a in u], [-b for b in v], angles="xy", scale_units="xy", scale=3,
                    width=0.004, color="#555555")  # fmt: skip
    axes[0].set_ylabel("x₂")
    for axis in axes:
        axis.set_xlabel("x₁")
    drawn.suptitle("arrows: a third of the way −u(x, 0, 1); grey: data; colour: one-step samples",
                   fontsize=9, y=-0.02)  # fmt: skip
    save(drawn, path)

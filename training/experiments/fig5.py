"""Figure 5: ways between two seeds, and D_path over training."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from mmf_deploy.errors import require
from mmf_deploy.figures import bare, figure, save
from mmf_deploy.results import Picture, Table

from .cells import NOTHING
from .lab import SIX, Found, Lab, Measurement, Report
from .style import colour, label, legend_below

STRIPS = ("meanflow", "mmf-lambda0", "mmf")


def plan(lab: Lab) -> list[Measurement]:
    """The first seed of each objective, which keeps its checkpoints."""
    first = lab.seeds[0]
    return [
        *(Measurement(lab.image(objective, first), "history") for objective in SIX),
        *(Measurement(lab.image(objective, first), "strips") for objective in STRIPS),
    ]


def report(found: Found) -> Report:
    """A row an objective, a column a checkpoint; strips beside each other."""
    histories = {o: _history(found, o) for o in SIX}
    steps = sorted({step for history in histories.values() for step in history})
    rows = [
        [o, *(f"{1e3 * histories[o][step]:.2f}" if step in histories[o] else NOTHING
              for step in steps)]
        for o in SIX
    ]  # fmt: skip
    table = Table("D_path × 10³ over training", ["objective", *(f"step {s:,}" for s in steps)],
                  rows, ("one seed",))  # fmt: skip

    def draw_history(path: Path) -> None:
        drawn = figure(6.4, 4)
        axis = drawn.subplots()
        for o in SIX:
            if histories[o]:
                axis.plot(list(histories[o]), list(histories[o].values()), "o-", color=colour(o),
                          label=label(o))  # fmt: skip
        axis.set_xlabel("optimiser step")
        axis.set_ylabel("D_path")
        axis.set_yscale("log")
        bare(axis)
        legend_below(drawn, axis)
        save(drawn, path)

    def draw_strips(path: Path) -> None:
        image = require("PIL.Image", "train")
        drawn = figure(8, 4.4 * len(STRIPS) / 2)
        for axis, o in zip(drawn.subplots(len(STRIPS), 1), STRIPS, strict=True):
            axis.set_axis_off()
            axis.set_title(label(o), fontsize=10)
            numbers = found.of(found.lab.image(o, found.lab.seeds[0]), "strips")
            if "png" in numbers:
                strip = image.open(io.BytesIO(base64.b64decode(numbers["png"])))
                axis.imshow(strip.convert("RGB"), interpolation="nearest")
        save(drawn, path)

    return Report("Figure 5: interpolation, and D_path over training", [table], {
        Picture("history.png", "D_path over training by objective"): draw_history,
        Picture("strips.png", "one step from the arc between two seeds of one class, a pair a row"):
            draw_strips,
    })  # fmt: skip


def _history(found: Found, objective: str) -> dict[int, float]:
    run = found.lab.image(objective, found.lab.seeds[0])
    kept = found.of(run, "history").get("checkpoints", [])
    return {entry["step"]: entry["path_deviation"] for entry in kept}

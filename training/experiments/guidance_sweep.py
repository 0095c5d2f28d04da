"""Guidance as an input of the one-step network: what the slider trades."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from mmf_deploy.figures import COLOURS, bare, figure, save
from mmf_deploy.results import Picture, Table

from .cells import mean_sd, percent
from .lab import Found, Lab, Measurement, Report
from .probes_images import OMEGAS
from .runs import Run
from .style import legend_below

MAX = OMEGAS[-1]


def _runs(lab: Lab) -> list[Run]:
    return lab.images("mmf", "-guided", (f"objective.guidance={{mode: input, max: {MAX:g}}}",))


def plan(lab: Lab) -> list[Measurement]:
    """One training with ω as an input, every seed."""
    return [Measurement(run, "guidance") for run in _runs(lab)]


def report(found: Found) -> Report:
    """A row a scale."""
    name = found.lab.scale.frechet
    keys = {"frechet": name, "class_accuracy": "right class", "precision": "precision",
            "recall": "recall", "coverage": "coverage"}  # fmt: skip
    per_scale = [found.of(run, "guidance").get("omega", {}) for run in _runs(found.lab)]

    def of(omega: float, key: str) -> list[float]:
        return [n[f"{omega:g}"][key] for n in per_scale if key in n.get(f"{omega:g}", {})]

    rows = [
        [f"{omega:g}", *((mean_sd if key == "frechet" else percent)(of(omega, key))
                         for key in keys)]
        for omega in OMEGAS
    ]  # fmt: skip
    notes = (
        f"one network that takes ω, trained log-uniformly on [1, {MAX:g}]",
        *found.lost({"mmf, guided": _runs(found.lab)}, "guidance"),
    )
    table = Table("Guidance scale ω at one step", ["ω", *keys.values()], rows, notes)

    def draw(path: Path) -> None:
        drawn = figure(8, 3.4)
        left, right = drawn.subplots(1, 2)
        for axis, shown in ((left, ["frechet"]), (right, [k for k in keys if k != "frechet"])):
            for key, tint in zip(shown, COLOURS, strict=False):
                values = [of(omega, key) for omega in OMEGAS]
                if all(values):
                    axis.plot(OMEGAS, [fmean(v) for v in values], "o-", color=tint,
                              label=keys[key])  # fmt: skip
            axis.set_xlabel("guidance scale ω")
            bare(axis)
        left.set_ylabel(name)
        left.set_ylim(bottom=0)
        right.set_ylabel("share")
        legend_below(drawn, right, 4)
        save(drawn, path)

    picture = Picture("scale.png", f"{name}, and shares, by the guidance scale")
    return Report("Guidance in one step", [table], {picture: draw})

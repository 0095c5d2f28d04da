"""How long should λ take to rise? T_warmup of Eq. 12 from nothing to the whole run."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from mmf_deploy.figures import bare, figure, save
from mmf_deploy.results import Picture, Table

from .cells import mean_sd, percent
from .lab import Found, Lab, Measurement, Report
from .runs import Run
from .style import colour

SHARES = (0.0, 0.125, 0.5, 1.0)


def plan(lab: Lab) -> list[Measurement]:
    """Every length with every seed, and λ = 0 throughout."""
    return [
        Measurement(run, probe)
        for runs in _by_length(lab).values()
        for run in runs
        for probe in ("quality", "paths")
    ]


def _by_length(lab: Lab) -> dict[str, list[Run]]:
    """Runs by what a person calls their length; those that other experiments have are theirs."""
    lengths = {}
    for share in SHARES:
        if share == 0.0:
            runs = lab.images("mmf-lambda1")
        elif share == 0.125:
            runs = lab.images("mmf")
        else:
            steps = round(share * lab.scale.steps)
            runs = lab.images("mmf", f"-warmup{share:g}", warmup=steps)
        lengths[f"{share:g}"] = runs
    return {**lengths, "never": lab.images("mmf-lambda0")}


def report(found: Found) -> Report:
    """A row a length."""
    lengths, name = _by_length(found.lab), found.lab.scale.frechet
    rows = [
        [
            {"0": "0 (λ = 1)", "never": "never (λ = 0)"}.get(length, length),
            mean_sd(found.values(runs, "quality", "frechet")),
            percent(found.values(runs, "quality", "class_accuracy")),
            mean_sd(found.values(runs, "paths", "one_step_error"), ".1f", 1e3),
            mean_sd(found.values(runs, "paths", "residual"), ".2f", 1e3),
        ]
        for length, runs in lengths.items()
    ]
    table = Table(
        "T_warmup as a share of the run",
        ["share", name, "right class", "1-step error × 10³", "Eq. 6 residual × 10³"],
        rows,
        (
            "the paper's is an eighth: 100,000 of 800,000 steps",
            *found.lost(lengths, "quality"),
        ),
    )

    def draw(path: Path) -> None:
        drawn = figure(6, 3.6)
        axis = drawn.subplots()
        ends = {"0": "mmf-lambda1", "never": "mmf-lambda0"}
        for place, (length, runs) in enumerate(lengths.items()):
            values, tint = found.values(runs, "quality", "frechet"), colour(ends.get(length, "mmf"))
            axis.plot([place] * len(values), values, "o", color=tint, alpha=0.5)
            if values:
                axis.plot([place - 0.2, place + 0.2], [fmean(values)] * 2, color=tint)
        axis.set_xticks(range(len(lengths)), [row[0] for row in rows])
        axis.set_xlabel("share of the run in which λ rises from 0 to 1")
        axis.set_ylabel(name)
        axis.set_ylim(bottom=0)
        bare(axis)
        save(drawn, path)

    picture = Picture("length.png", f"{name} by the length of the curriculum, a dot a seed")
    return Report("Length of the curriculum", [table], {picture: draw})

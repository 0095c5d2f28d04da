"""Table 2: the six objectives, by the quality of one-step samples."""

from __future__ import annotations

from mmf_deploy.results import Table

from .cells import mean_sd, percent
from .lab import SIX, Found, Lab, Measurement, Report

PROBES = ("quality", "paths")


def plan(lab: Lab) -> list[Measurement]:
    """Every objective with every seed; one seed is enough for what its network costs."""
    runs = [run for objective in SIX for run in lab.images(objective)]
    return [
        *(Measurement(run, probe) for run in runs for probe in PROBES),
        *(Measurement(lab.image(objective, lab.seeds[0]), "latency") for objective in SIX),
    ]


def report(found: Found) -> Report:
    """A row an objective."""
    lab = found.lab
    name, kernel = lab.scale.frechet, lab.scale.kernel
    columns = ["objective", name, "of real", f"{kernel} × 10³", "precision", "recall", "density",
               "coverage", "right class", "1-step error × 10³", "latency ms"]  # fmt: skip
    notes = (
        _floor(found),
        "latency: one image in one step, PyTorch eager, batch 1, one thread or the GPU; an "
        "objective changes the weights and not the network, so what differs is noise",
        f"mean ± standard deviation over {len(lab.seeds)} seeds, {lab.scale.steps:,} steps each",
        *found.lost(lab.by_objective(SIX), "quality"),
    )
    rows = [_row(found, objective) for objective in SIX]
    return Report("Table 2: one-step samples by objective",
                  [Table("Quality of one-step samples", columns, rows, notes)])  # fmt: skip


def _row(found: Found, objective: str) -> list[str]:
    runs = found.lab.images(objective)

    def of(key: str) -> list[float]:
        return found.values(runs, "quality", key)

    return [
        objective,
        mean_sd(of("frechet")),
        mean_sd(of("frechet_real")[:1]),
        mean_sd(of("kid"), ".1f", 1e3),
        percent(of("precision")),
        percent(of("recall")),
        mean_sd(of("density")),
        percent(of("coverage")),
        percent(of("class_accuracy")),
        mean_sd(found.values(runs, "paths", "one_step_error"), ".1f", 1e3),
        mean_sd(found.values(runs[:1], "latency", "median_ms")),
    ]


def _floor(found: Found) -> str:
    if found.lab.scale.samples == 0:
        return "of real: between two halves of the real images, as many as there are in either set"
    return (
        f"{found.lab.scale.samples:,} samples; of real: held-out images against the training "
        "images, which is biased upwards where fewer are held out"
    )

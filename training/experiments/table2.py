"""Table 2: the six objectives, by the quality of one-step samples."""

from __future__ import annotations

from mmf_deploy.results import Table

from .cells import NOTHING, mean_sd, percent
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
    return Report("Table 2: one-step samples by objective", [quality_table(found, SIX, (
        "latency: one image, PyTorch eager, batch 1, one thread; an objective changes the weights "
        "and not the network, so what differs is noise",
        f"mean ± standard deviation over seeds {', '.join(map(str, lab.seeds))}, "
        f"{lab.scale.steps:,} steps each",
    ), latency=True)])  # fmt: skip


def quality_table(
    found: Found, objectives: tuple[str, ...], notes: tuple[str, ...], latency: bool = False
) -> Table:
    """Metrics of sets of samples, a row an objective."""
    lab = found.lab
    name = "Fréchet" if lab.scale.features == "digits" else "FID"
    columns = ["objective", name, f"{name} of real", "KID × 10³", "precision", "recall", "density",
               "coverage", "right class", "1-step error × 10³"]  # fmt: skip
    rows = []
    for objective in objectives:
        runs = lab.images(objective)

        def of(key: str, runs: list = runs) -> list[float]:  # type: ignore[type-arg]
            return found.values(runs, "quality", key)

        rows.append([
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
        ])  # fmt: skip
        if latency:
            times = found.values([lab.image(objective, lab.seeds[0])], "latency", "median_ms")
            rows[-1].append(f"{times[0]:.2f}" if times else NOTHING)
    return Table(
        "Quality of one-step samples",
        [*columns, "latency ms"] if latency else columns,
        rows,
        (*notes, *failures(found, objectives, "quality")),
    )


def failures(found: Found, objectives: tuple[str, ...], probe: str) -> list[str]:
    """A line for every objective whose numbers are missing, with the reason."""
    lines = []
    for objective in objectives:
        if reason := found.failure(found.lab.images(objective), probe):
            lines.append(f"{objective}: {reason}")
    return lines

"""What an optimiser step of each objective costs: the numbers, and the form of every benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mmf_deploy.results import HEAD, Picture, Result, Table


@dataclass(frozen=True)
class Row:
    """What one kind of step costs.

    Attributes:
        median_ms: over rounds.
        ratio: to the flow-matching step of the same round: the median over rounds, with
            ``ratio_p10`` and ``ratio_p90``.
        naive_speedup: how many times faster than the naive step with the same λ in the same
            round, median over rounds; None where there is no such step.
    """

    objective: str
    lam: float
    derivative: str | None
    gap_fraction: float | None
    median_ms: float
    ratio: float
    ratio_p10: float
    ratio_p90: float
    naive_speedup: float | None


@dataclass(frozen=True)
class Report:
    """A whole benchmark: rows, and what is needed to repeat them."""

    command: str
    machine: dict[str, str]
    versions: dict[str, str]
    config: dict[str, Any]
    rounds: int
    rows: list[Row]

    def result(self, pictures: Sequence[Picture] = ()) -> Result:
        """In the common form, with every number."""
        config = self.config
        return Result(
            kind="step",
            title=f"{config['recipe']}: an optimiser step of each objective",
            command=self.command,
            machine=self.machine,
            versions=self.versions,
            tables=[table(self)],
            pictures=pictures,
            content={k: v for k, v in asdict(self).items() if k not in HEAD},
        )


def table(report: Report) -> Table:
    """A row a kind of step, and below it what follows."""
    config = report.config
    shape = "×".join(map(str, config["shape"]))
    threads = "1 thread" if config["threads"] == 1 else f"{config['threads']} threads"
    title = (
        f"One optimiser step, batch {config['batch']} of {shape}, "
        f"{config['parameters'] / 1e6:.1f}M parameters, {config['device']}, {threads}"
    )
    columns = ["objective", "derivative", "r ≠ t", "λ", "median ms", "× flow matching", "p10–p90",
               "× faster than naive"]  # fmt: skip
    rows = [
        [
            row.objective,
            row.derivative or "",
            "" if row.gap_fraction is None else f"{row.gap_fraction:.0%}",
            f"{row.lam:g}" if row.derivative else "",
            f"{row.median_ms:,.1f}",
            f"{row.ratio:.2f}",
            f"{row.ratio_p10:.2f}–{row.ratio_p90:.2f}",
            "" if row.naive_speedup is None else f"{row.naive_speedup:.2f}",
        ]
        for row in report.rows
    ]
    rounds = "1 round" if report.rounds == 1 else f"{report.rounds} rounds"
    notes = [f"ratios of times of the same round; their median, 10th and 90th percentile over "
             f"{rounds}", *conclusions(report.rows)]  # fmt: skip
    return Table(title, columns, rows, notes, left=2)


def conclusions(rows: Sequence[Row]) -> list[str]:
    """A line for each share of r ≠ t and each λ that a naive step was timed with."""
    compared = [row for row in rows if row.naive_speedup is not None]
    lines = []
    for share, lam in dict.fromkeys((row.gap_fraction, row.lam) for row in compared):
        best = min(
            (row for row in compared if (row.gap_fraction, row.lam) == (share, lam)),
            key=lambda row: row.ratio,
        )
        lines.append(
            f"λ={lam:g}, r ≠ t for {share:.0%}: {best.ratio:.2f}× a flow-matching step, "
            f"{best.naive_speedup:.1f}× faster than the naive step ({best.derivative})"
        )
    return lines

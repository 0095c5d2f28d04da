"""Which pictures a benchmark has, and what draws each."""

from __future__ import annotations

from mmf_deploy.results import Draw, Picture

from . import frontier, plot
from .report import Report, quality_key


def pictures(report: Report) -> dict[Picture, Draw]:
    """Latency always, the frontier where the quality of more than one variant is known."""
    drawn: dict[Picture, Draw] = {
        Picture("bench.png", f"{report.bundle}: milliseconds per image by engine"): (
            lambda path: plot.plot(report, path)
        )
    }
    if quality_key(report) is not None and len(frontier.frontier_rows(report)) > 1:
        title = f"{report.bundle}: quality against latency"
        drawn[Picture("frontier.png", title)] = lambda path: frontier.plot(report, path)
    return drawn

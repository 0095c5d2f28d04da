"""One look for all figures of the paper: the same colour for the same objective everywhere."""

from __future__ import annotations

from typing import Any

from mmf_deploy.errors import require

COLOURS = {
    "mmf": "#1f6fb2",
    "mmf-lambda0": "#2a8a57",
    "mmf-lambda0.5": "#b8860b",
    "mmf-lambda1": "#d1652a",
    "meanflow": "#8a4fb5",
    "meanflow-full": "#c2417f",
    "consistency": "#3aa0a8",
    "flow-matching": "#6b6b2a",
    "paper-literal": "#8c8c8c",
}
REAL = "#222222"

LABELS = {
    "mmf": "mmf (curriculum)",
    "mmf-lambda0": "mmf, λ = 0",
    "mmf-lambda0.5": "mmf, λ = 0.5",
    "mmf-lambda1": "mmf, λ = 1",
    "meanflow": "meanflow",
    "meanflow-full": "meanflow, λ = 1",
}


def colour(objective: str) -> str:
    """Of an objective."""
    return COLOURS[objective]


def label(objective: str) -> str:
    """What an objective is called in figures."""
    return LABELS.get(objective, objective)


def plain_ticks(axis: Any) -> None:
    """Numbers as they are written on a logarithmic axis that spans less than a power of ten."""
    ticker = require("matplotlib.ticker", "bench")
    for formatter in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
        formatter(ticker.FormatStrFormatter("%g"))


def legend_below(drawn: Any, axis: Any, columns: int = 3) -> None:
    """The legend of one axis under the whole figure."""
    handles, labels = axis.get_legend_handles_labels()
    drawn.legend(handles, labels, frameon=False, ncols=columns, loc="outside lower center",
                 fontsize=9)  # fmt: skip

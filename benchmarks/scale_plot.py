"""Cost against batch, width and resolution, as one picture of three panels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mmf_deploy.serve.bench.plot import colours, markers
from mmf_deploy.serve.bench.subjects import shown_name

from mmf_deploy.figures import bare, figure, log_ticks, save

Key = tuple[str, str]
"""Engine and variant."""


class Series(NamedTuple):
    """What was measured and what was fitted to it.

    Attributes:
        x, ms: measured.
        fit: the fitted curve.
        label: what it says in a few characters.
    """

    x: Sequence[float]
    ms: Sequence[float]
    fit: Callable[[float], float]
    label: str


class Panel(NamedTuple):
    """One of the three.

    Attributes:
        ticks: where the horizontal axis is labelled, and with what.
        guide: whether a line in proportion to it is drawn.
    """

    title: str
    xlabel: str
    ylabel: str
    ticks: Mapping[float, str]
    series: Mapping[Key, Series]
    guide: bool = False


def draw(panels: Sequence[Panel], title: str, path: Path) -> None:
    """Points are measured, lines are fitted; both axes are logarithmic."""
    drawn = figure(4.6 * len(panels), 4.9)
    axes = drawn.subplots(1, len(panels), squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        _panel(axis, panel)
    drawn.suptitle(title, fontsize=11)
    save(drawn, path)


def _panel(axis: Any, panel: Panel) -> None:
    keys: dict[Key, list[Any]] = {key: [] for key in panel.series}
    colour_of, marker_of = colours(keys), markers(keys)
    for (engine, variant), one in panel.series.items():
        colour = colour_of[engine, variant]
        xs = np.geomspace(min(one.x), max(one.x), 50)
        axis.plot(xs, [one.fit(x) for x in xs], color=colour, linewidth=1.2)
        axis.plot(one.x, one.ms, marker_of[engine, variant], color=colour,
                  label=f"{shown_name(engine, variant)}: {one.label}")  # fmt: skip
    axis.set(xscale="log", yscale="log", xlabel=panel.xlabel, ylabel=panel.ylabel)
    axis.set_xticks(list(panel.ticks), list(panel.ticks.values()))
    if panel.guide:
        last = list(panel.series.values())[-1]
        ends = [min(last.x), max(last.x)]
        axis.plot(ends, [last.ms[0] * x / last.x[0] for x in ends], "--", color="#333333",
                  linewidth=0.8, label="in proportion")  # fmt: skip
    values = [v for one in panel.series.values() for v in (*one.ms, *map(one.fit, one.x))]
    shown = log_ticks(min(values) / 1.3, max(values) * 1.3)
    axis.set_yticks(shown, [f"{t:,g}" for t in shown])
    axis.set_ylim(min(values) / 1.3, max(values) * 1.3)
    axis.minorticks_off()
    bare(axis)
    axis.set_title(panel.title, fontsize=10)
    axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(-0.02, -0.25))

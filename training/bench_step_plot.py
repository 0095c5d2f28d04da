"""What a step of each objective costs, as a picture."""

from __future__ import annotations

from pathlib import Path

from mmf_deploy.figures import COLOURS, GREY, bare, figure, save

from .bench_step_report import Report, Row


def plot(report: Report, path: Path) -> None:
    """A bar a kind of step, in flow-matching steps; a line from the 10th to the 90th percentile."""
    rows, kinds = report.rows, list(dict.fromkeys(map(_kind, report.rows)))
    colour_of = dict(zip(kinds, (GREY, *COLOURS), strict=False))
    places = _places(rows)
    drawn = figure(8, 1.8 + 0.3 * -places[-1])
    axis = drawn.subplots()
    for row, y in zip(rows, places, strict=True):
        axis.barh(y, row.ratio, 0.75, color=colour_of[_kind(row)])
        axis.plot([row.ratio_p10, row.ratio_p90], [y, y], color="#222222", linewidth=1.2)
        axis.annotate(f"{row.ratio:.2f}×", (max(row.ratio, row.ratio_p90), y), xytext=(5, 0),
                      textcoords="offset points", va="center", fontsize=9)  # fmt: skip
    axis.axvline(1.0, color=GREY, linestyle="--", linewidth=1)
    axis.set_yticks(places, list(map(_label, rows)))
    axis.set_xlim(0, 1.12 * max(max(row.ratio, row.ratio_p90) for row in rows))
    axis.set_xlabel("time in flow-matching steps: median, line from p10 to p90")
    bare(axis)
    axis.grid(visible=False, axis="y")
    bars = [axis.barh(0, 0, color=colour_of[kind], label=kind) for kind in kinds]
    drawn.legend(handles=bars, frameon=False, ncols=len(kinds), loc="outside lower center")
    axis.set_ylim(places[-1] - 0.8, 0.8)
    where = report.machine.get("gpu") or report.machine["cpu"]
    recipe, batch = report.config["recipe"], report.config["batch"]
    axis.set_title(f"an optimiser step, network of {recipe}, batch {batch}, {where}", fontsize=11)
    save(drawn, path)


def _kind(row: Row) -> str:
    """What has a colour of its own."""
    ours = row.objective == "mmf" and row.derivative
    return f"mmf, {str(row.derivative).replace('_', ' ')}" if ours else row.objective


def _label(row: Row) -> str:
    share = "" if row.gap_fraction is None else f", r ≠ t for {row.gap_fraction:.0%}"
    return f"{row.objective} λ={row.lam:g}{share}" if row.derivative else row.objective


def _places(rows: list[Row]) -> list[float]:
    """From the top down, with a gap between groups of one objective and share of r ≠ t."""
    places: list[float] = []
    for k, row in enumerate(rows):
        before = rows[k - 1] if k else row
        same = (row.objective, row.gap_fraction) == (before.objective, before.gap_fraction)
        places.append(places[-1] - (1.0 if same else 1.5) if places else 0.0)
    return places

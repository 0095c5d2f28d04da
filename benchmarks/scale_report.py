"""What was measured of the networks, what is fitted to it, and how people see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mmf_deploy.serve.bench.measure import Report
from mmf_deploy.serve.bench.subjects import shown_name
from scale_fits import MEANING, Line, Power, exponent_says, line, power
from scale_networks import Made, Network
from scale_plot import Key, Panel, Series

from mmf_deploy.results import Picture, Result, Table

BASE = Network(32, 32)
WIDTHS = (BASE, Network(64, 32), Network(96, 32), Network(128, 32))
SIZES = (Network(32, 16), BASE, Network(32, 64))
BATCHES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Point:
    """Milliseconds of a call of one engine.

    Attributes:
        ms: the least of ``rounds``, which are medians: what else a machine does only adds.
    """

    network: str
    engine: str
    variant: str
    batch: int
    ms: float
    rounds: list[float]


class Points:
    """What was measured."""

    def __init__(self) -> None:
        self._rounds: dict[tuple[str, Key, int], list[float]] = {}

    def add(self, network: Network, report: Report) -> None:
        """Take the rows of a report; they are of the same number of threads."""
        for row in report.rows:
            key = network.name, (row.engine, row.variant), row.batch
            self._rounds.setdefault(key, []).append(row.median_ms * row.batch)

    def all(self) -> list[Point]:
        """In the order in which they were first measured."""
        return [
            Point(name, engine, variant, batch, min(ms), ms)
            for (name, (engine, variant), batch), ms in self._rounds.items()
        ]

    def engines(self) -> list[Key]:
        """Engines and variants, the baseline first."""
        return list(dict.fromkeys(key for _, key, _ in self._rounds))

    def ms(self, network: Network, key: Key, batch: int = 1) -> float:
        """Of a call."""
        return min(self._rounds[network.name, key, batch])


@dataclass(frozen=True)
class Fits:
    """By engine and variant.

    Attributes:
        batch: of the base network.
        width, side: time over FLOPs.
        flops_of_width, flops_of_pixels: how FLOPs themselves grow.
    """

    batch: dict[Key, Line]
    width: dict[Key, Power]
    side: dict[Key, Power]
    flops_of_width: Power
    flops_of_pixels: Power


def fits(made: dict[Network, Made], points: Points) -> Fits:
    """Everything that is fitted."""

    def over_flops(networks: Sequence[Network]) -> dict[Key, Power]:
        gflop = [made[n].gflop for n in networks]
        return {k: power(gflop, [points.ms(n, k) for n in networks]) for k in points.engines()}

    return Fits(
        batch={
            k: line(BATCHES, [points.ms(BASE, k, b) for b in BATCHES]) for k in points.engines()
        },
        width=over_flops(WIDTHS),
        side=over_flops(SIZES),
        flops_of_width=power([n.width for n in WIDTHS], [made[n].gflop for n in WIDTHS]),
        flops_of_pixels=power([n.side**2 for n in SIZES], [made[n].gflop for n in SIZES]),
    )


def label(key: Key) -> str:
    """For a person."""
    return shown_name(*key)


def tables(made: dict[Network, Made], points: Points, fitted: Fits) -> list[Table]:
    """As people see it."""
    keys = points.engines()
    ms = [f"{label(k)}, ms" for k in keys]
    networks = [
        [
            str(one.network.width),
            f"{one.network.side}×{one.network.side}",
            f"{one.parameters / 1e6:.2f}",
            f"{one.gflop:.2f}",
            f"{one.attention:.1%}",
            *(f"{points.ms(n, k):.2f}" for k in keys),
        ]
        for n, one in made.items()
    ]
    return [
        Table(
            "Networks, one image at a time",
            ["width", "image", "M parameters", "GFLOP", "attention", *ms],
            networks,
            ["attention: its share of the FLOPs, which grows with the square of the pixels"],
            left=2,
        ),
        _batches(points),
        _batch_fits(fitted),
        _power_fits(fitted),
    ]


def _batches(points: Points) -> Table:
    keys = points.engines()
    rows = []
    for b in BATCHES:
        calls = [points.ms(BASE, k, b) for k in keys]
        rows.append([str(b), *(f"{call:,.1f} / {call / b:.2f}" for call in calls)])
    return Table(
        f"Batches, width {BASE.width}, {BASE.side}×{BASE.side}",
        ["batch", *map(label, keys)],
        rows,
        ["milliseconds of a call / of an image"],
    )


def _batch_fits(fitted: Fits) -> Table:
    return Table(
        "Time of a call = a + b · batch",
        ["engine", "a, ms", "b, ms", "a of one image's call", "R²", "furthest off"],
        [
            [label(k), f"{f.fixed_ms:.2f}", f"{f.per_image_ms:.2f}", f"{f.fixed_ms / f.at(1):.0%}",
             f"{f.r2:.4f}", f"{f.worst:+.0%} at {f.worst_batch}"]
            for k, f in fitted.batch.items()
        ],
        ["a is paid once for a batch of any size; below 0, images cost more in larger batches"],
    )  # fmt: skip


def _power_fits(fitted: Fits) -> Table:
    grow = (
        f"FLOPs grow as width^{fitted.flops_of_width.exponent:.2f} and as "
        f"pixels^{fitted.flops_of_pixels.exponent:.2f}"
    )
    return Table(
        "Time ∝ FLOPs^p",
        ["over", "engine", "p", "R²", "an operation gets"],
        [
            [over, label(k), f"{f.exponent:.2f}", f"{f.r2:.4f}", exponent_says(f.exponent)]
            for over, found in (("width", fitted.width), ("size of the image", fitted.side))
            for k, f in found.items()
        ],
        [MEANING, grow],
        left=2,
    )


def panels(made: dict[Network, Made], points: Points, fitted: Fits) -> list[Panel]:
    """Of the picture."""

    def over_flops(networks: Sequence[Network], found: dict[Key, Power]) -> dict[Key, Series]:
        gflop = [made[n].gflop for n in networks]
        return {
            k: Series(gflop, [points.ms(n, k) for n in networks], f.at, f"FLOPs^{f.exponent:.2f}")
            for k, f in found.items()
        }

    by_batch = {
        k: Series(BATCHES, [points.ms(BASE, k, b) for b in BATCHES], f.at,
                  f"{f.fixed_ms:.1f} + {f.per_image_ms:.1f}·batch ms")
        for k, f in fitted.batch.items()
    }  # fmt: skip
    return [
        Panel(f"batch: width {BASE.width}, {BASE.side}×{BASE.side}", "images in a call",
              "milliseconds of a call", {b: str(b) for b in BATCHES}, by_batch),
        Panel(f"width: {BASE.side}×{BASE.side}, one image", "GFLOP of an image (width)",
              "milliseconds", _ticks(made, WIDTHS, lambda n: str(n.width)),
              over_flops(WIDTHS, fitted.width), guide=True),
        Panel(f"size of the image: width {BASE.width}, one image", "GFLOP of an image (pixels)",
              "milliseconds", _ticks(made, SIZES, lambda n: f"{n.side}²"),
              over_flops(SIZES, fitted.side), guide=True),
    ]  # fmt: skip


def _ticks(
    made: dict[Network, Made], networks: Sequence[Network], name: Callable[[Network], str]
) -> dict[float, str]:
    return {made[n].gflop: f"{made[n].gflop:.2g}\n({name(n)})" for n in networks}


def report(
    made: dict[Network, Made], points: Points, measured: Report, command: str, threads: int
) -> tuple[Result, list[Panel]]:
    """In the common form, and its picture."""
    fitted = fits(made, points)
    content: dict[str, Any] = {
        "threads": threads,
        "networks": [
            {"name": n.name, **asdict(n), "parameters": m.parameters, "gflop": round(m.gflop, 4),
             "attention": round(m.attention, 5), "digest": m.bundle.digest}
            for n, m in made.items()
        ],
        "points": [asdict(point) for point in points.all()],
        "fits": {
            over: [{"engine": k[0], "variant": k[1], **asdict(f)} for k, f in found.items()]
            for over, found in (("batch", fitted.batch), ("width", fitted.width),
                                ("image", fitted.side))
        },
        "flops_of_width": asdict(fitted.flops_of_width),
        "flops_of_pixels": asdict(fitted.flops_of_pixels),
    }  # fmt: skip
    title = "What an image costs: batch, width, size"
    shown = "measured times (points) and fits (lines) over batch, width and size of the image"
    result = Result(
        kind="scale",
        title=title,
        command=command,
        machine=measured.machine,
        versions=measured.versions,
        tables=tables(made, points, fitted),
        pictures=[Picture("scale.png", shown)],
        content=content,
    )
    return result, panels(made, points, fitted)

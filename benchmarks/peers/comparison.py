"""Turns, samples and what they say: a row for each contender, ours and theirs."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from mmf_deploy.serve.bench.statistics import Median, median, ratio
from numpy.typing import NDArray

from mmf_deploy.errors import EngineError
from mmf_deploy.images import to_uint8
from mmf_deploy.results import Table

EAGER = "PyTorch eager"
MIN_TURNS, TURNS = 5, 12
"""At least so many turns of each, and so many in the time there is."""
EQUAL_DB = 999.0
"""For images without any difference."""


@dataclass(frozen=True)
class Contender:
    """Who takes part.

    Attributes:
        tool: what made the file and runs it.
        version: of the tool.
        precision: it computes in.
        engine: of ours that it runs on; for a peer the one to compare with, or "".
        ours: whether it is a variant of the bundle.
        convert_s: making its files, once; None for those that were exported before.
        load_s: from its files to the first samples.
        bytes: of its files; 0 where it has none of its own.
    """

    tool: str
    version: str
    precision: str
    engine: str
    ours: bool
    bytes: int
    load_s: float
    convert_s: float | None = None


class Runs(Protocol):
    """What takes turns: a worker with one of our engines, or a peer's process."""

    def turn(self, batch: int, seconds: float) -> list[float]:
        """Seconds of each timed call."""


@dataclass(frozen=True)
class Row:
    """One contender's results.

    Attributes:
        median_ms, p90_ms: milliseconds per image.
        within: the interval of the median over turns, 95% confidence: 0.03 for ±3%.
        speedup: how many times faster than PyTorch eager, median over turns of the ratio.
        rival: of ours, what a peer is compared with: the same precision, on the same engine if
            there is one, else the fastest. None for ours, and where the bundle has no such.
        ours_faster: the peer's time over its rival's, median over turns; above 1 ours is faster.
        ours_faster_low, ours_faster_high: its interval.
        psnr: of the images against PyTorch's, in dB; 999 for equal ones.
        max_levels: largest difference of them, of 255.
    """

    tool: str
    version: str
    precision: str
    ours: bool
    median_ms: float
    p90_ms: float
    within: float
    calls: int
    turns: int
    speedup: float
    rival: str | None
    ours_faster: float | None
    ours_faster_low: float | None
    ours_faster_high: float | None
    psnr: float
    max_levels: int
    load_s: float
    convert_s: float | None
    file_mb: float | None


def take_turns(
    running: Mapping[str, Runs],
    batch: int,
    seconds: float,
    on_progress: Callable[[float], None] = lambda share: None,
) -> tuple[dict[str, list[list[float]]], dict[str, str]]:
    """Seconds of every call of every turn, by name; and why those that broke down did.

    Each round has another order, so that none always follows the same neighbour.
    """
    order = random.Random(0)
    turns: dict[str, list[list[float]]] = {name: [] for name in running}
    broken: dict[str, str] = {}
    began = time.perf_counter()
    spent, rounds = 0.0, 0
    while turns and (rounds < MIN_TURNS or spent < 1):
        turn_s = seconds / TURNS / len(turns)
        for name in order.sample(sorted(turns), len(turns)):
            try:
                # the call that is not counted takes its share of the time, too
                turns[name].append(running[name].turn(batch, turn_s / 2))
            except EngineError as e:
                broken[name] = str(e)
                del turns[name]
            spent = (time.perf_counter() - began) / seconds
            on_progress(min(1.0, spent))
        rounds += 1
    return turns, broken


def rows(
    contenders: Mapping[str, Contender],
    turns: Mapping[str, Sequence[Sequence[float]]],
    samples: Mapping[str, NDArray[np.float32]],
    batch: int,
) -> list[Row]:
    """What the turns say of each; ``EAGER`` is the reference of times and samples."""
    middle = {name: np.array([np.median(turn) for turn in taken]) for name, taken in turns.items()}
    found = []
    for name, taken in turns.items():
        who = contenders[name]
        calls = np.concatenate([np.asarray(turn) for turn in taken]) * 1e3 / batch
        rival = None if who.ours or name == EAGER else rival_of(who, contenders, middle)
        versus = None if rival is None else ratio(middle[name], middle[rival])
        psnr, levels = difference(samples[name], samples[EAGER])
        found.append(
            Row(
                tool=who.tool,
                version=who.version,
                precision=who.precision,
                ours=who.ours,
                median_ms=round(float(np.median(calls)), 4),
                p90_ms=round(float(np.percentile(calls, 90)), 4),
                within=round(median(middle[name]).within, 4),
                calls=len(calls),
                turns=len(taken),
                speedup=round(ratio(middle[EAGER], middle[name]).value, 3),
                rival=None if rival is None else contenders[rival].tool,
                **_versus(versus),
                psnr=psnr,
                max_levels=levels,
                load_s=who.load_s,
                convert_s=who.convert_s,
                file_mb=round(who.bytes / 1e6, 2) if who.bytes else None,
            )
        )
    return found


def _versus(found: Median | None) -> dict[str, Any]:
    names = ("ours_faster", "ours_faster_low", "ours_faster_high")
    if found is None:
        return dict.fromkeys(names)
    values = (found.value, found.low, found.high)
    return {name: round(value, 3) for name, value in zip(names, values, strict=True)}


def rival_of(
    peer: Contender, contenders: Mapping[str, Contender], middle: Mapping[str, NDArray[np.float64]]
) -> str | None:
    """Of ours what a peer is compared with; None if the bundle has nothing of its precision."""
    alike = [name for name, c in contenders.items()
             if c.ours and c.precision == peer.precision and name in middle]  # fmt: skip
    same = [name for name in alike if contenders[name].engine == peer.engine]
    return min(same or alike, key=lambda name: float(np.median(middle[name])), default=None)


def difference(sample: NDArray[np.float32], reference: NDArray[np.float32]) -> tuple[float, int]:
    """PSNR in dB and largest difference in levels, of images; a sample is float32 [B, C, H, W]."""
    noise = to_uint8(sample).astype(np.float64) - to_uint8(reference)
    mean = float((noise**2).mean())
    psnr = EQUAL_DB if not mean else float(10 * np.log10(255.0**2 / mean))
    return round(psnr, 2), int(np.abs(noise).max())


COLUMNS = ("tool", "version", "precision", "ms", "p90", "× eager", "ours", "PSNR", "max Δ",
           "load s", "MB")  # fmt: skip
NOTES = (
    "ms, p90: per image. × eager: times faster than PyTorch eager in fp32. ours: our variant of "
    "the same precision, on the same engine where there is one, is so many times faster (medians "
    "over turns of ratios within a turn).",
    "PSNR in dB, and the largest difference in levels of 255, to PyTorch's fp32 images of the same "
    "noise. load s: from files to the first image. MB: of what running needs.",
)


def table(rows: Sequence[Row], title: str, notes: Sequence[str]) -> Table:
    """Ours first, then the peers, in the order they came."""
    return Table(title, COLUMNS, [_cells(row) for row in rows], [*NOTES, *notes], left=3)


def _cells(row: Row) -> list[str]:
    return [
        row.tool,
        row.version,
        row.precision,
        _ms(row.median_ms),
        _ms(row.p90_ms),
        f"{row.speedup:.2f}",
        "" if row.ours_faster is None else f"{row.ours_faster:.2f}×",
        "equal" if row.psnr == EQUAL_DB else f"{row.psnr:.1f}",
        str(row.max_levels),
        f"{row.load_s:.2f}",
        "" if row.file_mb is None else f"{row.file_mb:.1f}",
    ]


def _ms(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def as_content(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For the result file."""
    return [asdict(row) for row in rows]

"""From the times of all turns to what is reported of each engine."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .statistics import Median, median, ratio
from .subjects import BASELINE, LIMIT, Subject, mode_name
from .worker import Facts, Turn

Turns = dict[Subject, list[Turn]]
"""Every turn of every subject at one batch size; the k-th of all belong together."""


@dataclass(frozen=True)
class Row:
    """One engine with one number of threads at one batch size.

    Attributes:
        median_ms, p90_ms, p99_ms: of one call divided by the batch: milliseconds per image.
        within: the interval of the median over turns, 95% confidence: 0.03 for ±3%.
        images_per_s: batch over the median time of a call.
        speedup: how many times faster than the fastest PyTorch eager row of this batch: the
            median over turns of the ratio within a turn; None where there is no baseline.
        speedup_within: the interval of that.
        versus: the same against other baselines: each other mode of PyTorch, and a plain export.
        calls, turns: number of timed calls, and of the turns they were made in.
        load_s: from opening the engine until its first image.
        peak_memory_mb: resident memory of its process at most with this batch size.
        device_memory_mb, device_ms: on a GPU: memory at most; time by its own events, per image.
        joules: per image, of the whole processor or GPU.
        floor_ms: per image, the least time that the machine's arithmetic and memory rates leave
            (floor.py), measured in the same turns; None without them.
        of_floor: the floor over the time, median over turns: 1 is the limit.
        bound: what sets the floor, "compute" or "memory".
    """

    engine: str
    variant: str
    threads: int
    batch: int
    median_ms: float
    p90_ms: float
    p99_ms: float
    images_per_s: float
    speedup: float | None
    calls: int
    versus: dict[str, float] = field(default_factory=dict)
    within: float = 0.0
    speedup_within: float | None = None
    turns: int = 0
    load_s: float | None = None
    peak_memory_mb: float | None = None
    device_memory_mb: float | None = None
    device_ms: float | None = None
    joules: float | None = None
    floor_ms: float | None = None
    of_floor: float | None = None
    bound: str | None = None


@dataclass(frozen=True)
class Floors:
    """The floor of one subject in every turn, in seconds of a call."""

    seconds: Sequence[float]
    bound: str


def by_turn(turns: Sequence[Turn]) -> np.ndarray:
    """The median of each turn, seconds."""
    return np.array([np.median(turn.seconds) for turn in turns])


def rows(
    turns: Turns,
    batch: int,
    plain: Collection[str] = (),
    facts: Mapping[Subject, Facts] | None = None,
    floors: Mapping[Subject, Floors] | None = None,
) -> list[Row]:
    """A row for each engine.

    Args:
        plain: variants that are a baseline, too.
    """
    engines = {s: t for s, t in turns.items() if s.engine != LIMIT}
    middle = {s: by_turn(t) for s, t in engines.items()}
    best = _best(middle, plain)
    found = []
    for subject, taken in engines.items():
        calls = np.concatenate([np.array(turn.seconds) for turn in taken])
        p50, p90, p99 = np.percentile(calls * 1e3 / batch, [50, 90, 99])
        ratios = {
            name: ratio(middle[other], middle[subject])
            for name, other in best.items()
            if other.steps == subject.steps  # two steps cannot be compared with one
        }
        eager = ratios.pop(mode_name("eager", subject.steps), None)
        known = (facts or {}).get(subject)
        floor = (floors or {}).get(subject)
        found.append(
            Row(
                engine=subject.engine,
                variant=subject.variant,
                threads=subject.threads,
                batch=batch,
                median_ms=round(float(p50), 4),
                p90_ms=round(float(p90), 4),
                p99_ms=round(float(p99), 4),
                images_per_s=round(1e3 / float(p50), 1),
                speedup=None if eager is None else round(eager.value, 3),
                calls=len(calls),
                versus={name: round(r.value, 3) for name, r in ratios.items()},
                within=round(median(middle[subject]).within, 4),
                speedup_within=_unless_same(eager),
                turns=len(taken),
                load_s=known.load_s if known else None,
                peak_memory_mb=known.peak_memory_mb if known else None,
                device_memory_mb=known.device_memory_mb if known else None,
                device_ms=_device_ms(taken, batch),
                joules=_joules(taken, batch),
                floor_ms=_floor_ms(floor, batch),
                of_floor=_of_floor(floor, middle[subject]),
                bound=floor.bound if floor else None,
            )
        )
    return found


def _unless_same(eager: Median | None) -> float | None:
    """How well the ratio is known; the baseline's to itself is no finding."""
    return None if eager is None or eager.low == eager.high else round(eager.within, 4)


def _best(middle: Mapping[Subject, np.ndarray], plain: Collection[str]) -> dict[str, Subject]:
    """Of every baseline the fastest, whatever its threads: an easier one would flatter us."""
    baselines: dict[str, list[Subject]] = {}
    for s in middle:
        if s.engine == BASELINE or s.variant in plain:
            baselines.setdefault(s.variant, []).append(s)
    return {
        name: min(group, key=lambda s: float(np.median(middle[s])))
        for name, group in baselines.items()
    }


def _device_ms(taken: Sequence[Turn], batch: int) -> float | None:
    every = [ms for turn in taken for ms in turn.device_ms or ()]
    return round(float(np.median(every)) / batch, 4) if every else None


def _joules(taken: Sequence[Turn], batch: int) -> float | None:
    known = [(t.joules, len(t.seconds)) for t in taken if t.joules is not None]
    images = batch * sum(calls for _, calls in known)
    return round(sum(joules for joules, _ in known) / images, 6) if known else None


def _floor_ms(floor: Floors | None, batch: int) -> float | None:
    return None if floor is None else round(float(np.median(floor.seconds)) * 1e3 / batch, 5)


def _of_floor(floor: Floors | None, middle: np.ndarray) -> float | None:
    return None if floor is None else round(ratio(floor.seconds, middle).value, 4)


def certain(turns: Turns, within: float) -> bool:
    """Whether every ratio to the fastest baseline, or every time without one, is known well."""
    middle = {s: by_turn(t) for s, t in turns.items() if s.engine != LIMIT}
    baselines = [s for s in middle if s.engine == BASELINE]
    against = min(baselines, key=lambda s: float(np.median(middle[s])), default=None)
    known: list[Median] = [
        median(own) if against is None else ratio(middle[against], own)
        for subject, own in middle.items()
        if subject != against
    ]
    return all(k.within <= within for k in known)

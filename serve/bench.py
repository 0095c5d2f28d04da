"""Latency per image of the engines, taking turns in one run, against PyTorch eager."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from mmf_deploy import __version__, machine
from mmf_deploy.bundle import Bundle
from mmf_deploy.errors import ConfigError

from .bench_worker import Setting, Subject, Worker

BASELINE = "pytorch"


@dataclass(frozen=True)
class Row:
    """One engine with one number of threads at one batch size.

    Attributes:
        median_ms, p90_ms, p99_ms: of one call divided by the batch: milliseconds per image.
        images_per_s: batch over the median time of a call.
        speedup: how many times faster than the fastest PyTorch eager row of this batch: the
            median over turns of the ratio within a turn; None where there is no baseline.
        calls: number of timed calls.
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


@dataclass(frozen=True)
class Report:
    """A whole benchmark: rows, and what is needed to repeat them."""

    command: str
    bundle: str
    digest: str
    parameters: int
    machine: dict[str, str]
    versions: dict[str, str]
    rows: list[Row]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        batches: batch sizes.
        threads: numbers of compute threads; every engine runs with each of them.
        seconds: time to spend on each batch size, all engines together, after warm-up.
        min_turns: turns of every engine, whatever ``seconds`` says.
        checkpoint: of the PyTorch baseline, or None.
    """

    batches: Sequence[int]
    threads: Sequence[int]
    seconds: float = 4.0
    min_turns: int = 4
    checkpoint: Path | None = None

    @property
    def turn_s(self) -> float:
        """How long the timed calls of one turn last, at least one: 40 turns in all."""
        return self.seconds / 40


Turns = dict[Subject, list[list[float]]]
"""Seconds of every timed call, by subject and turn."""


def measure(
    bundle: Bundle,
    plan: Plan,
    command: str,
    on_progress: Callable[[str, int], None] = lambda what, done: None,
) -> Report:
    """Benchmark every variant of a bundle, and the baseline if there is a checkpoint.

    Each engine has a process of its own and they take turns, so that drift of the machine
    hits all alike. The first call of a turn is not counted: it pays for cold caches.

    Args:
        on_progress: called with the batch size and the share of its time that is over.
    Raises:
        ConfigError: a batch size or a number of threads below 1.
    """
    if min(*plan.batches, *plan.threads, 1) < 1 or not plan.batches or not plan.threads:
        raise ConfigError(
            f"batch sizes {list(plan.batches)}, threads {list(plan.threads)}: "
            "expected integers of at least 1"
        )
    subjects = _subjects(bundle, plan)
    setting = Setting(bundle.path, plan.checkpoint)
    rows: list[Row] = []
    with ExitStack() as stack:
        workers = {
            engine: stack.enter_context(
                Worker(setting, [s for s in subjects if s.engine == engine])
            )
            for engine in dict.fromkeys(s.engine for s in subjects)
        }
        for batch in plan.batches:
            rows += _rows(_time(workers, subjects, batch, plan, on_progress), batch)
    return Report(
        command=command,
        bundle=bundle.manifest.name,
        digest=bundle.digest,
        parameters=bundle.manifest.source.parameters,
        machine=machine.describe(),
        versions=_versions(plan.checkpoint is not None),
        rows=rows,
    )


def _subjects(bundle: Bundle, plan: Plan) -> list[Subject]:
    subjects = []
    for threads in plan.threads:
        if plan.checkpoint is not None:
            subjects.append(Subject(BASELINE, "eager fp32", threads))
        subjects += [Subject("onnxruntime", v.name, threads) for v in bundle.manifest.variants]
    return subjects


def _time(
    workers: Mapping[str, Worker],
    subjects: Sequence[Subject],
    batch: int,
    plan: Plan,
    on_progress: Callable[[str, int], None],
) -> Turns:
    turns: Turns = {subject: [] for subject in subjects}
    begin = time.perf_counter()
    count = 0
    while count < plan.min_turns or time.perf_counter() < begin + plan.seconds:
        for subject in subjects:
            turns[subject].append(workers[subject.engine].turn(subject, batch, plan.turn_s))
            share = min(1.0, (time.perf_counter() - begin) / plan.seconds)
            on_progress(f"batch {batch}", round(100 * share))
        count += 1
    return turns


def _rows(turns: Turns, batch: int) -> list[Row]:
    calls = {s: np.concatenate([np.array(t) for t in every]) for s, every in turns.items()}
    by_turn = {s: np.array([np.median(t) for t in every]) for s, every in turns.items()}
    baselines = [s for s in turns if s.engine == BASELINE]
    # the fastest baseline, whatever its number of threads: an easier one would flatter us
    best = min(baselines, key=lambda s: float(np.median(calls[s])), default=None)
    rows = []
    for subject, seconds in calls.items():
        median, p90, p99 = np.percentile(seconds * 1e3 / batch, [50, 90, 99])
        speedup = None if best is None else float(np.median(by_turn[best] / by_turn[subject]))
        rows.append(
            Row(
                *subject,
                batch=batch,
                median_ms=round(float(median), 4),
                p90_ms=round(float(p90), 4),
                p99_ms=round(float(p99), 4),
                images_per_s=round(1e3 / float(median), 1),
                speedup=None if speedup is None else round(speedup, 3),
                calls=len(seconds),
            )
        )
    return rows


def _versions(with_torch: bool) -> dict[str, str]:
    found = {"mmf-deploy": __version__, "python": platform.python_version()}
    for package in ("onnxruntime", "numpy", *(("torch",) if with_torch else ())):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found

"""Latency per image of the engines, taking turns in one run, against PyTorch eager."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from mmf_deploy import __version__, machine
from mmf_deploy.bundle import Bundle, Variant
from mmf_deploy.engines.base import EngineOptions, engine_class
from mmf_deploy.errors import ConfigError

from .worker import Setting, Subject, Worker

BASELINE = "pytorch"
EAGER = "eager fp32"
"""What its eager mode is called in reports."""


@dataclass(frozen=True)
class Row:
    """One engine with one number of threads at one batch size.

    Attributes:
        median_ms, p90_ms, p99_ms: of one call divided by the batch: milliseconds per image.
        images_per_s: batch over the median time of a call.
        speedup: how many times faster than the fastest PyTorch eager row of this batch: the
            median over turns of the ratio within a turn; None where there is no baseline.
        versus: the same against other baselines: each other mode of PyTorch, and a plain export.
        memory_mb: resident memory of its process after this batch size.
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
    versus: dict[str, float] = field(default_factory=dict)
    memory_mb: float | None = None


@dataclass(frozen=True)
class Report:
    """A whole benchmark: rows, and what is needed to repeat them.

    Attributes:
        left_out: a line about each variant that does not run here.
        graphs: by variant: nodes of its graph, and bytes of its file.
    """

    command: str
    bundle: str
    digest: str
    parameters: int
    machine: dict[str, str]
    versions: dict[str, str]
    rows: list[Row]
    left_out: list[str] = field(default_factory=list)
    graphs: dict[str, dict[str, int]] = field(default_factory=dict)

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
        device: of the baseline: "cpu" or "cuda"; the first variant's if None.
        modes: ways of running the baseline; "eager" is always among them.
        variants: of the bundle; every one that runs here if None.
    """

    batches: Sequence[int]
    threads: Sequence[int]
    seconds: float = 4.0
    min_turns: int = 4
    checkpoint: Path | None = None
    device: str | None = None
    modes: Sequence[str] = ("eager",)
    variants: Sequence[str] | None = None

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
    subjects, left_out = _subjects(bundle, plan)
    setting = Setting(bundle.path, plan.checkpoint, plan.device)
    plain = {v.name for v in bundle.manifest.variants if v.target == "plain"}
    rows: list[Row] = []
    with ExitStack() as stack:
        workers = {s: stack.enter_context(Worker(setting, s)) for s in subjects}
        for batch in plan.batches:
            turns = _time(workers, batch, plan, on_progress)
            memory = {s: worker.memory_mb() for s, worker in workers.items()}
            rows += _rows(turns, batch, plain, memory)
    return Report(
        command=command,
        bundle=bundle.manifest.name,
        digest=bundle.digest,
        parameters=bundle.manifest.source.parameters,
        machine=machine.describe(),
        versions=_versions({s.engine for s in subjects}),
        rows=rows,
        left_out=left_out,
        graphs={
            v.name: {"nodes": v.graph.get("nodes", 0), "bytes": bundle.file(v).stat().st_size}
            for v in bundle.manifest.variants
        },
    )


def _subjects(bundle: Bundle, plan: Plan) -> tuple[list[Subject], list[str]]:
    """What is measured, and a line about each variant that does not run here."""
    for name in plan.variants or ():
        bundle.variant(name)  # or says which there are
    runs, left_out = [], []
    for v in bundle.manifest.variants:
        if plan.variants is not None and v.name not in plan.variants:
            continue
        reason = _why_not(v)
        if reason is None:
            runs.append(v)
        else:
            left_out.append(f"{v.name}: {reason}")
    subjects = []
    for threads in plan.threads:
        if plan.checkpoint is not None:
            modes = dict.fromkeys(["eager", *plan.modes])
            every = dict.fromkeys(v.steps for v in runs)
            subjects += [
                Subject(BASELINE, _mode_name(m, steps), threads, m, steps)
                for steps in every
                for m in modes
            ]
        subjects += [Subject(v.engine, v.name, threads, steps=v.steps) for v in runs]
    if not subjects:
        raise ConfigError(f"{bundle.path}: nothing of it runs here: {'; '.join(left_out)}")
    return subjects, left_out


def _mode_name(mode: str, steps: int) -> str:
    name = EAGER if mode == "eager" else mode
    return name if steps == 1 else f"{name} {steps}step"


def _why_not(variant: Variant) -> str | None:
    """Why a variant is not measured here; None if it is."""
    if variant.target == "web":
        return "runs in a browser"
    try:
        options = EngineOptions(device=variant.device)
        return engine_class(variant.engine).unavailable(options)
    except ModuleNotFoundError as e:
        return f"the package {e.name!r} is not installed"


def _time(
    workers: Mapping[Subject, Worker],
    batch: int,
    plan: Plan,
    on_progress: Callable[[str, int], None],
) -> Turns:
    turns: Turns = {subject: [] for subject in workers}
    for worker in workers.values():
        # what is compiled or allocated at the first use of a batch size is not on the clock
        on_progress(f"batch {batch}", 0)
        worker.turn(batch, 0.0)
    begin = time.perf_counter()
    count = 0
    while count < plan.min_turns or time.perf_counter() < begin + plan.seconds:
        for subject, worker in workers.items():
            turns[subject].append(worker.turn(batch, plan.turn_s))
            share = min(1.0, (time.perf_counter() - begin) / plan.seconds)
            on_progress(f"batch {batch}", round(100 * share))
        count += 1
    return turns


def _rows(
    turns: Turns,
    batch: int,
    plain: Collection[str] = (),
    memory: Mapping[Subject, float | None] | None = None,
) -> list[Row]:
    calls = {s: np.concatenate([np.array(t) for t in every]) for s, every in turns.items()}
    by_turn = {s: np.array([np.median(t) for t in every]) for s, every in turns.items()}
    baselines: dict[str, list[Subject]] = {}
    for s in turns:
        if s.engine == BASELINE or s.variant in plain:
            baselines.setdefault(s.variant, []).append(s)
    # the fastest baseline, whatever its number of threads: an easier one would flatter us
    best = {
        name: min(subjects, key=lambda s: float(np.median(calls[s])))
        for name, subjects in baselines.items()
    }
    rows = []
    for subject, seconds in calls.items():
        median, p90, p99 = np.percentile(seconds * 1e3 / batch, [50, 90, 99])
        ratios = {
            name: round(float(np.median(by_turn[other] / by_turn[subject])), 3)
            for name, other in best.items()
            if other.steps == subject.steps  # two steps cannot be compared with one
        }
        rows.append(
            Row(
                engine=subject.engine,
                variant=subject.variant,
                threads=subject.threads,
                batch=batch,
                median_ms=round(float(median), 4),
                p90_ms=round(float(p90), 4),
                p99_ms=round(float(p99), 4),
                images_per_s=round(1e3 / float(median), 1),
                speedup=ratios.pop(_mode_name("eager", subject.steps), None),
                calls=len(seconds),
                versus=ratios,
                memory_mb=(memory or {}).get(subject),
            )
        )
    return rows


_PACKAGES = {"onnxruntime": ("onnxruntime", "onnxruntime-gpu"), "openvino": ("openvino",),
             "pytorch": ("torch",), "aoti": ("torch",), "tensorrt": ("tensorrt",)}  # fmt: skip


def _versions(engines: Collection[str]) -> dict[str, str]:
    found = {"mmf-deploy": __version__, "python": platform.python_version()}
    for package in ("numpy", *(p for e in sorted(engines) for p in _PACKAGES.get(e, ()))):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found

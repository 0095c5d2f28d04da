"""Latency per image of the engines, interleaved in one run, against PyTorch eager."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from mmf_deploy import __version__, noise
from mmf_deploy.bundle import Bundle
from mmf_deploy.engines.base import Engine, EngineOptions, open_engine
from mmf_deploy.errors import ConfigError

BASELINE = "pytorch"


@dataclass(frozen=True)
class Row:
    """One engine at one batch size.

    Attributes:
        median_ms, p90_ms, p99_ms: of one call divided by the batch: milliseconds per image.
        images_per_s: batch over the median time of a call.
        speedup: the baseline's median over this one, the median of ratios call by call;
            None where there is no baseline.
        calls: number of timed calls.
    """

    engine: str
    variant: str
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
    threads: int
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
        threads: compute threads of every engine.
        seconds: time to spend on each batch size, all engines together, after warm-up.
        min_calls, max_calls: bounds on timed calls per engine, whatever ``seconds`` says.
        checkpoint: of the PyTorch baseline, or None.
    """

    batches: Sequence[int]
    threads: int
    seconds: float = 4.0
    min_calls: int = 5
    max_calls: int = 500
    checkpoint: Path | None = None


def measure(
    bundle: Bundle,
    plan: Plan,
    command: str,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Report:
    """Benchmark every variant of a bundle, and the baseline if there is a checkpoint.

    The engines take turns call by call, so that drift of the machine hits all alike.

    Raises:
        ConfigError: a batch size below 1.
    """
    if not plan.batches or min(plan.batches) < 1:
        raise ConfigError(f"batch sizes {list(plan.batches)}: expected integers of at least 1")
    options = EngineOptions(threads=plan.threads, checkpoint=plan.checkpoint)
    rows: list[Row] = []
    with ExitStack() as stack:
        engines: dict[tuple[str, str], Engine] = {}
        if plan.checkpoint is not None:
            baseline = open_engine(BASELINE, bundle, options=options)
            engines[BASELINE, "eager fp32"] = stack.enter_context(baseline)
        for variant in bundle.manifest.variants:
            engine = open_engine("onnxruntime", bundle, variant.name, options)
            engines["onnxruntime", variant.name] = stack.enter_context(engine)
        for k, batch in enumerate(plan.batches):
            on_progress(f"batch {batch}", k, len(plan.batches))
            rows += _rows(_time(engines, bundle, batch, plan), batch)
    return Report(
        command=command,
        bundle=bundle.manifest.name,
        digest=bundle.digest,
        parameters=bundle.manifest.source.parameters,
        threads=plan.threads,
        machine=machine(),
        versions=_versions(plan.checkpoint is not None),
        rows=rows,
    )


Times = dict[tuple[str, str], list[float]]


def _time(
    engines: Mapping[tuple[str, str], Engine], bundle: Bundle, batch: int, plan: Plan
) -> Times:
    spec = bundle.spec
    x1 = noise.gaussian_batch(range(batch), spec.shape)
    label = np.array([spec.default_label(s) for s in range(batch)]) if spec.conditional else None
    guidance = np.full(batch, spec.guidance[0], np.float32) if spec.guidance else None
    times: Times = {key: [] for key in engines}
    for engine in engines.values():
        for _ in range(2):
            engine.run(x1, label, guidance)
    end = time.perf_counter() + plan.seconds
    calls = 0
    while calls < plan.min_calls or (calls < plan.max_calls and time.perf_counter() < end):
        for key, engine in engines.items():
            begin = time.perf_counter()
            engine.run(x1, label, guidance)
            times[key].append(time.perf_counter() - begin)
        calls += 1
    return times


def _rows(times: Times, batch: int) -> list[Row]:
    baseline = next((v for (engine, _), v in times.items() if engine == BASELINE), None)
    rows = []
    for (engine, variant), seconds in times.items():
        per_image = np.array(seconds) * 1e3 / batch
        median, p90, p99 = np.percentile(per_image, [50, 90, 99])
        speedup = None
        if baseline is not None:
            speedup = statistics.median(b / s for b, s in zip(baseline, seconds, strict=True))
        rows.append(
            Row(
                engine=engine,
                variant=variant,
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


def machine() -> dict[str, str]:
    """What ran the benchmark: processor, cores this process may use, system."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    return {"cpu": cpu, "cores": str(available_cores()), "system": platform.system()}


def available_cores() -> int:
    """Cores this process may use."""
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _versions(with_torch: bool) -> dict[str, str]:
    found = {"mmf-deploy": __version__, "python": platform.python_version()}
    for package in ("onnxruntime", "numpy", *(("torch",) if with_torch else ())):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found

"""Latency per image of engines that take turns with PyTorch and with the machine's limit."""

from __future__ import annotations

import platform
import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import metadata

import numpy as np

from mmf_deploy import __version__, machine
from mmf_deploy.bundle import Bundle

from .limits import floors, graph_facts, limit_subjects, machine_rates
from .report import Report
from .rows import Row, Turns, certain, rows
from .subjects import LIMIT, Plan, Setting, Subject, subjects
from .worker import Facts, Worker

OnProgress = Callable[[str, int], None]
TURNS = 15
"""So many turns of every subject are aimed at in the time there is."""
TRIALS, TRIAL_S = 3, 0.005
"""Turns, and their length, by which a number of threads is chosen."""
WORTH = 0.8
"""More threads must bring this share of what their number promises. With less, small networks run
at one of several speeds from process to process, as the system places their threads; and a service
needs the cores for something else."""


def measure(
    bundle: Bundle,
    plan: Plan,
    command: str,
    on_progress: OnProgress = lambda what, done: None,
) -> Report:
    """Benchmark every variant of a bundle, and the baseline if there is a checkpoint.

    Each engine has a process of its own and they take turns, so that drift of the machine
    hits all alike. The first call of a turn is not counted: it pays for cold caches.

    Args:
        on_progress: called with the batch size and the share of its time that is over.
    Raises:
        ConfigError: a batch size or a number of threads below 1.
    """
    plan.check()
    engines, left_out = subjects(bundle, plan)
    limit, missing = limit_subjects(bundle, plan, engines)
    setting = Setting(bundle.path, plan.checkpoint, plan.device)
    plain = {v.name for v in bundle.manifest.variants if v.target == "plain"}
    found: list[Row] = []
    with _workers(setting, [*engines, *limit], on_progress) as workers:
        everything: dict[int, Turns] = {}
        known: dict[Subject, Facts] = {}
        for batch in plan.batches:
            everything[batch], facts = _time(workers, batch, plan, on_progress)
            known |= facts
            least = floors(bundle, plan, everything[batch], facts, batch)
            found += rows(everything[batch], batch, plain, facts, least)
    return Report(
        command=command,
        bundle=bundle.manifest.name,
        digest=bundle.digest,
        parameters=bundle.manifest.source.parameters,
        machine=machine.describe() | _device(known.values()),
        versions=versions({s.engine for s in engines}),
        rows=found,
        left_out=[*left_out, *missing],
        graphs=graph_facts(bundle, bool(limit)),
        limit=machine_rates(everything, known),
        quality={v.name: v.parity for v in bundle.manifest.variants},
        quality_of_data=bundle.manifest.quality,
        within=plan.within,
    )


@contextmanager
def _workers(
    setting: Setting, wanted: Sequence[Subject], on_progress: OnProgress
) -> Iterator[dict[Subject, Worker]]:
    """All processes: their imports at the same time, then opened one after the other."""
    with ExitStack() as stack:
        on_progress("loading", 0)
        engines = {s: Worker(setting, s).start() for s in wanted if s.engine != LIMIT}
        for worker in engines.values():
            stack.callback(worker.stop)
        for worker in engines.values():
            worker.wait()
        workers: dict[Subject, Worker] = {}
        fastest: dict[str, str | None] = {}
        for k, subject in enumerate(wanted):
            how = subject._replace(mode=fastest.get(subject.variant))
            worker = engines.get(subject) or Worker(setting, how)
            workers[subject] = stack.enter_context(worker)
            if subject.engine == LIMIT:
                fastest.setdefault(subject.variant, worker.facts().library)
            on_progress("loading", round(100 * (k + 1) / len(wanted)))
        yield workers


def _time(
    workers: Mapping[Subject, Worker], batch: int, plan: Plan, on_progress: OnProgress
) -> tuple[Turns, dict[Subject, Facts]]:
    on_progress(f"batch {batch}", 0)
    for worker in workers.values():
        worker.fresh()
        worker.turn(batch, 0.0)  # what is compiled or allocated at first is not on the clock
    if not plan.every_thread:
        workers = _with_best_threads(workers, batch)
    turns: Turns = {subject: [] for subject in workers}
    begin = time.perf_counter()
    turn_s = plan.seconds / TURNS / len(workers)
    order = random.Random(batch)
    over, count = 0.0, 0
    while over < 1:
        # another order each round, so that none always follows the same neighbour
        for subject in order.sample(list(workers), len(workers)):
            # the uncounted call at the beginning takes its share of the time, too
            turns[subject].append(workers[subject].take(batch, turn_s / 2))
            spent = (time.perf_counter() - begin) / plan.seconds
            on_progress(f"batch {batch}", min(99, round(100 * spent)))
        count += 1
        enough = count >= plan.min_turns
        over = 1.0 if enough and certain(turns, plan.within) else spent if enough else 0.0
    on_progress(f"batch {batch}", 100)
    return turns, {subject: worker.facts() for subject, worker in workers.items()}


def _with_best_threads(workers: Mapping[Subject, Worker], batch: int) -> dict[Subject, Worker]:
    """Of each engine the number of threads that pays in a trial, and the limits for it."""
    trials: dict[Subject, list[float]] = {s: [] for s in workers if s.engine != LIMIT}
    for _ in range(TRIALS):
        for subject, taken in trials.items():
            taken.append(float(np.median(workers[subject].turn(batch, TRIAL_S))))
    best: dict[Subject, Subject] = {}
    for subject, taken in trials.items():
        alike = subject._replace(threads=0)
        if alike not in best or _pays(
            best[alike].threads, trials[best[alike]], subject.threads, taken
        ):
            best[alike] = subject
    used = {s.threads for s in best.values()}
    limit = [s for s in workers if s.engine == LIMIT and s.threads in used]
    return {s: workers[s] for s in [*best.values(), *limit]}


def _pays(few: int, slow: Sequence[float], many: int, fast: Sequence[float]) -> bool:
    """Whether more threads are worth their cores: each must do most of what one alone does."""
    return float(np.median(fast)) * many * WORTH <= float(np.median(slow)) * few


_PACKAGES = {"onnxruntime": ("onnxruntime", "onnxruntime-gpu"), "openvino": ("openvino",),
             "pytorch": ("torch",), "aoti": ("torch",), "tensorrt": ("tensorrt",)}  # fmt: skip


def versions(engines: Collection[str]) -> dict[str, str]:
    """Of everything that took part."""
    found = {"mmf-deploy": __version__, "python": platform.python_version()}
    for package in ("numpy", *(p for e in sorted(engines) for p in _PACKAGES.get(e, ()))):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _device(facts: Collection[Facts]) -> dict[str, str]:
    """What the engines say of their GPU."""
    return {k: v for f in facts for k, v in (f.about or {}).items() if k in ("gpu", "driver")}


__all__ = ["LIMIT", "OnProgress", "Plan", "Report", "Setting", "Subject", "measure", "versions"]

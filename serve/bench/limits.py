"""The machine's limit beside the engines: which rates take part, and the floor of each engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mmf_deploy.bundle import Bundle, Variant
from mmf_deploy.errors import DependencyError

from .counts import Counts, count
from .floor import floor_s
from .report import Rate
from .rows import Floors, Turns, by_turn
from .subjects import BASELINE, LIMIT, MEMORY, Plan, Subject, dtype
from .worker import Facts


def limit_subjects(
    bundle: Bundle, plan: Plan, engines: Sequence[Subject]
) -> tuple[list[Subject], list[str]]:
    """The rates that the floors of these engines need, and what is missing for them."""
    if not plan.limit:
        return [], []
    try:
        needed = {
            (kind, subject.threads)
            for subject in engines
            for kind in _counts(bundle, subject, 1).flops
        }
    except DependencyError as e:
        return [], [f"the limit: {e}"]
    kinds = sorted({kind for kind, _ in needed})
    # the largest number first: it says which library is the fastest
    threads = sorted({s.threads for s in engines}, reverse=True)
    found = [Subject(LIMIT, k, n) for n in threads for k in kinds if (k, n) in needed]
    return [*found, *(Subject(LIMIT, MEMORY, n) for n in threads)], []


def floors(
    bundle: Bundle, plan: Plan, turns: Turns, facts: Mapping[Subject, Facts], batch: int
) -> dict[Subject, Floors]:
    """The floor of every engine in every turn, from the rates that were reached in that turn."""
    found = {}
    for subject in turns:
        rates = _rates_by_turn(turns, facts, subject.threads)
        if subject.engine == LIMIT or not rates:
            continue
        counts = _counts(bundle, subject, batch)
        every = [
            floor_s(counts, {k: v[n] for k, v in rates.items() if k != MEMORY}, rates[MEMORY][n])
            for n in range(len(turns[subject]))
        ]
        last = every[-1]
        found[subject] = Floors([f.seconds for f in every], last.bound)
    return found


def _rates_by_turn(
    turns: Turns, facts: Mapping[Subject, Facts], threads: int
) -> dict[str, np.ndarray]:
    """GFLOP/s by dtype, and GB/s of memory, in each turn."""
    return {
        s.variant: (facts[s].work or 0.0) / 1e9 / by_turn(taken)
        for s, taken in turns.items()
        if s.engine == LIMIT and s.threads == threads
    }


def _counts(bundle: Bundle, subject: Subject, batch: int) -> Counts:
    variant = _variant(bundle, subject)
    return count(bundle.file(variant), batch, dtype(subject, variant))


def _variant(bundle: Bundle, subject: Subject) -> Variant:
    """What it runs; PyTorch runs no file, but does the arithmetic of an fp32 one."""
    if subject.engine != BASELINE:
        return bundle.variant(subject.variant)
    same = [v for v in bundle.manifest.variants if v.steps == subject.steps]
    return next((v for v in same if v.precision == "fp32"), same[0])


def graph_facts(bundle: Bundle, limit: bool) -> dict[str, dict[str, float]]:
    """By variant: nodes, bytes of the file and, with the limit, GFLOP of one image."""
    found = {}
    for v in bundle.manifest.variants:
        facts = {"nodes": v.graph.get("nodes", 0), "bytes": bundle.file(v).stat().st_size}
        if limit and v.file.endswith(".onnx"):
            facts["gflop"] = round(sum(count(bundle.file(v), 1).flops.values()) / 1e9, 6)
        found[v.name] = facts
    return found


def machine_rates(everything: Mapping[int, Turns], facts: Mapping[Subject, Facts]) -> list[Rate]:
    """Over all turns: the median of each rate."""
    subjects = [s for s in facts if s.engine == LIMIT]
    found = []
    for s in subjects:
        seconds = np.concatenate([by_turn(t[s]) for t in everything.values() if s in t])
        per_s = float(np.median((facts[s].work or 0.0) / 1e9 / seconds))
        found.append(Rate(s.variant, s.threads, round(per_s, 1), facts[s].library or ""))
    return found

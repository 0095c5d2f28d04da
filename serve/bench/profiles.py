"""Profiles of what was benchmarked, each in a process of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from mmf_deploy import bundle as bundles
from mmf_deploy.bundle import Bundle
from mmf_deploy.errors import EngineError
from mmf_deploy.results import Result, Table

from .report import Report, name
from .rows import Row
from .subjects import BASELINE, EAGER, MEMORY, Plan, Setting

if TYPE_CHECKING:
    from .profile import Profile


def profiles(
    bundle: Bundle, plan: Plan, report: Report, on_progress: Callable[[str, int], None]
) -> Result:
    """Where the time of each engine goes, at the smallest batch with its best number of threads.

    Args:
        on_progress: called with the engine and how many are done.
    """
    setting = Setting(bundle.path, plan.checkpoint, plan.device)
    shown = profiled(report)
    tables: list[Table] = []
    found, notes = [], []
    for k, row in enumerate(shown):
        on_progress(name(row), k)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, context) as pool:
            try:
                made = pool.submit(_profile, setting, row).result()
            except EngineError as e:
                notes.append(f"{name(row)}: {e}")
                continue
        rates = {r.what: r.per_s for r in report.limit if r.threads == row.threads}
        memory = rates.pop(MEMORY, None)
        tables += made.tables(rates or None, memory)
        found.append(content(name(row), made))
    on_progress("profiled", len(shown))
    return Result(
        kind="profile",
        title=f"{report.bundle}: where the time goes",
        command=report.command,
        machine=report.machine,
        versions=report.versions,
        tables=[*tables, *([Table("Not profiled", ["engine"], [[n] for n in notes])] if notes
                           else [])],
        content={"bundle": report.bundle, "digest": report.digest, "profiles": found},
    )  # fmt: skip


def content(engine: str, made: Profile) -> dict[str, Any]:
    """For JSON: what was measured, operators of the same shapes as one."""
    whole = {k: v for k, v in asdict(replace(made, ops=[])).items() if k != "ops"}
    shapes = [
        {"op": g.ops[0].op, "kind": g.ops[0].kind, "dtype": g.ops[0].dtype,
         "shape": g.ops[0].shape, "nodes": len(g.ops), "ms": round(g.ms, 5), "flops": g.flops}
        for g in made.by_shape()
    ]  # fmt: skip
    return whole | {"engine": engine, "operators": shapes}


def profiled(report: Report) -> list[Row]:
    """The rows that are profiled: the smallest batch, one step count, PyTorch as it comes."""
    batch = min(row.batch for row in report.rows)
    best: dict[tuple[str, str], Row] = {}
    for row in report.rows:
        other_mode = row.engine == BASELINE and row.variant != EAGER
        if row.batch != batch or other_mode:
            continue
        key = (row.engine, row.variant)
        if key not in best or row.median_ms < best[key].median_ms:
            best[key] = row
    return list(best.values())


def _profile(setting: Setting, row: Row) -> Profile:
    from .profile import profile

    bundle = bundles.load(setting.bundle)
    baseline = row.engine == BASELINE
    return profile(
        row.engine,
        bundle,
        bundle.variant().name if baseline else row.variant,
        row.threads,
        row.batch,
        checkpoint=setting.checkpoint if baseline else None,
        device=setting.device,
    )

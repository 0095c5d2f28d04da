"""Profiles of what was benchmarked, each in a process of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from typing import Any

from mmf_deploy import bundle as bundles
from mmf_deploy.bundle import Bundle
from mmf_deploy.errors import EngineError
from mmf_deploy.results import Result, Table

from .profile_tables import tables as tables_of
from .profile_times import Group, OpTime, Profile, Rates
from .report import Report, name
from .rows import Row
from .subjects import BASELINE, EAGER, MEMORY, Plan, Setting


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
        tables += tables_of(made, rates or None, memory)
        found.append(content(made, rates or None, memory))
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


def content(made: Profile, gflops: Rates | None, bandwidth_gb_s: float | None) -> dict[str, Any]:
    """For JSON: what was measured, operators of the same shapes as one; and the machine's rates."""
    whole = {k: v for k, v in asdict(replace(made, ops=[])).items() if k != "ops"}
    rates = {"gflops": None if gflops is None else dict(gflops), "bandwidth_gb_s": bandwidth_gb_s}
    return {**whole, **rates, "operators": [_operators(g) for g in made.by_shape()]}


def _operators(group: Group) -> dict[str, Any]:
    first = group.ops[0]
    return {
        "op": first.op, "kind": first.kind, "dtype": first.dtype,
        "shape": first.shape or first.name,
        "nodes": len(group.ops), "ms": round(group.ms, 5), "flops": group.flops,
        "padding_flops": sum(op.padding_flops for op in group.ops),
        "weight_bytes": sum(op.weight_bytes for op in group.ops),
    }  # fmt: skip


def from_content(found: Mapping[str, Any]) -> Profile:
    """What was written by ``content``; operators of the same shapes share their time evenly."""
    given = {k: v for k, v in found.items() if k not in ("operators", "gflops", "bandwidth_gb_s")}
    return Profile(**given, ops=[op for group in found["operators"] for op in _nodes(group)])


def _nodes(group: Mapping[str, Any]) -> list[OpTime]:
    n = group["nodes"]
    each = {k: group[k] / n for k in ("ms", "flops", "padding_flops", "weight_bytes")}
    same = {k: group[k] for k in ("op", "kind", "dtype", "shape")}
    return [OpTime(name=group["op"], bytes=0.0, **same, **each)] * n


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

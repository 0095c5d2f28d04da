"""The plan in the form of every benchmark, and one sentence as the answer."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from mmf_deploy import machine
from mmf_deploy.results import Picture, Result

from ..load.session import versions
from ..load.table import QUIET
from .basis import Measured
from .check import Checked
from .contradiction import contradiction, warning
from .observe import Seen, Served
from .planner import Plan
from .tables import check_table, engine_table, front_table, plan_table
from .words import short


def result(
    measured: Measured,
    plan: Plan,
    checked: Sequence[Checked],
    command: str,
    pictures: Sequence[Picture] = (),
) -> Result:
    """In the common form, with every number."""
    engine, front = engine_table(measured.engine), front_table(measured)
    tables = [plan_table(measured, plan, checked), engine, front]
    if checked:
        tables.append(check_table(checked, plan.target_ms))
    return Result(
        kind="plan",
        title=f"{measured.title}: how many replicas for {short(plan.rate)} requests/s",
        command=command,
        machine=machine.describe(),
        versions=versions(),
        tables=tables,
        pictures=pictures,
        content=content(measured, plan, checked),
    )


def answer(measured: Measured, plan: Plan) -> str:
    """One sentence, with the command to go on with."""
    n, point = plan.replicas, plan.answer
    replicas = "one replica carries" if n == 1 else f"{n} replicas carry"
    share = "" if n == 1 else f" at {short(point.per_s)} each"
    return (
        f"{replicas} {short(plan.rate)} requests/s{share} with a p99 of {short(point.p99_ms)} ms "
        f"(target {plan.target_ms:g} ms); next: {next_command(measured, n)}"
    )


def next_command(measured: Measured, replicas: int) -> str:
    """What starts so many replicas."""
    cores, have = _cores_each(measured), machine.available_cores()
    serve = shlex.join(["mmf-serve", *_arguments(measured.served)])
    if replicas == 1:
        return serve
    if cores is None or replicas * cores <= have + QUIET:
        return f"{serve} --ray {replicas}"
    return f"kubectl -n mmf scale deployment/mmf --replicas {replicas} (docs/deploying.md)"


def _arguments(served: Served) -> list[str]:
    """Of mmf-serve, without the bundle that is served anyway."""
    found = served.arguments()
    return found[1:] if served.embedded else found


def _cores_each(measured: Measured) -> float | None:
    threads = measured.served.threads
    return measured.cores if threads is None else float(threads)


def content(measured: Measured, plan: Plan, checked: Sequence[Checked]) -> dict[str, Any]:
    """The numbers, for JSON."""
    engine, replica = measured.engine, measured.fitted.replica
    return {
        "bundle": measured.served.bundle.manifest.name,
        "digest": measured.served.bundle.digest,
        "variant": engine.variant,
        "engine": engine.engine,
        "images": plan.images,
        "reply_format": measured.observed.form,
        "threads": measured.served.threads,
        "rate_per_s": plan.rate,
        "target_ms": plan.target_ms,
        "replicas": plan.replicas,
        "capacity_per_s": round(plan.capacity_per_s, 3),
        "highest_per_s": round(plan.highest.per_s, 3),
        "alone_ms": _rounded(asdict(plan.alone)),
        "points": [{"replicas": n, **_rounded(asdict(p))} for n, p in plan.points.items()],
        "batches": [
            {"images": n, "median_ms": round(engine.median_s(n) * 1e3, 4), "timed": len(every)}
            for n, every in engine.seconds.items()
        ],
        "front": {
            "front_ms": round(replica.front_s * 1e3, 4),
            "wake_ms": round(replica.wake_s * 1e3, 4),
            "beside_ms": round(replica.beside_s * 1e3, 4),
            "cold": replica.cold,
            "settle_ms": round(replica.settle_s * 1e3, 4),
            "drag": round(measured.fitted.drag, 4),
            "cores": measured.cores,
        },
        "loads": [_rounded(_load(s)) for s in measured.observed.loads],
        "fit_error": round(measured.fitted.error, 4),
        "check": [_rounded(asdict(c)) for c in checked],
        **about_check(plan, checked),
    }


def about_check(plan: Plan, checked: Sequence[Checked]) -> dict[str, Any]:
    """Up to which rate the check kept the target where the simulation says more; null if it agrees.

    The rate is null, too, where the target was kept at none.
    """
    found = contradiction(checked, plan.target_ms)
    return {
        "warning": warning(checked, plan),
        "kept_per_s": None if found is None else _rounded(found.kept_per_s),
    }


def _load(seen: Seen) -> dict[str, Any]:
    """One of the loads that the replica was found from."""
    return {
        "clients": seen.clients,
        "offered_per_s": seen.offered_per_s,
        "requests": len(seen.sent_s),
        "per_s": seen.per_s,
        "latency_ms": {f"p{p}": seen.latency_ms(p) for p in (50, 90, 99)},
        "queue_ms": float(np.median(seen.queue_s)) * 1e3,
        "infer_ms": float(np.median(seen.infer_s)) * 1e3,
        "front_cpu_ms": None if seen.front_cpu_s is None else seen.front_cpu_s * 1e3,
        "cores": seen.cores,
        "other_cores": seen.other_cores,
        "bottleneck": seen.bottleneck,
    }


def _rounded(found: Any) -> Any:
    """Numbers to five digits; what is not finite is null, as JSON has it."""
    if isinstance(found, dict):
        return {k: _rounded(v) for k, v in found.items()}
    if isinstance(found, list | tuple):
        return [_rounded(v) for v in found]
    if isinstance(found, float):
        return float(f"{found:.5g}") if math.isfinite(found) else None
    return found

"""The tables of a plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from mmf_deploy import machine
from mmf_deploy.results import Table

from ..load.table import QUIET
from .basis import Measured
from .check import Checked
from .contradiction import disagrees, warning
from .cost import EngineCost
from .observe import Seen
from .planner import FINAL, REQUESTS, Plan, Point
from .words import short


def plan_table(measured: Measured, plan: Plan, checked: Sequence[Checked] = ()) -> Table:
    """A row for every number of replicas."""
    columns = ["replicas", "requests/s each", "of capacity", "engine busy", "mean batch", "p50 ms",
               "p99 ms", f"later than {plan.target_ms:g} ms", "target"]  # fmt: skip
    rows = [[str(n), *_cells(point), "kept" if point.p99_ms <= plan.target_ms else "missed"]
            for n, point in plan.points.items()]  # fmt: skip
    return Table(
        f"{measured.title}: {short(plan.rate)} requests/s with a p99 under {plan.target_ms:g} ms",
        columns,
        rows,
        [*about_plan(plan, checked), *_about_cores(measured, plan), *_about_the_machine(measured)],
    )


def _cells(point: Point) -> list[str]:
    if point.load >= 1:
        return [short(point.per_s), f"{point.load:.0%}", "100%", "", "", "grows", "all"]
    return [
        short(point.per_s),
        f"{point.load:.0%}",
        f"{point.engine_busy:.0%}",
        f"{point.mean_batch:.2f}",
        short(point.p50_ms),
        f"{short(point.p99_ms)} ±{short(point.within_ms)}",
        f"{point.late:.2%}",
    ]


def about_plan(plan: Plan, checked: Sequence[Checked]) -> list[str]:
    """What it promises, what the check says of that, and how it was found."""
    disagreement = warning(checked, plan)
    return [
        f"one replica carries {short(plan.capacity_per_s)} requests/s at most, and "
        f"{short(plan.highest.per_s)} with a p99 under {plan.target_ms:g} ms by the simulation; "
        f"one request alone takes {short(plan.alone.p50_ms)} ms after an idle time",
        *([f"warning: {disagreement}"] if disagreement else []),
        f"simulated, {FINAL * REQUESTS:,} requests a row, the p99 with its 95% interval; arrivals "
        "are random (Poisson), and each replica gets a random part of them: a balancer that looks "
        "for the least busy one does better",
    ]


def _about_cores(measured: Measured, plan: Plan) -> list[str]:
    n, have, threads = plan.replicas, machine.available_cores(), measured.served.threads
    replicas = "1 replica" if n == 1 else f"{n} replicas"
    lines = []
    if threads is not None:
        lines.append(
            f"{replicas} of {threads} compute threads each: {n * threads} cores; this machine has "
            f"{have}"
        )
    if measured.cores is not None:
        lines.append(
            f"a replica used {measured.cores:.1f} cores at full load, front included; that makes "
            f"{n * measured.cores:.1f} for {replicas}, and this machine has {have}: the numbers "
            "hold for replicas with cores of their own"
        )
    return lines


def _about_the_machine(measured: Measured) -> list[str]:
    lines = []
    if measured.other_cores > QUIET:
        lines.append(
            f"the machine was not quiet: other processes used up to {measured.other_cores:.2f} "
            "cores while it was measured; measure again"
        )
    for load in measured.observed.loads:
        if load.bottleneck is not None:
            lines.append(
                f"{_load(load)}: the generator was the bottleneck ({load.bottleneck}), so a "
                "replica may carry more"
            )
    return lines


def engine_table(engine: EngineCost) -> Table:
    """What batches cost."""
    rows = []
    for n, every in engine.seconds.items():
        ms = np.array(every) * 1e3
        low, middle, high = np.percentile(ms, [10, 50, 90])
        cells = [middle, low, high, middle / n]
        rows.append([str(n), *map(short, cells), f"{len(every):,}"])
    notes = ["through the lane and the batcher that the service uses, with nothing else going on"]
    if engine.dropped:
        gone = ", ".join(map(str, engine.dropped))
        notes.append(f"batches of {gone} are not used: the service's calibration found no gain")
    if untimed := [n for n in engine.buckets if n not in engine.seconds]:
        notes.append(f"batches of {', '.join(map(str, untimed))} took too long to be timed: an "
                     f"image in them is taken to cost what it does in one of "
                     f"{max(engine.seconds)}")  # fmt: skip
    return Table(
        f"{engine.variant} on {engine.engine}: what batches take",
        ["images", "median ms", "p10", "p90", "ms an image", "batches"],
        rows,
        notes,
    )


def front_table(measured: Measured) -> Table:
    """What the service around the engine costs."""
    seen, fitted = measured.observed, measured.fitted
    replica, alone = fitted.replica, seen.alone
    inside_s = float(np.median(alone.inside_s - alone.queue_s - alone.infer_s))
    rows = [
        ["the front's work on a request, one request after the other", _ms(replica.front_s)],
        ["reading and encoding in it, by the service's own clock", _ms(inside_s)],
        ["to wake a thread, four times a request that is alone", _ms(replica.wake_s)],
        ["beside front and engine: the network, the client", _ms(replica.beside_s)],
    ]
    if replica.cold:
        rows += [
            ["slower after a long idle time", f"{1 + replica.cold:.1f}×"],
            ["time constant of that", _ms(replica.settle_s)],
        ]
    else:
        rows.append(["a batch in the service, against one alone", f"{fitted.drag:.2f}×"])
    if alone.front_cpu_s is not None and seen.many.front_cpu_s is not None:
        cpu = f"{_ms(alone.front_cpu_s)} … {_ms(seen.many.front_cpu_s)}"
        rows.append(["processor time of the front a request, one client … many", cpu])
    loads = ", ".join(_counted([_load(s) for s in seen.loads]))
    notes = [
        f"from {len(seen.loads)} loads of mmf-serve: {loads}",
        f"repeated in the simulation, they deviate by {fitted.error:.1%} on average (throughput, "
        "p50, p90)",
    ]
    return Table(
        f"mmf-serve, replies as {seen.form}: what it costs around the engine",
        ["what", "value"],
        rows,
        notes,
    )


def _counted(names: Sequence[str]) -> list[str]:
    """Each once, with how many there are of it."""
    return [name if n == 1 else f"{n} × {name}" for name, n in Counter(names).items()]


def _load(seen: Seen) -> str:
    if seen.clients is None:
        return f"{short(seen.offered_per_s)} requests/s"
    clients = "1 client" if seen.clients == 1 else f"{seen.clients} clients"
    return f"{clients} ({short(seen.per_s)}/s)"


def check_table(checked: Sequence[Checked], target_ms: float) -> Table:
    """Simulated and measured side by side."""
    columns = ["requests/s", "of capacity", "p50 simulated", "measured", "off", "p99 simulated",
               "by chance", "measured", "off", "sent late", "requests"]  # fmt: skip
    rows = []
    for c in checked:
        low, high = c.band_ms["p99"]
        rows.append([
            short(c.per_s), f"{c.load:.0%}",
            short(c.simulated_ms["p50"]), short(c.measured_ms["p50"]), f"{c.error('p50'):+.0%}",
            short(c.simulated_ms["p99"]), f"{short(low)} … {short(high)}",
            short(c.measured_ms["p99"]), f"{c.error('p99'):+.0%}",
            short(c.late_ms), f"{c.requests:,}",
        ])  # fmt: skip
    return Table("simulated and measured: milliseconds until the reply", columns, rows,
                 _about_check(checked, target_ms))  # fmt: skip


def _about_check(checked: Sequence[Checked], target_ms: float) -> list[str]:
    notes = [
        "measured from when a request was sent; sent late: p99 of how late the generator was, "
        "which shares the cores with the service",
        "by chance: 19 of 20 simulations as short as the measurement have their p99 there",
    ]
    for c in checked:
        at = f"{short(c.per_s)} requests/s"
        if disagrees(c, target_ms):
            notes.append(f"{at}: the measured p99 breaks the {target_ms:g} ms asked for, which the "
                         "simulation keeps")  # fmt: skip
        if c.bottleneck is not None:
            notes.append(f"{at}: the generator was the bottleneck: {c.bottleneck}")
        if c.shed:
            notes.append(f"{at}: {c.shed:.1%} were refused")
        if (c.other_cores or 0.0) > QUIET:
            notes.append(f"{at}: other processes used {c.other_cores:.2f} cores")
    return notes


def _ms(seconds: float) -> str:
    return f"{short(seconds * 1e3)} ms"

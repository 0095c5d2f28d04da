"""What the service costs on top of its engine, and how it behaves under too much load.

python benchmarks/serve_targets.py --cifar bundles/cifar10-random

Engine and service take turns in one run, each in its own process with as many threads, so that
drift of the machine hits both alike. Every image that the service returns is checked.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmf_deploy.serve.load.child import mmf_serve
from mmf_deploy.serve.load.client import Load
from mmf_deploy.serve.load.pace import client_cost, run_async
from mmf_deploy.serve.load.session import Plan, Subject, measure, versions
from serve_measure import Accounts, load_average, median, pair
from tables.serving import service_result

from mmf_deploy import bundle as bundles
from mmf_deploy import machine, results
from mmf_deploy.bundle import Bundle
from mmf_deploy.embedded import digits_bundle
from mmf_deploy.engines.base import EngineOptions
from mmf_deploy.errors import MMFError, ServiceError
from mmf_deploy.progress import TaskProgress

RESULT = Path(__file__).parent / "results" / "serve-cpu.json"
TARGETS = {"overhead_ms": 1.5, "digits_share": 0.6, "cifar_share": 0.9}
FORMS = ("npy", "png", "json")


@dataclass(frozen=True)
class Times:
    """How long everything takes.

    Attributes:
        turn_s: of the engine, and of the service, in each round.
        large_turn_s: the same for the large network.
        rounds: of every comparison.
        overload_s: duration of the overload.
        starts: of the service, to see how soon it is ready.
    """

    turn_s: float = 2.0
    large_turn_s: float = 12.0
    rounds: int = 8
    overload_s: float = 60.0
    starts: int = 5


QUICK = Times(turn_s=0.3, large_turn_s=2.5, rounds=2, overload_s=4.0, starts=2)


async def overhead(bundle: Bundle, times: Times, accounts: Accounts) -> list[dict[str, Any]]:
    """The engine at batch 1, and the service with one client, for every form of reply."""
    rows = []
    async with pair(bundle, 1, accounts) as both:
        both.engine_ms(1, times.turn_s)
        for form in FORMS:
            await both.service(1, times.turn_s / 2, form=form)
            engine, service, apart = [], [], []
            for _ in range(times.rounds):
                alone = median(both.engine_ms(1, times.turn_s))
                found = await both.service(1, times.turn_s, form=form)
                engine.append(alone)
                service.append(found.latency_ms["p50"])
                apart.append(found.latency_ms["p50"] - alone)
            rows.append({
                "format": form, "engine_p50_ms": median(engine), "service_p50_ms": median(service),
                "overhead_ms": median(apart), "rounds_ms": [round(x, 3) for x in apart],
                "server_ms": found.server_ms,
            })  # fmt: skip
    return rows


async def throughput(
    bundle: Bundle, images: int, threads: int, turn_s: float, times: Times, accounts: Accounts
) -> dict[str, Any]:
    """Images a second of the engine's best batch, and of the service at its best concurrency."""
    async with pair(bundle, threads, accounts) as both:
        best, buckets = both.best_batch(turn_s / 4)
        clients = {}
        for concurrency in (2, 4, 8, 16, 32):
            found = await both.service(concurrency, turn_s, images)
            clients[concurrency] = found.images_per_s
        concurrency = max(clients, key=lambda c: clients[c])
        engine, service, shares = [], [], []
        for _ in range(times.rounds):
            alone = best / median(both.engine_ms(best, turn_s)) * 1e3
            found = await both.service(concurrency, turn_s, images)
            engine.append(alone)
            service.append(found.images_per_s)
            shares.append(found.images_per_s / alone)
    return {
        "bundle": bundle.manifest.name, "digest": bundle.digest, "threads": threads,
        "images": images, "format": "npy", "engine_batch": best,
        "engine_images_per_s": median(engine), "engine_by_batch": buckets,
        "concurrency": concurrency, "service_images_per_s": median(service),
        "service_by_concurrency": clients, "share": median(shares),
        "rounds": [round(x, 3) for x in shares],
        "client_cores": found.client_cores, "server_cores": found.server_cores,
    }  # fmt: skip


async def overload(
    bundle: Bundle, times: Times, images: int, deadline_ms: float | None, accounts: Accounts
) -> dict[str, Any]:
    """Five times the capacity, with large requests: a small client can make so many."""
    subject = Subject(None, bundle, options=EngineOptions(threads=1))
    if deadline_ms is None:
        # a deadline that a request can meet when there are a few before it
        before = await measure(
            subject, Plan(concurrency=(4,), seconds=times.turn_s), Load(images), ""
        )
        deadline_ms = max(100.0, round(3 * before.levels[0].latency_ms["p50"], -1))
    plan = Plan(overload=5.0, seconds=times.overload_s, deadline_ms=deadline_ms)
    report = await measure(subject, plan, Load(images), "")
    if report.problem is not None:
        raise ServiceError(report.problem)
    for found in report.levels:
        accounts.add(found)
    return {
        "capacity_per_s": report.capacity_per_s, "memory_mb": report.memory_mb,
        "level": asdict(report.levels[-1]),
    }  # fmt: skip


def starts(bundle: Bundle, times: Times) -> dict[str, Any]:
    """From the start of the command to its line, and resident memory then."""
    ready, memory = [], []
    for _ in range(times.starts):
        with mmf_serve([str(bundle.path)]) as server:
            ready.append(round(server.ready_s, 3))
            memory.append(server.memory_mb())
    return {"ready_s": median(ready), "every_s": ready, "memory_mb": median(memory)}


async def run(given: argparse.Namespace, times: Times) -> dict[str, Any]:
    """All of it."""
    accounts = Accounts()
    digits, before = bundles.load(digits_bundle()), load_average()
    cifar = None if given.cifar is None else bundles.load(given.cifar)
    found: dict[str, Any] = {}
    with TaskProgress("steps", 6 if cifar else 5) as progress:
        progress.show("what the client costs", 0)
        client = await client_cost(b'{"n":1,"seed":0}', 192)
        progress.show("overhead at one client", 1)
        found["overhead"] = await overhead(digits, times, accounts)
        progress.show("throughput of digits", 2)
        found["digits"] = await throughput(digits, 16, 1, times.turn_s, times, accounts)
        progress.show("overload", 3)
        found["overload"] = await overload(
            digits, times, given.overload_images, given.deadline_ms, accounts
        )
        progress.show("start", 4)
        found["start"] = starts(digits, times)
        if cifar is not None:
            progress.show("throughput of the large network", 5)
            cores = machine.available_cores()
            found["cifar"] = await throughput(cifar, 1, cores, times.large_turn_s, times, accounts)
        progress.show("done", 6 if cifar else 5)
    return {
        "command": shlex.join(["python", "benchmarks/serve_targets.py", *sys.argv[1:]]),
        "machine": machine.describe(), "versions": versions(), "load_average_before": before,
        "client": client, "targets": TARGETS, **found, "accounts": asdict(accounts),
    }  # fmt: skip


def summary(found: dict[str, Any]) -> str:
    """For the terminal."""
    lines = [
        f"overhead at one client, {row['format']}: {row['overhead_ms']:.2f} ms "
        f"({row['service_p50_ms']:.2f} against {row['engine_p50_ms']:.2f} ms; "
        f"target {TARGETS['overhead_ms']} ms)"
        for row in found["overhead"]
    ]
    for name in ("digits", "cifar"):
        if row := found.get(name):
            lines.append(
                f"{name}, {row['images']} a request: {row['service_images_per_s']:,.1f} images/s, "
                f"{row['share']:.1%} of the engine's {row['engine_images_per_s']:,.1f} at batch "
                f"{row['engine_batch']} (target {TARGETS[f'{name}_share']:.0%})"
            )
    over, start, accounts = found["overload"], found["start"], found["accounts"]
    at = over["level"]
    met = "none" if at["deadline_met"] is None else f"{at['deadline_met']:.1%}"
    lines += [
        f"overload, {at['offered_per_s']:.0f} requests/s of {at['images']} for {at['seconds']:g} s,"
        f" deadline {at['deadline_ms']:g} ms:"
        f" {at['shed']:.1%} refused, {met} of the accepted in time, "
        f"memory {at['memory_mb']}; images again {at['recovery']['first_ms']} ms after it, the "
        f"first requests in {at['recovery']['latency_ms'][:4]} ms",
        f"ready after {start['ready_s']:.2f} s with {start['memory_mb']:.0f} MB",
        f"{accounts['replies']:,} replies, {accounts['wrong_images']} wrong images, "
        f"{accounts['failed']} failures; other processes used up to "
        f"{accounts['other_cores']:.2f} cores",
    ]
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cifar", type=Path, help="bundle of a large network, one image a request")
    parser.add_argument("--seconds", type=float, help="duration of the overload (60)")
    parser.add_argument("--overload-images", type=int, default=128, help="in a request")
    parser.add_argument("--deadline-ms", type=float, help="under overload; three times the latency "
                        "at capacity if not given")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="does it run? Numbers mean little")
    parser.add_argument("--out", type=Path, help=f"{RESULT.name} among the results; none if quick")
    return parser.parse_args()


def main() -> None:
    """Measure, print, write."""
    given = parse()
    times = QUICK if given.quick else Times()
    if given.seconds is not None:
        times = Times(**{**asdict(times), "overload_s": given.seconds})
    found = run_async(lambda: run(given, times))
    print(summary(found))
    out = given.out or (None if given.quick else RESULT)
    if out is not None:
        print(results.write(out.parent, out.stem, service_result(found)))
        print("next: python benchmarks/render.py")
    accounts = found["accounts"]
    if accounts["wrong_images"] or accounts["failed"]:
        raise ServiceError(
            f"{accounts['wrong_images']} wrong images, {accounts['failed']} failures"
        )


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
    except MMFError as e:
        sys.exit(f"error: {e}")
    except KeyboardInterrupt:
        sys.exit("stopped")

"""mmf-serve against LitServe: the same file, threads, noise, encoder, client and load.

python benchmarks/litserve/compare.py

LitServe gets an environment of its own. Several of its settings are tried first, and its best one
for each measurement goes into rounds in which both servers take turns, each started afresh and
alone on the machine. Every image is checked. The ratios are reported whatever they are.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shlex
import signal
import subprocess
import sys
import venv
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mmf_deploy.serve.load.check import Check, reference
from mmf_deploy.serve.load.child import Child, mmf_serve
from mmf_deploy.serve.load.client import Client, Load
from mmf_deploy.serve.load.pace import client_cost, run_async
from mmf_deploy.serve.load.report import Level, level
from mmf_deploy.serve.load.session import versions
from mmf_deploy.serve.load.wire import Native

from mmf_deploy import bundle as bundles
from mmf_deploy import machine, results
from mmf_deploy.bundle import Bundle
from mmf_deploy.embedded import digits_bundle
from mmf_deploy.engines.base import EngineOptions
from mmf_deploy.errors import MMFError, ServiceError
from mmf_deploy.progress import TaskProgress
from mmf_deploy.results import Result

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
RESULT = HERE.parent / "results" / "litserve-cpu.json"
TARGETS = {"requests_per_s": 1.3, "p50": 0.7}
CLIENTS = (4, 16, 32)


@dataclass(frozen=True)
class Setting:
    """How LitServe is started."""

    max_batch_size: int = 1
    batch_timeout: float = 0.0
    fast_queue: bool = False
    api_servers: int = 1

    def arguments(self) -> list[str]:
        """For server.py."""
        return [
            "--max-batch-size", str(self.max_batch_size),
            "--batch-timeout", str(self.batch_timeout),
            "--api-servers", str(self.api_servers),
            *(["--fast-queue"] if self.fast_queue else []),
        ]  # fmt: skip


SETTINGS = [
    Setting(),
    Setting(fast_queue=True),
    Setting(api_servers=2),
    Setting(fast_queue=True, api_servers=2),
    Setting(8, 0.0),
    Setting(8, 0.0005),
    Setting(8, 0.001),
    Setting(8, 0.001, fast_queue=True),
    Setting(16, 0.001),
    Setting(16, 0.001, fast_queue=True),
    Setting(16, 0.001, fast_queue=True, api_servers=2),
    Setting(16, 0.005, fast_queue=True),
    Setting(32, 0.002, fast_queue=True),
]


@dataclass
class Bench:
    """What both servers are measured with."""

    bundle: Bundle
    threads: int
    check: Check
    python: Path
    seconds: float
    failed: int = 0
    wrong: int = 0

    def mmf(self) -> Child:
        """Our server."""
        return mmf_serve([str(self.bundle.path), "--threads", str(self.threads)])

    def lit(self, setting: Setting) -> Child:
        """LitServe."""
        command = [str(self.python), str(HERE / "server.py"), str(self.bundle.path),
                   "--threads", str(self.threads), *setting.arguments()]  # fmt: skip
        return Child(command, {**os.environ, "PYTHONPATH": str(ROOT)})

    async def at_one(self, start: Callable[[], Child]) -> float:
        """Median milliseconds with one client, of a server started for this."""
        with start() as server:
            found = await self._level(server, 1)
        return found.latency_ms["p50"]

    async def saturated(self, start: Callable[[], Child], clients: tuple[int, ...]) -> list[float]:
        """Requests a second with so many clients, of a server started for this."""
        with start() as server:
            return [(await self._level(server, n)).requests_per_s for n in clients]

    async def _level(self, server: Child, concurrency: int) -> Level:
        async with Client(server.url, Native("png"), self.check, Load()) as client:
            runs = [await client.closed_loop(concurrency, min(1.0, self.seconds / 2)),
                    await client.closed_loop(concurrency, self.seconds)]  # fmt: skip
        for found in (level(run) for run in runs):
            self.failed += sum(found.failed.values())
            self.wrong += found.checked.wrong
        if not found.ok:
            raise ServiceError(f"{server.line}: no images came, but {found.failed}")
        return found


@dataclass(frozen=True)
class Chosen:
    """What goes into the rounds: LitServe's best settings, and how many clients saturate each."""

    tried: list[dict[str, Any]]
    mmf_by_clients: dict[int, float]
    fastest: Setting
    soonest: Setting

    @property
    def clients(self) -> dict[str, int]:
        """Clients of the most requests a second, by server."""
        theirs = max(self.tried, key=_most)["requests_per_s"]
        return {
            name: max(by, key=lambda n: by[n])
            for name, by in (("mmf", self.mmf_by_clients), ("litserve", theirs))
        }


def _most(tried: dict[str, Any]) -> float:
    return max(tried["requests_per_s"].values())


async def choose(bench: Bench, settings: list[Setting], step: Callable[[str], None]) -> Chosen:
    """Try all of LitServe's settings, at saturation and with one client."""
    tried: list[dict[str, Any]] = []
    for setting in settings:
        step("LitServe's settings")
        start = partial(bench.lit, setting)
        per_s = await bench.saturated(start, CLIENTS)
        tried.append({
            **asdict(setting), "p50_ms": await bench.at_one(start),
            "requests_per_s": dict(zip(CLIENTS, per_s, strict=True)),
        })  # fmt: skip
    step("mmf-serve")
    ours = dict(zip(CLIENTS, await bench.saturated(bench.mmf, CLIENTS), strict=True))
    every = range(len(settings))
    return Chosen(
        tried,
        ours,
        fastest=settings[max(every, key=lambda k: _most(tried[k]))],
        soonest=settings[min(every, key=lambda k: tried[k]["p50_ms"])],
    )


def servers(bench: Bench, setting: Setting) -> list[tuple[str, Callable[[], Child]]]:
    """Both, in the order of their turns."""
    return [("mmf", bench.mmf), ("litserve", partial(bench.lit, setting))]


async def compare(bench: Bench, settings: list[Setting], rounds: int) -> dict[str, Any]:
    """Choose LitServe's settings, then alternate."""
    rows: list[dict[str, float]] = []
    with TaskProgress("servers", len(settings) + 1 + 4 * rounds) as progress:
        steps = itertools.count()
        chosen = await choose(bench, settings, lambda what: progress.show(what, next(steps)))
        clients = chosen.clients
        for _ in range(rounds):
            row: dict[str, float] = {}
            for name, start in servers(bench, chosen.fastest):
                progress.show(f"requests a second: {name}", next(steps))
                (row[f"{name}_requests_per_s"],) = await bench.saturated(start, (clients[name],))
            for name, start in servers(bench, chosen.soonest):
                progress.show(f"one client: {name}", next(steps))
                row[f"{name}_p50_ms"] = await bench.at_one(start)
            rows.append(row)
        progress.show("done", next(steps))
    requests = [r["mmf_requests_per_s"] / r["litserve_requests_per_s"] for r in rows]
    p50 = [r["mmf_p50_ms"] / r["litserve_p50_ms"] for r in rows]
    return {
        "settings_tried": chosen.tried, "mmf_by_clients": chosen.mmf_by_clients,
        "litserve_for_requests": asdict(chosen.fastest),
        "litserve_for_p50": asdict(chosen.soonest),
        "clients": clients, "rounds": rows,
        "median": {key: _median([row[key] for row in rows]) for key in rows[0]},
        "ratio": {"requests_per_s": _median(requests), "p50": _median(p50)},
        "targets": TARGETS,
    }  # fmt: skip


def _median(values: list[float]) -> float:
    return round(float(np.median(values)), 4)


def environment(path: Path) -> Path:
    """LitServe's own virtual environment, made if it is not there or of other requirements."""
    requirements, stamp = HERE / "requirements.txt", path / "requirements.txt"
    python = path / "bin" / "python"
    if not stamp.is_file() or stamp.read_bytes() != requirements.read_bytes():
        print(f"installing LitServe in {path}", flush=True)
        venv.create(path, with_pip=True, clear=True)
        subprocess.run(
            [python, "-m", "pip", "install", "-q", "-r", requirements],
            check=True,
        )
        stamp.write_bytes(requirements.read_bytes())
    return python


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=digits_bundle(), help="digits if not given")
    parser.add_argument("--threads", type=int, default=1, help="compute threads of both servers")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="does it run? Numbers mean little")
    parser.add_argument("--environment", type=Path, default=HERE / ".venv")
    parser.add_argument("--out", type=Path, help=f"{RESULT.name} among the results; none if quick")
    return parser.parse_args()


async def run(given: argparse.Namespace) -> dict[str, Any]:
    """Everything that goes into the result file."""
    python = environment(given.environment)
    bundle = bundles.load(given.bundle)
    known = reference(bundle, options=EngineOptions(threads=given.threads))
    check = Check(bundle.spec, len(known), known)
    bench = Bench(bundle, given.threads, check, python, 0.5 if given.quick else given.seconds)
    settings = [SETTINGS[0], SETTINGS[-4]] if given.quick else SETTINGS
    load = [round(x, 2) for x in os.getloadavg()]
    found = await compare(bench, settings, 1 if given.quick else given.rounds)
    text = "from importlib.metadata import version; print(version('litserve'))"
    litserve = subprocess.run([python, "-c", text], capture_output=True, text=True, check=True)
    return {
        "command": shlex.join(["python", "benchmarks/litserve/compare.py", *sys.argv[1:]]),
        "machine": machine.describe(), "load_average_before": load,
        "versions": {**versions(), "litserve": litserve.stdout.strip()},
        "bundle": bundle.manifest.name, "digest": bundle.digest, "threads": given.threads,
        "client": await client_cost(b'{"n":1,"seed":0}', 192), **found,
        "wrong_images": bench.wrong, "failed": bench.failed,
    }  # fmt: skip


def in_common_form(found: dict[str, Any]) -> Result:
    """As every benchmark writes it; its tables are made where those of the pages are."""
    sys.path.append(str(HERE.parent))  # not a package: this folder has the name of what it measures
    from tables.serving import litserve_result

    return litserve_result(found)


def main() -> None:
    """Measure, print, write."""
    given = parse()
    found = run_async(lambda: run(given))
    middle, ratio = found["median"], found["ratio"]
    print(
        f"requests/s at saturation: mmf-serve {middle['mmf_requests_per_s']:,.0f}, LitServe "
        f"{middle['litserve_requests_per_s']:,.0f}: {ratio['requests_per_s']:.2f}× "
        f"(target at least {TARGETS['requests_per_s']})\n"
        f"p50 with one client: mmf-serve {middle['mmf_p50_ms']:.2f} ms, LitServe "
        f"{middle['litserve_p50_ms']:.2f} ms: {ratio['p50']:.2f}× (target at most {TARGETS['p50']})"
    )
    out = given.out or (None if given.quick else RESULT)
    if out is not None:
        print(results.write(out.parent, out.stem, in_common_form(found)))
        print("next: python benchmarks/render.py")
    if found["wrong_images"] or found["failed"]:
        raise ServiceError(f"{found['wrong_images']} wrong images, {found['failed']} failures")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
    except MMFError as e:
        sys.exit(f"error: {e}")
    except subprocess.CalledProcessError as e:
        sys.exit(f"error: LitServe's environment could not be made: {e}")
    except KeyboardInterrupt:
        sys.exit("stopped")

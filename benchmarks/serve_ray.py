"""What Ray costs and what it saves: latency through its proxies, and a replica killed under load.

python benchmarks/serve_ray.py [OUT.json]   needs the extras ray, bench, cpu, serve and dev; four
minutes. Without OUT it replaces the committed result, of which render.py makes the tables.
"""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil
from mmf_deploy.serve.load.session import versions
from numpy.typing import NDArray
from tables.serving import ray_result

from mmf_deploy import bundle, machine, noise, results
from mmf_deploy.embedded import digits_bundle
from mmf_deploy.engines.base import EngineOptions, open_engine

RESULT = Path(__file__).parent / "results" / "serve-ray-cpu.json"
COMMAND = [sys.executable, "-c", "from mmf_deploy.cli import main_serve; main_serve()"]
SEEDS, WORKERS, KILLS, TURNS, TURN_S = 200, 8, 3, 3, 4.0
HAPROXY = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1"}
MODES: dict[str, tuple[list[str], dict[str, str]]] = {
    "one process": ([], {}),
    "Ray": (["--ray", "2"], {}),
    "Ray with HAProxy": (["--ray", "2"], HAPROXY),
}


@dataclass
class Load:
    """Clients that try again until they have an image, and look at it."""

    url: str
    expected: NDArray[np.uint8]
    latencies_s: list[float] = field(default_factory=list)
    failed_tries: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    seen: dict[str, float] = field(default_factory=dict)
    stop: bool = False

    async def run(self, workers: int) -> None:
        """Until told to stop."""
        async with aiohttp.ClientSession() as session:
            await asyncio.gather(*(self._worker(session, k, workers) for k in range(workers)))

    async def _worker(self, session: aiohttp.ClientSession, seed: int, step: int) -> None:
        while not self.stop:
            await self._one(session, seed % SEEDS)
            seed += step

    async def _one(self, session: aiohttp.ClientSession, seed: int) -> None:
        began, pause_s = time.perf_counter(), 0.05
        while True:
            try:
                async with session.post(
                    f"{self.url}/v1/generate", json={"seed": seed},
                    headers={"Accept": "application/x-npy"},
                ) as reply:  # fmt: skip
                    content = await reply.read()
                    if reply.status == 200:
                        break
                    self.failed_tries[str(reply.status)] += 1
            except aiohttp.ClientError as e:
                self.failed_tries[type(e).__name__] += 1
            await asyncio.sleep(pause_s)
            pause_s = min(1.0, 2 * pause_s)
        now = time.perf_counter()
        self.latencies_s.append(now - began)
        self.seen.setdefault(reply.headers.get("X-MMF-Replica", ""), now)
        found = np.load(io.BytesIO(content))[0].astype(int)
        self.wrong += int(np.abs(found - self.expected[seed]).max() > 1)


@contextmanager
def served(arguments: list[str], environment: dict[str, str]) -> Iterator[tuple[str, int]]:
    """The address and process of a running service."""
    with tempfile.TemporaryDirectory(prefix="mmf-ray-", ignore_cleanup_errors=True) as home:
        process = subprocess.Popen(
            [*COMMAND, "--port", "0", "--threads", "1", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=os.environ | {"RAY_TMPDIR": home} | environment,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            line = re.search(r"http://\S+", process.stdout.readline())
            if line is None:
                raise SystemExit(f"{' '.join(arguments)}: did not start")
            yield line.group(), process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(120)


def replicas(pid: int) -> list[psutil.Process]:
    """The processes of Ray's replicas below one that was started here."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        # while it works, the title ends in the method: "….handle_request", "….check_health"
        title = "".join(process.cmdline()[:1])
        if title.split(".")[0] == "ray::ServeReplica:mmf:Images":
            found.append(process)
    return found


async def turn(url: str, expected: NDArray[np.uint8], workers: int) -> Load:
    """Some seconds of load, of which the first are not counted."""
    load = Load(url, expected)
    running = asyncio.create_task(load.run(workers))
    await asyncio.sleep(TURN_S / 4)
    load.latencies_s.clear()
    await asyncio.sleep(TURN_S)
    load.stop = True
    await running
    return load


async def kill(
    url: str, pid: int, expected: NDArray[np.uint8], frozen_s: float = 0.0
) -> dict[str, Any]:
    """Kill one replica under load, and wait until another one has taken its place.

    Args:
        frozen_s: before that it stands still, so that requests gather in it.
    """
    load = Load(url, expected)
    running = asyncio.create_task(load.run(WORKERS))
    await asyncio.sleep(3.0)
    before = set(load.seen)
    victim = replicas(pid)[0]
    if frozen_s:
        victim.suspend()
        await asyncio.sleep(frozen_s)
    killed_s = time.perf_counter()
    victim.kill()
    while not set(load.seen) - before:
        await asyncio.sleep(0.02)
    await asyncio.sleep(1.0)
    load.stop = True
    await running
    return {
        "requests": len(load.latencies_s),
        "failed_tries": dict(load.failed_tries),
        "wrong_images": load.wrong,
        "slowest_ms": round(max(load.latencies_s) * 1e3, 1),
        "replaced_s": round(max(load.seen.values()) - killed_s, 2),
    }


def measure(mode: str, expected: NDArray[np.uint8]) -> dict[str, Any]:
    """One way of serving."""
    print(f"{mode} …", file=sys.stderr)
    arguments, environment = MODES[mode]
    with served(arguments, environment) as (url, pid):
        alone = [asyncio.run(turn(url, expected, 1)) for _ in range(TURNS)]
        together = [asyncio.run(turn(url, expected, WORKERS)) for _ in range(TURNS)]
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        memory = sum(p.memory_full_info().pss for p in processes)
        return {
            "mode": mode,
            "p50_ms": round(statistics.median(x for a in alone for x in a.latencies_s) * 1e3, 2),
            "images_per_s": round(
                statistics.median(len(t.latencies_s) for t in together) / TURN_S, 1
            ),
            "memory_mb": round(memory / 1e6),
            "wrong_images": sum(load.wrong for load in alone + together),
            "kills": [asyncio.run(kill(url, pid, expected)) for _ in range(KILLS)]
            if arguments
            else [],
        }


def images() -> NDArray[np.uint8]:
    """Of the first seeds, made by the engine in this process."""
    found = bundle.load(digits_bundle())
    assert found.spec.classes is not None
    labels = np.arange(SEEDS) % found.spec.classes
    drawn = np.stack([noise.gaussian(seed, found.spec.shape) for seed in range(SEEDS)])
    with open_engine(None, found, None, EngineOptions(threads=1)) as engine:
        return engine.generate(drawn, labels, None)


def main() -> None:
    """Measure, write, print."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULT
    expected = images()
    found = {
        "command": "python benchmarks/serve_ray.py",
        "machine": machine.describe(),
        "versions": {**versions(), "ray": metadata.version("ray")},
        "load_average": [round(x, 2) for x in os.getloadavg()],
        "rows": [measure(mode, expected) for mode in MODES],
    }
    print(results.write(out.parent, out.stem, ray_result(found)))
    print("next: python benchmarks/render.py")


if __name__ == "__main__":
    main()

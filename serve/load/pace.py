"""When requests are due, and an event loop that meets the time."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import resource
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import aiohttp
import numpy as np
from numpy.typing import NDArray
from yarl import URL

from .child import Child

clock = time.perf_counter
T = TypeVar("T")

WARM_REQUESTS = 50


def arrivals(random: np.random.Generator, per_s: float, seconds: float) -> NDArray[np.float64]:
    """Times of a Poisson process, ascending, within [0, seconds)."""
    due = np.empty(0)
    while not len(due) or due[-1] < seconds:
        more = random.exponential(1 / per_s, size=max(16, round(per_s * seconds)))
        due = np.concatenate([due, (due[-1] if len(due) else 0.0) + np.cumsum(more)])
    return due[due < seconds]


async def paced(due: NDArray[np.float64], start: Callable[[int], None]) -> None:
    """Call ``start(k)`` in the event loop when ``due[k]`` has come.

    A thread waits for it: timers of event loops are a millisecond coarse.
    """
    loop, stop = asyncio.get_running_loop(), threading.Event()

    def wait() -> None:
        for k, due_s in enumerate(due):
            left_s = due_s - clock()
            if left_s > 0 and stop.wait(left_s):
                return
            loop.call_soon_threadsafe(start, k)

    try:
        await asyncio.to_thread(wait)
    finally:
        stop.set()


def run_async(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run in the leanest event loop there is, with as many open files as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    with contextlib.suppress(ModuleNotFoundError):
        factory = importlib.import_module("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(work())


async def client_cost(body: bytes, reply_bytes: int, seconds: float = 0.4) -> dict[str, float]:
    """What a request costs the generator itself, against a server that does nothing."""
    command = [sys.executable, "-m", "mmf_deploy.serve.load.floor", str(reply_bytes)]
    with Child(command) as nothing:
        async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http:
            url, cpu_s = URL(nothing.url), 0.0
            times: list[float] = []
            begin = clock()
            while (now := clock()) < begin + seconds:
                if len(times) == WARM_REQUESTS:
                    cpu_s = time.process_time()
                async with http.post(url, data=body) as reply:
                    await reply.read()
                times.append(clock() - now)
            cpu_s = (time.process_time() - cpu_s) / max(1, len(times) - WARM_REQUESTS)
    return {
        "cpu_ms": round(cpu_s * 1e3, 4),
        "round_trip_ms": round(float(np.median(times)) * 1e3, 4),
    }

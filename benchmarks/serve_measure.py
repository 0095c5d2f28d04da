"""A bundle's engine and a service of it, measured in turns; for the service benchmarks."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from mmf_deploy.serve.bench.worker import Setting, Subject, Worker
from mmf_deploy.serve.load.check import Check, reference
from mmf_deploy.serve.load.child import Child, mmf_serve
from mmf_deploy.serve.load.client import Client, Load
from mmf_deploy.serve.load.report import Level, level
from mmf_deploy.serve.load.session import describe
from mmf_deploy.serve.load.wire import wire

from mmf_deploy.bundle import Bundle
from mmf_deploy.engines.base import BUCKETS, EngineOptions
from mmf_deploy.errors import ServiceError

LONGEST_CALL_S = 4.0
"""Batches that take an engine longer are not tried when its best one is looked for."""


@dataclass
class Accounts:
    """What must hold of all replies together.

    Attributes:
        other_cores: the most that other processes used during a level: was the machine quiet?
    """

    replies: int = 0
    wrong_images: int = 0
    failed: int = 0
    other_cores: float = 0.0

    def add(self, found: Level) -> Level:
        """Take a level in; returns it."""
        self.replies += found.ok
        self.wrong_images += found.checked.wrong
        self.failed += sum(found.failed.values())
        self.other_cores = max(self.other_cores, found.other_cores or 0.0)
        return found


@dataclass
class Pair:
    """An engine in a process of its own, and a service of the same with as many threads."""

    bundle: Bundle
    worker: Worker
    server: Child
    check: Check
    accounts: Accounts

    def engine_ms(self, batch: int, seconds: float) -> list[float]:
        """Milliseconds of each call of one turn."""
        return [1e3 * s for s in self.worker.turn(batch, seconds)]

    async def service(
        self, concurrency: int, seconds: float, images: int = 1, form: str = "npy"
    ) -> Level:
        """One turn of a closed loop; a few requests before it are not counted."""
        spec = self.bundle.spec
        asking = wire("native", form, "", spec, images)
        async with Client(self.server.url, asking, self.check, Load(images), self.server) as client:
            warm = await client.closed_loop(concurrency, min(0.2, seconds / 10))
            self.accounts.add(level(warm))
            found = self.accounts.add(level(await client.closed_loop(concurrency, seconds)))
        if not found.ok:
            raise ServiceError(f"no images came, but {found.failed or found.refused}")
        return found

    def best_batch(self, seconds: float) -> tuple[int, dict[int, float]]:
        """The bucket with most images a second, and what each gives."""
        rates: dict[int, float] = {}
        for batch in BUCKETS:
            median = float(np.median(self.engine_ms(batch, seconds)))
            rates[batch] = round(batch / median * 1e3, 2)
            if 2 * median > LONGEST_CALL_S * 1e3:
                break
        return max(rates, key=lambda batch: rates[batch]), rates


@asynccontextmanager
async def pair(bundle: Bundle, threads: int, accounts: Accounts) -> AsyncIterator[Pair]:
    """Open both; the images to compare with are made first."""
    known = reference(bundle, options=EngineOptions(threads=threads), at_least=16)
    check = Check(bundle.spec, len(known), known)
    variant = bundle.variant()
    subject = Subject(variant.engine, variant.name, threads, steps=variant.steps)
    arguments = [str(bundle.path), "--threads", str(threads)]
    server = mmf_serve(arguments)
    with Worker(Setting(bundle.path, None), subject) as worker, server:
        served = await describe(server.url)
        if served.digest != bundle.digest:
            raise ServiceError(f"{server.url} serves {served.digest}, not {bundle.digest}")
        yield Pair(bundle, worker, server, check, accounts)
    if server.problem is not None:
        raise ServiceError(server.problem)


def median(values: Any) -> float:
    """Rounded to what a clock can tell."""
    return round(float(np.median(list(values))), 4)


def load_average() -> list[float]:
    """Of the last 1, 5 and 15 minutes: was the machine quiet before?"""
    return [round(x, 2) for x in os.getloadavg()]

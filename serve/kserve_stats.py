"""Triton's statistics extension: what became of the requests of the V2 routes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from .disconnect import ClientGoneError
from .made import Timing


@dataclass
class Tally:
    """How often, and how long altogether."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        """One more."""
        self.count += 1
        self.ns += round(seconds * 1e9)

    def reply(self) -> dict[str, int]:
        """As the protocol says it."""
        return {"count": self.count, "ns": self.ns}


@dataclass
class Statistics:
    """Of one version of one model; read and written in the event loop."""

    images: int = 0
    last_ms: int = 0
    tallies: dict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count a request as a success or, if it raises, as a failure."""
        started, outcome = time.perf_counter(), "fail"
        try:
            yield
            outcome = "success"
        except ClientGoneError:
            outcome = "cancel"
            raise
        finally:
            self.tallies[outcome].add(time.perf_counter() - started)

    @contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """Count a part of a request that succeeded."""
        started = time.perf_counter()
        yield
        self.tallies[kind].add(time.perf_counter() - started)

    def made(self, timing: Timing, images: int) -> None:
        """Count what was made for a request."""
        self.images += images
        self.last_ms = time.time_ns() // 1_000_000
        self.tallies["queue"].add(timing.queue_ms / 1e3)
        self.tallies["compute_infer"].add(timing.infer_ms / 1e3)

    def reply(self, name: str, version: str, executions: int) -> dict[str, Any]:
        """One entry of ``model_stats``."""
        kinds = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output",
                 "cancel", "cache_hit", "cache_miss")  # fmt: skip
        return {
            "name": name,
            "version": version,
            "last_inference": self.last_ms,
            "inference_count": self.images,
            "execution_count": executions,
            "inference_stats": {kind: self.tallies[kind].reply() for kind in kinds},
            "batch_stats": [],
        }

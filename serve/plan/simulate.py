"""Loads of one simulated replica: open loops, closed loops, and what it can carry at most."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .events import Run
from .replica import Replica, Seconds, Trace

MOST_CLIENTS = 64
CAPACITY_ROUNDS = 60
"""Requests of each client while a capacity is looked for; the first fifth is not counted."""


def poisson(rate: float, requests: int, seed: int = 0) -> Seconds:
    """Times of arrival; a seed gives the same pattern at every rate.

    Args:
        rate: requests a second.
    """
    gaps = np.random.default_rng([seed, 1]).exponential(1.0, requests)
    return np.cumsum(gaps) / rate


def open_loop(
    replica: Replica, due_s: Sequence[float] | Seconds, images: int = 1, seed: int = 0
) -> Trace:
    """Requests that come at given times, ascending, whatever becomes of those before."""
    due = np.asarray(due_s, np.float64).tolist()
    return Run(replica, due, len(due), images, seed).trace()


def closed_loop(
    replica: Replica, clients: int, requests: int, images: int = 1, seed: int = 0
) -> Trace:
    """Clients that each send their next request when they have the reply to the last one."""
    return Run(replica, [0.0] * clients, requests, images, seed, closed=True).trace()


def throughput(trace: Trace, clients: int) -> float:
    """Replies a second of a closed loop, without its beginning and its end."""
    done = np.sort(trace.done_s)
    first, last = len(done) // 5, len(done) - clients
    return float((last - first) / (done[last] - done[first]))


def busy_clients(largest: int, images: int) -> int:
    """Clients that keep everything busy: with one batch that runs and one on its way."""
    return max(4, min(MOST_CLIENTS, 2 * largest // images + 1))


def capacity_per_s(replica: Replica, images: int = 1, seed: int = 0) -> float:
    """Most requests a second: those of a closed loop of so many clients."""
    clients = busy_clients(replica.largest, images)
    trace = closed_loop(replica, clients, CAPACITY_ROUNDS * clients, images, seed)
    return throughput(trace, clients)

"""When a call is tried again, and how long it waits before that. Nothing here does I/O."""

from __future__ import annotations

import email.utils
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

RETRIED = frozenset({408, 429, 502, 503, 504})
"""HTTP statuses that may be gone at the next try; every other error stays."""

BACKOFF_S = 0.1
"""First pause where the service does not say how long; it doubles from try to try."""


@dataclass(frozen=True)
class Patience:
    """How long one call may take.

    Attributes:
        timeout_s: for all of it: every attempt and every pause between them.
        max_retries: attempts after the first; None is as many as the time allows.
        longest_pause_s: of those pauses that the service does not prescribe.
    """

    timeout_s: float
    max_retries: int | None
    longest_pause_s: float = 5.0


class Tries:
    """The attempts of one call.

    Args:
        clock: seconds, monotonic.
        deadline_ms: from now on; after it the images are worth nothing, so no retry reaches
            beyond it and each attempt passes on what is left of it.
    """

    def __init__(
        self, patience: Patience, clock: Callable[[], float], deadline_ms: float | None = None
    ) -> None:
        self.patience = patience
        self.attempts = 1
        self._clock = clock
        self._began = clock()
        self._deadline_ms = deadline_ms

    @property
    def taken_s(self) -> float:
        """Since the call began."""
        return self._clock() - self._began

    @property
    def left_s(self) -> float:
        """What this attempt may take."""
        return self.patience.timeout_s - self.taken_s

    @property
    def deadline_left_ms(self) -> float | None:
        """What this attempt may promise its images for; None without a deadline."""
        if self._deadline_ms is None:
            return None
        return round(self._deadline_ms - self.taken_s * 1000, 3)

    def pause_s(self, said_s: float | None) -> float | None:
        """Seconds to wait before the next attempt, or None: there is to be none.

        Args:
            said_s: what the service asked for. It is kept exactly, or not waited for at all.
        """
        retries = self.patience.max_retries
        if retries is not None and self.attempts > retries:
            return None
        pause_s = self._backoff_s() if said_s is None else said_s
        deadline_ms = self.deadline_left_ms
        worth_s = math.inf if deadline_ms is None else deadline_ms / 1000
        if pause_s >= min(self.left_s, worth_s):
            return None
        self.attempts += 1
        return pause_s

    def _backoff_s(self) -> float:
        """Doubling, and spread: what failed together must not come back together."""
        pause_s = BACKOFF_S * 2.0 ** min(self.attempts - 1, 30)
        return min(pause_s, self.patience.longest_pause_s) * random.uniform(0.5, 1.0)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """What the headers of a reply (names in any case) say about when to come back.

    ``retry-after-ms`` comes first, because it is exact; then ``Retry-After``, in seconds or as
    an HTTP date, which is read by the service's own clock where the reply has a ``Date``.

    Returns:
        seconds from now, 0 or more; None if nothing, or nothing readable, is said.
    """
    ms = _number(headers.get("retry-after-ms"))
    if ms is not None:
        return ms / 1000
    said = headers.get("retry-after")
    seconds = _number(said)
    if seconds is not None:
        return seconds
    then = _date_s(said)
    if then is None:
        return None
    now = _date_s(headers.get("date"))
    return max(0.0, then - (time.time() if now is None else now))


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 <= value < math.inf else None


def _date_s(text: str | None) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(text or "").timestamp()
    except (ValueError, OverflowError):
        return None

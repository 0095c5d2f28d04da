"""Turns on a device: batches of several engines run one after another, in the order they asked."""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType


class Turns:
    """A lock that is handed on in the order of asking.

    A plain lock may be taken again by whoever just released it, so that one busy engine would
    starve all others on its device.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held = False
        self._asking: deque[threading.Event] = deque()

    def __enter__(self) -> None:
        with self._lock:
            if not self._held:
                self._held = True
                return
            mine = threading.Event()
            self._asking.append(mine)
        mine.wait()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            if self._asking:
                self._asking.popleft().set()  # still held: by the next one
            else:
                self._held = False

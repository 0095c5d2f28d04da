"""Work in a thread that cannot keep the process from ending."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


async def in_daemon(work: Callable[[], T]) -> T:
    """Run ``work`` in a daemon thread: for engines, whose loading and closing may hang.

    A thread of a pool would be waited for at the end of the process, for ever if need be.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(how: Callable[[Any], None], value: object) -> None:
        if not done.done():
            how(value)

    def run() -> None:
        how: Callable[[Any], None] = done.set_result
        try:
            value: object = work()
        except BaseException as e:
            how, value = done.set_exception, e
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, how, value)

    threading.Thread(target=run, name="engine", daemon=True).start()
    return await done

"""Waiting for images only as long as the client does."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from starlette.requests import Request

from .samples import Sample


class ClientGoneError(Exception):
    """The client left before its images were ready; nobody reads the reply."""


async def samples_unless_gone(
    request: Request, futures: Sequence[asyncio.Future[Sample]]
) -> list[Sample]:
    """Wait for every image of a request whose body has been read.

    Whatever ends the wait early (the client leaves, one image fails, the handler is
    cancelled) cancels the rest, so that nothing is computed for nobody.

    Raises:
        ClientGoneError: the client disconnected first.
    """
    everything = asyncio.gather(*futures)
    # when the client is gone nobody looks at the outcome, and asyncio would complain
    everything.add_done_callback(lambda done: done.cancelled() or done.exception())
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait((everything, gone), return_when=asyncio.FIRST_COMPLETED)
        if not everything.done():
            raise ClientGoneError
        return everything.result()
    finally:
        gone.cancel()
        for future in futures:
            future.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass

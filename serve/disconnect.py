"""Giving up work when its client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import Request

from mmf_deploy.errors import RequestError

from .job import Job


class ClientGoneError(Exception):
    """The client left before its images were ready; nobody reads the reply."""


@contextmanager
def fail_when_gone(request: Request, job: Job) -> Iterator[None]:
    """While inside, the departure of a request's client fails its job with ClientGoneError.

    Args:
        request: whose body has been read.
    """

    async def watch() -> None:
        try:
            while (await request.receive())["type"] != "http.disconnect":
                pass
        except RequestError as e:  # a body that nobody reads is over the limit
            job.fail(e)
        else:
            job.fail(ClientGoneError(), "disconnect")

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()

"""The asynchronous client; every method is the one of ``Client``, awaited."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from mmf_deploy.errors import BusyError, UnreachableError

from . import base, calls
from .events import ImageStream, StreamedImage
from .replies import Encoded, Images
from .retry import Patience, Tries

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")


class AsyncClient(base.BaseClient):
    """Calls a service from an event loop (asyncio or trio), many calls at once.

    Args, beyond those of ``BaseClient``:
        http: an httpx.AsyncClient to use instead of one of its own, for proxies or
            certificates; it is not closed with this client.
        sleep: waits for some seconds.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        timeout_s: float = 60.0,
        max_retries: int = 5,
        http: httpx.AsyncClient | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] | None = None,
    ) -> None:
        super().__init__(url, api_key, timeout_s=timeout_s, max_retries=max_retries, clock=clock)
        import anyio
        import httpx

        self._own = http is None
        self._http = http or httpx.AsyncClient(limits=base.limits())
        self._sleep = sleep or anyio.sleep

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        if self._own:
            await self._http.aclose()

    async def generate(self, n: int | None = None, **wanted: Unpack[calls.Wanted]) -> Images:
        """Generate images as an array, with what each of them is."""
        return await self._ask(calls.generate(n, wanted))

    async def encoded(
        self, kind: calls.Kind, n: int | None = None, **wanted: Unpack[calls.Wanted]
    ) -> Encoded:
        """Generate one image file: png, jpeg or webp. ``n`` > 1 is one grid of n images."""
        return await self._ask(calls.encoded(kind, n, wanted))

    async def png(self, n: int | None = None, **wanted: Unpack[calls.Wanted]) -> bytes:
        """The content of one PNG file."""
        return (await self.encoded("png", n, **wanted)).data

    async def interpolate(
        self,
        start: int,
        end: int,
        frames: int | None = None,
        **wanted: Unpack[calls.WantedWay],
    ) -> Images:
        """The way from one seed to another, both ends included."""
        return await self._ask(calls.interpolate(start, end, frames, wanted))

    async def trajectory(
        self, seed: int | None = None, **wanted: Unpack[calls.WantedWay]
    ) -> Images:
        """The way from noise to one image, in as many steps as its variant takes."""
        return await self._ask(calls.trajectory(seed, wanted))

    async def stream(
        self, n: int | None = None, **wanted: Unpack[calls.Wanted]
    ) -> AsyncIterator[StreamedImage]:
        """Generate images and give each of them as soon as it is there.

        To leave before the end, use ``contextlib.aclosing``: that is what stops the service.
        """
        import httpx

        call = calls.stream(n, wanted)
        reply = await self._exchange(call, self._tries(call), stream=True)
        images = ImageStream(call.body, reply.headers)
        try:
            async for chunk in reply.aiter_bytes():
                for image in images.feed(chunk):
                    yield image
            images.check_done()
        except httpx.RequestError as e:
            images.check_done(e)
        finally:
            await reply.aclose()

    async def model(self, name: str | None = None) -> dict[str, Any]:
        """What is served: digest, specification, variants, limits (GET /v1/model)."""
        return await self._ask(calls.model(name))

    async def models(self) -> list[dict[str, Any]]:
        """Every model that is served (GET /v1/models)."""
        return await self._ask(calls.models())

    async def ready(self) -> bool:
        """Whether the service is there and able to serve; one look, no retries."""
        try:
            await self._ask(calls.readiness(), Patience(base.LOOK_S, max_retries=0))
        except (BusyError, UnreachableError):
            return False
        return True

    async def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Return as soon as the service is ready; BusyError or UnreachableError if it is late."""
        await self._ask(calls.readiness(), Patience(timeout_s, None, base.POLL_S))

    async def _ask(self, call: calls.Call[T], patience: Patience | None = None) -> T:
        return call.read(await self._exchange(call, self._tries(call, patience)))

    async def _exchange(
        self, call: calls.Call[T], tries: Tries, stream: bool = False
    ) -> httpx.Response:
        import httpx

        while True:
            request = self._http.build_request(**self._request(call, tries))
            try:
                reply = await self._http.send(request, stream=stream)
                if reply.is_success:
                    return reply
                await reply.aread()
            except httpx.RequestError as e:
                pause_s = self._pause_after_break(e, tries)
            else:
                pause_s = self._pause_after_reply(reply, tries)
            await self._sleep(pause_s)

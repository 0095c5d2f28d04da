"""The blocking client."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from mmf_deploy.errors import BusyError, UnreachableError

from . import base, calls
from .events import ImageStream, StreamedImage
from .replies import Encoded, Images
from .retry import Patience, Tries

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")


class Client(base.BaseClient):
    """Calls a service and waits; safe to share between threads.

    Args, beyond those of ``BaseClient``:
        http: an httpx.Client to use instead of one of its own, for proxies or certificates;
            it is not closed with this client.
        sleep: waits for some seconds.

    >>> with Client("http://127.0.0.1:8000") as client:
    ...     images = client.generate(n=4, seed=7).array
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        timeout_s: float = 60.0,
        max_retries: int = 5,
        http: httpx.Client | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(url, api_key, timeout_s=timeout_s, max_retries=max_retries, clock=clock)
        import httpx

        self._own = http is None
        self._http = http or httpx.Client(limits=base.limits())
        self._sleep = sleep

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        if self._own:
            self._http.close()

    def generate(self, n: int | None = None, **wanted: Unpack[calls.Wanted]) -> Images:
        """Generate images as an array, with what each of them is.

        Args:
            n: how many; 1, or as many as seeds or labels.
            wanted: see ``calls.Wanted``.
        Raises:
            ServiceError: the service refused; BusyError: later; UnreachableError: no reply.
        """
        return self._ask(calls.generate(n, wanted))

    def encoded(
        self, kind: calls.Kind, n: int | None = None, **wanted: Unpack[calls.Wanted]
    ) -> Encoded:
        """Generate one image file: png, jpeg or webp. ``n`` > 1 is one grid of n images."""
        return self._ask(calls.encoded(kind, n, wanted))

    def png(self, n: int | None = None, **wanted: Unpack[calls.Wanted]) -> bytes:
        """The content of one PNG file."""
        return self.encoded("png", n, **wanted).data

    def interpolate(
        self,
        start: int,
        end: int,
        frames: int | None = None,
        **wanted: Unpack[calls.WantedWay],
    ) -> Images:
        """The way from one seed to another, both ends included.

        Args:
            frames: how many; the service's default if None.
            wanted: see ``calls.WantedWay``.
        Returns:
            the frames, with ``seeds`` being start and end.
        Raises:
            ServiceError: as ``generate``.
        """
        return self._ask(calls.interpolate(start, end, frames, wanted))

    def trajectory(self, seed: int | None = None, **wanted: Unpack[calls.WantedWay]) -> Images:
        """The way from noise to one image, in as many steps as its variant takes.

        Args:
            wanted: see ``calls.WantedWay``; steps is the most that have a trajectory if left out.
        Returns:
            steps + 1 points, the noise first and the image last, with one seed, label and guidance.
        Raises:
            ServiceError: as ``generate``; also where no variant served has a trajectory.
        """
        return self._ask(calls.trajectory(seed, wanted))

    def stream(
        self, n: int | None = None, **wanted: Unpack[calls.Wanted]
    ) -> Iterator[StreamedImage]:
        """Generate images and give each of them as soon as it is there.

        Retries end where the stream begins. Closing the iterator stops the service.

        Raises:
            ServiceError: also when it breaks off; the message says how to get the rest.
        """
        import httpx

        call = calls.stream(n, wanted)
        reply = self._exchange(call, self._tries(call), stream=True)
        images = ImageStream(call.body, reply.headers)
        try:
            for chunk in reply.iter_bytes():
                yield from images.feed(chunk)
            images.check_done()
        except httpx.RequestError as e:
            images.check_done(e)
        finally:
            reply.close()

    def model(self, name: str | None = None) -> dict[str, Any]:
        """What is served: digest, specification, variants, limits (GET /v1/model)."""
        return self._ask(calls.model(name))

    def models(self) -> list[dict[str, Any]]:
        """Every model that is served (GET /v1/models)."""
        return self._ask(calls.models())

    def ready(self) -> bool:
        """Whether the service is there and able to serve; one look, no retries."""
        try:
            self._ask(calls.readiness(), Patience(base.LOOK_S, max_retries=0))
        except (BusyError, UnreachableError):
            return False
        return True

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Return as soon as the service is ready.

        Raises:
            BusyError: it was not ready in time.
            UnreachableError: nothing answered in time.
        """
        self._ask(calls.readiness(), Patience(timeout_s, None, base.POLL_S))

    def _ask(self, call: calls.Call[T], patience: Patience | None = None) -> T:
        return call.read(self._exchange(call, self._tries(call, patience)))

    def _exchange(self, call: calls.Call[T], tries: Tries, stream: bool = False) -> httpx.Response:
        """Send until a reply is a success; its body is read, unless it is a stream."""
        import httpx

        while True:
            request = self._http.build_request(**self._request(call, tries))
            try:
                reply = self._http.send(request, stream=stream)
                if reply.is_success:
                    return reply
                reply.read()
            except httpx.RequestError as e:
                pause_s = self._pause_after_break(e, tries)
            else:
                pause_s = self._pause_after_reply(reply, tries)
            self._sleep(pause_s)

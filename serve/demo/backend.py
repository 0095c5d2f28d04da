"""What makes the demo's images: a service, in this process or somewhere else.

Either way the demo is a client of it, so what it shows is what every other client gets. Without
an address the service runs in a thread of this process and is called without a socket.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mmf_deploy import bundle as bundles
from mmf_deploy.bundle import Bundle, Variant
from mmf_deploy.client import AsyncClient
from mmf_deploy.client.replies import Images
from mmf_deploy.engines.base import Engine, EngineOptions, engine_class, open_engine
from mmf_deploy.errors import ConfigError, EngineError, MMFError, ServiceError
from mmf_deploy.spec import SampleSpec

log = logging.getLogger(__name__)

T = TypeVar("T")
Maker = Callable[[], list[Engine]]

INSIDE = "in this process"
"""Where a service is that has no address."""

TRIES = 2
"""Attempts after the first: a person is waiting."""


@dataclass(frozen=True)
class Offer:
    """One model of the service.

    Attributes:
        model: the name to ask for.
        digest: of its bundle.
        variant: that it runs unless other steps are asked for.
        steps: that can be asked for, ascending.
        trajectories: those of them that give the whole path.
    """

    model: str
    digest: str
    variant: str
    steps: tuple[int, ...]
    trajectories: tuple[int, ...]
    engine: str
    device: str
    precision: str


@dataclass(frozen=True)
class About:
    """What there is to show.

    Attributes:
        name: of the bundle.
        where: ``INSIDE``, or the service's address.
        offers: models of one and the same spec; the first is the default.
        measured: what the export measured (``mmf_deploy.measured``); may be empty.
        quality: what the training measured; may be empty.
        max_images: in one request.
    """

    name: str
    where: str
    spec: SampleSpec
    offers: tuple[Offer, ...]
    measured: dict[str, Any]
    quality: dict[str, Any]
    max_images: int


class Backend:
    """A service and what it offers; made by ``local`` and ``remote``.

    Its methods may be awaited in any event loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, client: AsyncClient, about: About) -> None:
        self.about = about
        self._loop, self._client = loop, client

    async def generate(self, n: int, **wanted: Any) -> Images:
        """Images of consecutive seeds; ``wanted`` as of ``AsyncClient.generate``.

        Raises:
            MMFError: the service refuses, or is not there.
        """
        label = wanted.pop("label", None)
        return await self._there(self._client.generate(n, labels=label, **wanted))

    async def interpolate(self, start: int, end: int, frames: int, **wanted: Any) -> Images:
        """Frames of the way from one seed's noise to another's.

        Raises:
            MMFError: the service refuses, or is not there.
        """
        return await self._there(self._client.interpolate(start, end, frames, **wanted))

    async def trajectory(self, **wanted: Any) -> Images:
        """All points of one image's path, noise first.

        Raises:
            MMFError: the service refuses, or is not there.
        """
        return await self._there(self._client.trajectory(**wanted))

    async def _there(self, call: Coroutine[Any, Any, T]) -> T:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call, self._loop))


@contextmanager
def local(path: Path, threads: int | None = None) -> Iterator[Backend]:
    """A service of every variant of a bundle that runs here, inside this process.

    Raises:
        BundleError: there is no bundle, or it is damaged.
        EngineError: no variant runs here.
    """
    found = bundles.load(path)
    sources = _sources(found, threads)
    with _running() as loop, _entered(loop, _service(sources)) as client:
        yield _backend(loop, client, INSIDE)


@contextmanager
def remote(url: str, api_key: str | None = None) -> Iterator[Backend]:
    """A service that runs elsewhere.

    Raises:
        ConfigError: the address or the key cannot be one.
        ServiceError: the service is not there, or refuses.
    """
    if "@" in url.partition("://")[2].partition("/")[0]:
        # the address is shown to every visitor
        raise ConfigError("--url holds a name or password; give the service's key by --api-key")
    client = AsyncClient(url, api_key, timeout_s=30.0, max_retries=TRIES)
    with _running() as loop, _entered(loop, client) as opened:
        try:
            backend = _backend(loop, opened, client.url)
        except ServiceError as e:
            if e.status not in (401, 403):
                raise
            raise ConfigError(
                f"{client.url} refuses the key ({e.message}); give one by --api-key or MMF_API_KEY"
            ) from e
        yield backend


def _backend(loop: asyncio.AbstractEventLoop, client: AsyncClient, where: str) -> Backend:
    found = asyncio.run_coroutine_threadsafe(_about(client, where), loop).result()
    if not found.spec.is_image:
        raise ConfigError(
            f"{found.name} makes vectors of shape {list(found.spec.shape)}; the demo shows images"
        )
    return Backend(loop, client, found)


async def _about(client: AsyncClient, where: str) -> About:
    first = await client.model()
    others = [await client.model(m) for m in first["models"] if m != first["model"]]
    spec = SampleSpec.model_validate(first["spec"])
    # models of other data have nothing to do with this one's classes and sizes
    alike = [first, *(m for m in others if m["spec"] == first["spec"])]
    return About(
        name=first["name"],
        where=where,
        spec=spec,
        offers=tuple(_offer(m) for m in alike),
        measured=first.get("measured", {}),
        quality=first.get("quality", {}),
        max_images=first["limits"]["max_images"],
    )


def _offer(model: dict[str, Any]) -> Offer:
    return Offer(
        model=model["model"],
        digest=model["bundle"],
        variant=model["variant"],
        steps=tuple(model["steps"]),
        trajectories=tuple(model.get("trajectories", ())),
        engine=model["engine"],
        device=model["device"],
        precision=model["precision"],
    )


# The service inside


def families(bundle: Bundle) -> dict[str, list[Variant]]:
    """Variants that differ in their steps alone, by the name of the one with the fewest.

    What was made for a browser is left out if there is anything else.
    """
    variants = bundle.manifest.variants
    kept = [v for v in variants if v.target != "web"] or variants
    grouped: dict[tuple[str, str], list[Variant]] = {}
    for variant in kept:
        grouped.setdefault((variant.target, variant.precision), []).append(variant)
    ordered = [sorted(group, key=lambda v: v.steps) for group in grouped.values()]
    return {group[0].name: group for group in ordered}


def _sources(bundle: Bundle, threads: int | None) -> dict[str, Maker]:
    options = EngineOptions(threads=threads)
    sources: dict[str, Maker] = {}
    reasons = []
    for name, group in families(bundle).items():
        reason = _why_not(group[0], options)
        if reason is None:
            sources[name] = _maker(bundle, group, options)
        else:
            reasons.append(f"{name}: {reason}")
    if not sources:
        raise EngineError(f"{bundle.path}: no variant runs here ({'; '.join(reasons)})")
    for reason in reasons:
        log.warning("not shown: %s", reason)
    return sources


def _why_not(variant: Variant, options: EngineOptions) -> str | None:
    """Why the engine of a variant cannot run here; None if it can."""
    try:
        return engine_class(variant.engine).unavailable(
            EngineOptions(device=variant.device, threads=options.threads)
        )
    except MMFError as e:
        return str(e)
    except ModuleNotFoundError as e:
        return f"the package {e.name!r} is not installed"


def _maker(bundle: Bundle, group: list[Variant], options: EngineOptions) -> Maker:
    return lambda: [open_engine(None, bundle, variant.name, options) for variant in group]


@asynccontextmanager
async def _service(sources: dict[str, Maker]) -> AsyncIterator[AsyncClient]:
    """A client of a service that is opened here."""
    import httpx

    from ..app import create_app
    from ..service import Service, State

    settled = asyncio.Event()

    def on_state(state: State) -> None:
        if state is not State.STARTING:
            settled.set()

    service = Service(sources, on_state=on_state)
    app = create_app(service)
    service.start()
    await settled.wait()
    if service.failure is not None:
        await service.close()
        raise service.failure
    inside = httpx.AsyncClient(transport=httpx.ASGITransport(app=app))
    async with inside, AsyncClient("http://demo", max_retries=TRIES, http=inside) as client:
        yield client
    await service.close()


@contextmanager
def _running() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in a thread of its own: the engine's answers wait for nobody's page."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="service", daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextmanager
def _entered(loop: asyncio.AbstractEventLoop, manager: Any) -> Iterator[AsyncClient]:
    """An asynchronous context, entered and left in another thread's loop."""

    def there(step: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(step, loop).result()

    client: AsyncClient = there(manager.__aenter__())
    try:
        yield client
    finally:
        there(manager.__aexit__(None, None, None))

"""A whole load test: what is loaded, which levels of load, and the report."""

from __future__ import annotations

import platform
from collections.abc import Callable
from contextlib import AsyncExitStack, nullcontext
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import aiohttp
from pydantic import ValidationError

from mmf_deploy import __version__, machine
from mmf_deploy.bundle import Bundle
from mmf_deploy.embedded import digits_bundle
from mmf_deploy.engines.base import EngineOptions
from mmf_deploy.errors import ConfigError, ServiceError, UnreachableError
from mmf_deploy.spec import SampleSpec

from .check import POOL, Check, reference
from .child import Child, mmf_serve
from .client import Client, Load
from .pace import client_cost
from .report import Level, Report, level
from .wire import Asked, wire

OF_CAPACITY = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
CAPACITY_S = 10.0
CAPACITY_IMAGES = 512
"""About so many images are under way while capacity is measured: some batches, and no more."""
WARM_S = 0.5
PROBES = 20

OnProgress = Callable[[str, float], None]


@dataclass(frozen=True)
class Plan:
    """Which levels of load, in this order.

    Attributes:
        concurrency: of closed loops.
        rates: requests a second, of open loops.
        auto: open loops at 0.25 … 2 times the capacity, which a closed loop measures.
        overload: one open loop at so many times the capacity.
        seconds: of each level; measuring the capacity takes 10 at most.
        deadline_ms: that requests carry, or None.
    """

    concurrency: tuple[int, ...] = ()
    rates: tuple[float, ...] = ()
    auto: bool = False
    overload: float | None = None
    seconds: float = 5.0
    deadline_ms: float | None = None

    @property
    def levels(self) -> int:
        """How many levels there will be."""
        auto = len(OF_CAPACITY) if self.auto else 0
        relative = auto + (self.overload is not None)
        return len(self.concurrency) + len(self.rates) + relative + bool(relative)


@dataclass(frozen=True)
class Subject:
    """What is loaded, and how it is asked.

    Attributes:
        url: of a running service; None starts ``mmf-serve`` with ``bundle``.
        bundle: whose images the service must give; None checks that they repeat.
        options, variant, engine: of the server that is started, and of the engine that makes the
            images to compare with.
        arguments: more of them for the server that is started.
        pool: how many seeds; None for 512, or as many as can be made in 20 s.
    """

    url: str | None
    bundle: Bundle | None
    protocol: str = "native"
    form: str = "npy"
    variant: str | None = None
    engine: str | None = None
    options: EngineOptions = field(default_factory=EngineOptions)
    arguments: tuple[str, ...] = ()
    pool: int | None = None


@dataclass(frozen=True)
class Served:
    """What a service says of itself."""

    name: str
    digest: str
    variant: str
    spec: SampleSpec


async def measure(
    subject: Subject,
    plan: Plan,
    load: Load,
    command: str,
    on_progress: OnProgress = lambda what, share: None,
) -> Report:
    """Load a service as planned.

    Args:
        on_progress: called with what goes on and the share of it that is over.
    Raises:
        ServiceError: there is no service, or it did not start.
        ConfigError: it is another one than said, or cannot be asked like this.
    """
    known = None
    if subject.bundle is not None:  # what cannot be asked is said before anything slow
        wire(subject.protocol, subject.form, "", subject.bundle.spec, load.images)
    if subject.url is None and subject.bundle is not None:
        # before the server starts, so that they do not compete
        known = _reference(subject, subject.bundle, subject.variant, load.images, on_progress)
    with nullcontext() if subject.url else _server(subject) as server:
        url = subject.url or (server.url if server else "")
        served = await describe(url, load.api_key)
        if known is None and subject.bundle is not None:
            _same(url, served, subject.bundle)
            known = _reference(subject, subject.bundle, served.variant, load.images, on_progress)
        pool = max(load.images, subject.pool or POOL) if known is None else len(known)
        check = Check(served.spec, pool, known)
        asking = wire(subject.protocol, subject.form, served.name, served.spec, load.images)
        cost = await client_cost(
            asking.body(Asked(0, load.images, plan.deadline_ms)), load.images * served.spec.elements
        )
        ready_mb = server.memory_mb() if server else None
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(Client(url, asking, check, load, server))
            levels, capacity = await _levels(client, plan, load.images, on_progress)
        memory = {"ready": ready_mb, "end": server.memory_mb() if server else None}
    return Report(
        command=command,
        target=target_of(subject),
        model=served.name,
        digest=served.digest,
        variant=served.variant,
        protocol=subject.protocol,
        reply_format=subject.form,
        checked_by=_checked_by(check, subject.bundle),
        machine=machine.describe(),
        versions=versions(),
        client=cost,
        levels=levels,
        capacity_per_s=capacity,
        ready_s=None if server is None else round(server.ready_s, 3),
        problem=None if server is None else server.problem,
        memory_mb={k: mb for k, mb in memory.items() if mb is not None},
    )


async def _levels(
    client: Client, plan: Plan, images: int, on_progress: OnProgress
) -> tuple[list[Level], float | None]:
    found: list[Level] = []
    capacity = None

    def begin(what: str) -> str:
        client.on_tick = lambda share: on_progress(what, share)
        return what

    async def closed(concurrency: int, seconds: float, deadline_ms: float | None) -> Level:
        begin(f"{concurrency} at once")
        found.append(level(await client.closed_loop(concurrency, seconds, deadline_ms)))
        return found[-1]

    async def opened(per_s: float, probes: int = 0) -> None:
        begin(f"{per_s:,.0f} requests/s" if per_s >= 10 else f"{per_s:.2g} requests/s")
        run = await client.open_loop(per_s, plan.seconds, plan.deadline_ms, probes)
        found.append(level(run))

    warm = level(await client.closed_loop(max((2, *plan.concurrency)), WARM_S))
    for concurrency in plan.concurrency:
        await closed(concurrency, plan.seconds, plan.deadline_ms)
    for rate in plan.rates:
        await opened(rate)
    if plan.auto or plan.overload is not None:
        at_once = min(16, max(2, CAPACITY_IMAGES // images))
        capacity = (await closed(at_once, min(plan.seconds, CAPACITY_S), None)).requests_per_s
        if not capacity:
            came = found[-1].failed or found[-1].refused
            raise ServiceError(f"capacity could not be measured: no images came, but {came}")
        for share in OF_CAPACITY if plan.auto else ():
            await opened(share * capacity)
        if plan.overload is not None:
            await opened(plan.overload * capacity, PROBES)
    found[0].checked.add(warm.checked)
    for what, count in warm.failed.items():
        found[0].failed[what] = found[0].failed.get(what, 0) + count
    return found, capacity


def _reference(
    subject: Subject, bundle: Bundle, variant: str | None, images: int, on_progress: OnProgress
) -> Any:
    return reference(
        bundle,
        subject.pool,
        at_least=images,
        variant=variant,
        engine=subject.engine,
        options=subject.options,
        on_progress=lambda done, of: on_progress("images to compare with", done / of),
    )


def _server(subject: Subject) -> Child:
    assert subject.bundle is not None
    arguments = [str(subject.bundle.path)]
    threads = subject.options.threads
    for flag, value in (("--variant", subject.variant), ("--engine", subject.engine),
                        ("--threads", threads)):  # fmt: skip
        arguments += [] if value is None else [flag, str(value)]
    return mmf_serve([*arguments, *subject.arguments])


async def describe(url: str, api_key: str | None = None) -> Served:
    """Ask a service what it serves.

    Raises:
        UnreachableError: nothing answers there.
        ServiceError: something else answers.
    """
    where = f"{url.rstrip('/')}/v1/model"
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    try:
        async with aiohttp.ClientSession(headers=headers) as http, http.get(where) as reply:
            status, text = reply.status, await reply.text()
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as e:
        raise UnreachableError(
            f"{url}: no service there ({type(e).__name__}: {e}); start one: mmf-serve"
        ) from None
    if status == 401:
        raise ServiceError(f"{where}: status 401; give a key: --api-key KEY", status=401)
    try:
        return _served(text)
    except (ValueError, LookupError, TypeError, ValidationError):
        raise ServiceError(
            f"{where}: status {status}, and no description of a model; "
            "expected the address of mmf-serve without a path",
            status=status,
        ) from None


def _served(text: str) -> Served:
    import json

    found = json.loads(text)
    spec = SampleSpec.model_validate_json(json.dumps(found["spec"]))
    return Served(found["model"], found["bundle"], found["variant"], spec)


def _same(url: str, served: Served, bundle: Bundle) -> None:
    if served.digest != bundle.digest:
        raise ConfigError(
            f"--check {bundle.path}: bundle {bundle.digest[:12]}, but {url} serves "
            f"{served.digest[:12]} ({served.name}); give the bundle that it serves"
        )


def target_of(subject: Subject) -> str:
    """What was loaded, as a person would name it: where this package lies matters to nobody."""
    if subject.url or subject.bundle is None:
        return subject.url or ""
    path = subject.bundle.path
    return path.name if path == digits_bundle() else str(path)


def _checked_by(check: Check, bundle: Bundle | None) -> str:
    if check.beforehand and bundle is not None:
        return f"{check.pool} images made by the bundle's own engine"
    return f"the first image of each of {check.pool} seeds"


def versions() -> dict[str, str]:
    """Of everything that takes part, as far as it is installed."""
    found = {"mmf-deploy": __version__, "python": platform.python_version()}
    for package in ("numpy", "aiohttp", "uvloop", "uvicorn", "fastapi", "onnxruntime"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found

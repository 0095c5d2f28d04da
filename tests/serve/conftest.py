"""A gated fake engine, and services around it or around the tiny bundle."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import Any

import httpx
import numpy as np
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from fastapi import FastAPI
from mmf_deploy.serve.app import create_app
from mmf_deploy.serve.batcher import Batcher
from mmf_deploy.serve.front import Front
from mmf_deploy.serve.model import Source
from mmf_deploy.serve.service import Limits, Service, State

from mmf_deploy import bundle
from mmf_deploy.engines.base import Engine, Output, open_engine
from mmf_deploy.images import to_uint8
from mmf_deploy.spec import SampleSpec

PATIENCE_S = 10


class GatedEngine(Engine):
    """Computes the tiny bundle's formula, but only while its gates are open."""

    name = "gated"

    def __init__(self, path, formula) -> None:
        super().__init__(bundle.load(path))
        self.buckets = (1, 2, 4, 8)
        self.formula = formula
        self.load_gate, self.gate = threading.Event(), threading.Event()
        self.load_gate.set()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.sizes: list[int] = []
        self.error: Exception | None = None
        self.offset = 0.0
        self.batches = 0
        self.fail_from: int | None = None  # number of the batch from which on all fail

    def load(self) -> None:
        assert self.load_gate.wait(PATIENCE_S)

    def close(self) -> None:
        pass

    def _run(self, noise, label, guidance) -> Output:
        self.sizes.append(len(noise))
        self.entered.release()
        assert self.gate.wait(PATIENCE_S)
        self.batches += 1
        if self.error is not None:
            raise self.error
        if self.fail_from is not None and self.batches >= self.fail_from:
            raise OSError("/secret/path")
        sample = self.formula(self.spec, noise, label, guidance) + np.float32(self.offset)
        return Output(sample, to_uint8(sample) if self.spec.is_image else None)

    def shut(self) -> None:
        """From now on a batch enters and stays."""
        self.gate.clear()
        self.sizes.clear()
        while self.entered.acquire(blocking=False):
            pass


@pytest.fixture
def gated(tiny_bundle, tiny_formula) -> GatedEngine:
    return GatedEngine(tiny_bundle, tiny_formula)


@pytest.fixture
def gated_of(make_tiny_bundle, tiny_formula) -> Callable[[SampleSpec], GatedEngine]:
    """A gated engine on a tiny bundle of any SampleSpec."""
    return lambda spec: GatedEngine(make_tiny_bundle(spec), tiny_formula)


class Client:
    """Blocking HTTP on an app that runs in another thread's event loop."""

    def __init__(self, app: FastAPI, service: Service, portal: BlockingPortal) -> None:
        self.app, self.service, self.portal = app, service, portal
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self._http = httpx.AsyncClient(transport=transport, base_url="http://test")

    @property
    def batcher(self) -> Batcher:
        """The batcher of the default model."""
        batcher = self.service.model().loaded.main.batcher
        assert batcher is not None
        return batcher

    def request(self, method: str, path: str, **options) -> httpx.Response:
        return self.portal.call(partial(self._http.request, method, path, **options))

    def get(self, path: str) -> httpx.Response:
        return self.request("GET", path)

    def generate(self, accept: str = "application/json", **body) -> httpx.Response:
        return self.request("POST", "/v1/generate", json=body, headers={"Accept": accept})

    def generating(self, **body) -> Future[httpx.Response]:
        """Like ``generate``, without waiting for the reply."""
        return self.portal.start_task_soon(
            partial(self._http.post, "/v1/generate", json=body, timeout=None)
        )


@contextmanager
def serve(
    engine: Engine | dict[str, Engine],
    limits: Limits | None = None,
    until: State = State.READY,
    front: Front | None = None,
) -> Iterator[Client]:
    """A client of a service of one engine, or of one engine a model."""
    engines = engine if isinstance(engine, dict) else {engine.bundle.manifest.name: engine}
    sources = {name: partial(lambda e: [e], found) for name, found in engines.items()}
    with serve_sources(sources, limits, until, front) as client:
        yield client


@contextmanager
def serve_sources(
    sources: dict[str, Source],
    limits: Limits | None = None,
    until: State = State.READY,
    front: Front | None = None,
) -> Iterator[Client]:
    """A client of a service of what gives the engines of each model."""
    reached = threading.Event()
    service = Service(sources, limits, lambda state: reached.set() if state is until else None)
    app = create_app(service, front)
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(app.router.lifespan_context(app)),
    ):
        assert until is State.STARTING or reached.wait(PATIENCE_S), service.failure
        yield Client(app, service, portal)


@pytest.fixture
def serving() -> Callable[..., Any]:
    """``with serving(engine, limits, until) as client``: an HTTP client of a running service."""
    return serve


@pytest.fixture(scope="module")
def client(tiny_bundle) -> Iterator[Client]:
    """A client of the tiny bundle through ONNX Runtime."""
    with serve(open_engine("onnxruntime", bundle.load(tiny_bundle))) as found:
        yield found

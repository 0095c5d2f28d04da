"""Optional OpenTelemetry: a span a request, with its time in queue, engine and encoder.

Without `configure` this imports nothing of OpenTelemetry. Where spans go, under which name and
how many of them is said by its own environment variables: OTEL_EXPORTER_OTLP_ENDPOINT,
OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER, OTEL_SDK_DISABLED, …
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmf_deploy import __version__
from mmf_deploy.errors import ConfigError, require

from .auth import OPEN_PATHS, own_path

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

EXTRA = "otel"
PROTOCOL = "http/protobuf"
SERVICE_NAME = "mmf-serve"
STAGES = ("queue", "infer", "encode")
FINISH_S = 2.0
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE",
                     "PATCH", "QUERY"))  # fmt: skip


def configure() -> TracerProvider:
    """A provider that sends spans by OTLP over HTTP, in the background, in batches.

    Give it to `finish` at the end; without that the last spans go at the end of the process,
    which then waits for a collector that does not answer.

    Raises:
        DependencyError: OpenTelemetry is not installed.
        ConfigError: the environment asks for another protocol.
    """
    sdk = require("opentelemetry.sdk.trace", EXTRA)
    export = require("opentelemetry.sdk.trace.export", EXTRA)
    resources = require("opentelemetry.sdk.resources", EXTRA)
    otlp = require("opentelemetry.exporter.otlp.proto.http.trace_exporter", EXTRA)
    for variable in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        protocol = os.environ.get(variable)
        if protocol and protocol != PROTOCOL:
            raise ConfigError(
                f"{variable}={protocol[:40]}: spans are sent by {PROTOCOL} alone; "
                "set it to that, or unset it"
            )
    # what OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say goes before these
    own = {"service.name": SERVICE_NAME, "service.version": __version__}
    resource = resources.Resource(own).merge(resources.OTELResourceDetector().detect())
    resource = resources.Resource.create().merge(resource)
    provider: TracerProvider = sdk.TracerProvider(resource=resource)
    provider.add_span_processor(export.BatchSpanProcessor(otlp.OTLPSpanExporter()))
    return provider


def finish(provider: TracerProvider, timeout_s: float = FINISH_S) -> None:
    """Send the last spans, or give up: a collector that is away must not hold up a restart."""
    sending = threading.Thread(target=provider.shutdown, name="last spans", daemon=True)
    sending.start()
    sending.join(timeout_s)
    atexit.unregister(provider.shutdown)


class Tracing:
    """A server span for every request, a child of the span that W3C's ``traceparent`` names.

    The span is current while the request is served. Routes leave ``queue_ms``, ``infer_ms``
    and ``encode_ms`` in scope["state"]["log"]; they become child spans, one after another,
    the last of which ends as the reply begins: their lengths are measured, their places are
    not, because encoding overlaps inference. The trace's id is put in
    scope["state"]["trace_id"], for the log.

    Args:
        provider: from `configure`.
        excluded_paths: paths without spans: those that are asked every few seconds.
    """

    def __init__(
        self,
        app: ASGIApp,
        provider: TracerProvider,
        excluded_paths: Iterable[str] = OPEN_PATHS,
    ) -> None:
        self.app = app
        self._api: Any = require("opentelemetry.trace", EXTRA)
        propagation = require("opentelemetry.trace.propagation.tracecontext", EXTRA)
        self._propagator: Any = propagation.TraceContextTextMapPropagator()
        self._tracer = provider.get_tracer("mmf_deploy.serve", __version__)
        self._excluded = frozenset(excluded_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on inside of a span."""
        if scope["type"] != "http" or own_path(scope) in self._excluded:
            await self.app(scope, receive, send)
            return
        began_ns = time.time_ns()
        span = self._begin(scope, began_ns)
        state = scope.setdefault("state", {})
        if span.get_span_context().is_valid:
            state["trace_id"] = f"{span.get_span_context().trace_id:032x}"
        status, replied_ns = 0, 0

        async def watched(message: Message) -> None:
            nonlocal status, replied_ns
            if message["type"] == "http.response.start":
                status, replied_ns = message["status"], time.time_ns()
            await send(message)

        error: BaseException | None = None
        try:
            # the exception is recorded below, with everything else
            with self._api.use_span(span, record_exception=False, set_status_on_exception=False):
                await self.app(scope, receive, watched)
        except BaseException as e:
            error = e
            raise
        finally:
            if span.is_recording():
                self._describe(span, scope, status, error)
                self._stages(span, state.get("log", {}), began_ns, replied_ns)
            span.end()

    def _begin(self, scope: Scope, began_ns: int) -> Span:
        headers = {n: v for n, v in scope["headers"] if n in (b"traceparent", b"tracestate")}
        carrier = {n.decode("latin-1"): v.decode("latin-1") for n, v in headers.items()}
        span: Span = self._tracer.start_span(
            _name(scope["method"], None),
            # an empty context, not the current one: a request has no parent in this process
            context=self._propagator.extract(carrier, context={}),
            kind=self._api.SpanKind.SERVER,
            attributes=_attributes(scope),
            start_time=began_ns,
        )
        return span

    def _describe(self, span: Span, scope: Scope, status: int, error: BaseException | None) -> None:
        """What is known only at the end: the route, the outcome, what was made."""
        route = getattr(scope.get("route"), "path", None)
        if route:
            span.update_name(_name(scope["method"], route))
            span.set_attribute("http.route", route)
        if not status:  # a bug, or a server that has given up waiting
            status = 499 if error is not None and not isinstance(error, Exception) else 500
        span.set_attribute("http.response.status_code", status)
        if isinstance(error, Exception):
            span.record_exception(error)
        if status >= 500 or isinstance(error, Exception):
            kind = type(error).__qualname__ if error is not None else str(status)
            span.set_attribute("error.type", kind)
            span.set_status(self._api.StatusCode.ERROR)
        span.set_attributes(_own(scope["state"]))

    def _stages(self, span: Span, log: dict[str, Any], began_ns: int, replied_ns: int) -> None:
        lengths = {s: int(log[f"{s}_ms"] * 1e6) for s in STAGES if log.get(f"{s}_ms") is not None}
        total_ns = sum(lengths.values())
        # a stream replies before it computes: its stages end with it instead
        end_ns = replied_ns if replied_ns - began_ns >= total_ns else time.time_ns()
        start_ns = max(end_ns - total_ns, began_ns)
        context = self._api.set_span_in_context(span, {})
        for stage, length_ns in lengths.items():
            child = self._tracer.start_span(stage, context=context, start_time=start_ns)
            start_ns += length_ns
            child.end(start_ns)


def _name(method: str, route: str | None) -> str:
    known = method if method in METHODS else "HTTP"
    return f"{known} {route}" if route else known


def _attributes(scope: Scope) -> dict[str, Any]:
    """By OpenTelemetry's conventions for HTTP servers; without the query, it may hold secrets."""
    method = scope["method"]
    found = {
        "http.request.method": method if method in METHODS else "_OTHER",
        "url.path": scope["path"][:200],
        "url.scheme": scope.get("scheme", "http"),
        "network.protocol.version": scope.get("http_version", "1.1"),
    }
    if method not in METHODS:
        found["http.request.method_original"] = method[:16]
    if client := scope.get("client"):
        found["client.address"] = client[0]
    if server := scope.get("server"):
        found["server.address"], found["server.port"] = server[0], server[1] or 0
    agent = dict(scope["headers"]).get(b"user-agent")
    if agent:
        found["user_agent.original"] = agent[:200].decode("latin-1")
    return found


def _own(state: dict[str, Any]) -> dict[str, Any]:
    """Ours: the request's id, the key's name and what the routes told the log."""
    log = {n: v for n, v in state.get("log", {}).items() if isinstance(v, str | int | float)}
    found = {f"mmf.{name}": value for name, value in log.items()}
    if "request_id" in state:
        found["mmf.request_id"] = state["request_id"]
    if state.get("key") is not None:
        found["mmf.key"] = state["key"].name
    return found

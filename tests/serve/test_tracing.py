"""Spans by OpenTelemetry's conventions, seen through its own in-memory exporter and by OTLP."""

from __future__ import annotations

import asyncio
import http.server
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from mmf_deploy.serve import tracing
from mmf_deploy.serve.api_keys import KeyRing
from mmf_deploy.serve.front import Front
from mmf_deploy.serve.key_file import Key, digest_of
from mmf_deploy.serve.tracing import Tracing
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode, get_current_span

from mmf_deploy.errors import ConfigError, DependencyError

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = (b"traceparent", f"00-{TRACE}-{PARENT}-01".encode())


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter, monkeypatch):
    for name in ("OTEL_SDK_DISABLED", "OTEL_TRACES_SAMPLER"):
        monkeypatch.delenv(name, raising=False)
    found = TracerProvider(shutdown_on_exit=False)
    found.add_span_processor(SimpleSpanProcessor(exporter))
    return found


def request(headers=(), path="/v1/generate", method="POST", **more):
    return {"type": "http", "method": method, "path": path, "query_string": b"token=secret",
            "scheme": "http", "http_version": "1.1", "headers": list(headers),
            "client": ("192.0.2.7", 1234), "server": ("127.0.0.1", 8000), **more}  # fmt: skip


async def fine(scope, receive, send, status=200):
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b"x"})


def run(provider, app=fine, scope=None):
    async def send(message):
        pass

    scope = request() if scope is None else scope
    asyncio.run(Tracing(app, provider)(scope, None, send))
    return scope["state"]


def test_a_request_is_a_server_span_with_the_conventional_attributes(provider, exporter):
    async def app(scope, receive, send):
        scope["route"] = SimpleNamespace(path="/v1/images/{digest}")
        await fine(scope, receive, send)

    run(provider, app, request([(b"user-agent", b"curl/8")], "/v1/images/abc", "GET"))
    (span,) = exporter.get_finished_spans()
    assert (span.name, span.kind) == ("GET /v1/images/{digest}", SpanKind.SERVER)
    assert span.status.status_code is StatusCode.UNSET
    assert dict(span.attributes) == {
        "http.request.method": "GET", "http.route": "/v1/images/{digest}",
        "http.response.status_code": 200, "url.path": "/v1/images/abc", "url.scheme": "http",
        "network.protocol.version": "1.1", "client.address": "192.0.2.7",
        "server.address": "127.0.0.1", "server.port": 8000, "user_agent.original": "curl/8",
    }  # fmt: skip


def test_the_callers_trace_goes_on(provider, exporter):
    state = run(provider, scope=request([TRACEPARENT, (b"tracestate", b"a=1")]))
    (span,) = exporter.get_finished_spans()
    assert f"{span.context.trace_id:032x}" == TRACE == state["trace_id"]
    assert f"{span.parent.span_id:016x}" == PARENT
    assert span.context.trace_state["a"] == "1"


@pytest.mark.parametrize(
    "value", [b"", b"00-0-0-01", b"\xff\xfe", b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01",
              b"x" * 100_000],
)  # fmt: skip
def test_a_broken_traceparent_begins_a_trace_of_its_own(provider, exporter, value):
    run(provider, scope=request([(b"traceparent", value)]))
    (span,) = exporter.get_finished_spans()
    assert span.parent is None


def test_the_callers_decision_not_to_sample_is_respected(provider, exporter):
    state = run(provider, scope=request([(b"traceparent", TRACEPARENT[1][:-1] + b"0")]))
    assert exporter.get_finished_spans() == ()
    assert state["trace_id"] == TRACE  # the log still leads to it


def test_stages_are_children_with_measured_lengths_that_end_with_the_reply(provider, exporter):
    async def app(scope, receive, send):
        scope["state"]["log"] = {"queue_ms": 2.0, "infer_ms": 5.0, "encode_ms": 1.0, "images": 4}
        await asyncio.sleep(0.02)
        await fine(scope, receive, send)

    run(provider, app)
    *stages, server = exporter.get_finished_spans()
    assert [(s.name, s.end_time - s.start_time) for s in stages] == [
        ("queue", 2_000_000), ("infer", 5_000_000), ("encode", 1_000_000)
    ]  # fmt: skip
    assert {s.parent.span_id for s in stages} == {server.context.span_id}
    assert {s.context.trace_id for s in stages} == {server.context.trace_id}
    assert stages[0].end_time == stages[1].start_time
    assert stages[1].end_time == stages[2].start_time
    assert server.start_time <= stages[0].start_time
    assert stages[2].end_time <= server.end_time
    assert server.attributes["mmf.images"] == 4


def test_stages_of_a_stream_come_after_the_start_of_its_reply(provider, exporter):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(0.02)
        scope["state"]["log"] = {"queue_ms": 5.0, "infer_ms": 10.0}
        await send({"type": "http.response.body", "body": b"x"})

    run(provider, app)
    queue, infer, server = exporter.get_finished_spans()
    assert server.start_time + 3_000_000 <= queue.start_time
    assert infer.end_time <= server.end_time


def test_the_span_is_current_while_the_request_is_served_and_not_after(provider):
    seen = []

    async def app(scope, receive, send):
        seen.append(f"{get_current_span().get_span_context().trace_id:032x}")
        await fine(scope, receive, send)

    state = run(provider, app)
    assert seen == [state["trace_id"]]
    assert not get_current_span().get_span_context().is_valid


def test_only_5xx_is_an_error_of_the_service(provider, exporter):
    for status in (404, 429, 503):
        run(provider, lambda s, r, send, status=status: fine(s, r, send, status))
    spans = exporter.get_finished_spans()
    codes = [s.status.status_code for s in spans]
    assert codes == [StatusCode.UNSET, StatusCode.UNSET, StatusCode.ERROR]
    assert [s.attributes.get("error.type") for s in spans] == [None, None, "503"]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(KeyError("x"), 500, StatusCode.ERROR), (asyncio.CancelledError(), 499, StatusCode.UNSET)],
)
def test_an_exception_passes_on_and_is_in_the_span(provider, exporter, error, status, code):
    async def broken(scope, receive, send):
        raise error

    with pytest.raises(type(error)):
        run(provider, broken)
    (span,) = exporter.get_finished_spans()
    assert span.attributes["http.response.status_code"] == status
    assert span.status.status_code is code
    assert [e.name for e in span.events] == (["exception"] if status == 500 else [])


def test_unknown_methods_make_no_new_names(provider, exporter):
    run(provider, scope=request(method="X" * 1000))
    (span,) = exporter.get_finished_spans()
    assert span.name == "HTTP"
    assert span.attributes["http.request.method"] == "_OTHER"
    assert span.attributes["http.request.method_original"] == "X" * 16


def test_a_request_is_no_child_of_what_happens_to_be_current(provider, exporter):
    with provider.get_tracer("test").start_as_current_span("somebody else's"):
        run(provider)
    request_span, _ = exporter.get_finished_spans()
    assert request_span.parent is None


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_what_is_asked_every_few_seconds_has_no_spans(provider, exporter, path):
    scope = request(path=path)
    scope["state"] = {}
    assert run(provider, scope=scope) == {}
    assert exporter.get_finished_spans() == ()


def test_a_sampler_that_says_no_costs_no_attributes(exporter):
    found = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    found.add_span_processor(SimpleSpanProcessor(exporter))
    run(found)
    assert exporter.get_finished_spans() == ()


def test_a_generation_of_the_service_is_one_trace(provider, exporter, gated, serving):
    ring = KeyRing([Key(name="ci", sha256=digest_of("mmf_x").hex())])
    with serving(gated, front=Front(keys=ring, tracing=provider)) as client:
        headers = {"X-API-Key": "mmf_x", "traceparent": TRACEPARENT[1].decode()}
        headers["X-Request-Id"] = "abc"
        body = {"n": 3, "seed": 1}
        reply = client.request("POST", "/v1/generate?token=secret", headers=headers, json=body)
        assert reply.status_code == 200
        denied = client.request("POST", "/v1/generate", headers={"X-API-Key": "mmf_y"}, json=body)
        assert denied.status_code == 401
    *stages, server, refused = exporter.get_finished_spans()
    assert [s.name for s in stages] == ["queue", "infer", "encode"]
    assert server.name == "POST /v1/generate"
    assert f"{server.context.trace_id:032x}" == TRACE
    said = server.attributes
    assert (said["mmf.key"], said["mmf.request_id"], said["mmf.model"]) == ("ci", "abc", "tiny")
    assert (said["mmf.images"], said["mmf.digest"]) == (3, gated.bundle.digest)
    everything = " ".join(str(value) for s in (server, refused) for value in s.attributes.values())
    assert "mmf_x" not in everything
    assert "mmf_y" not in everything
    assert "secret" not in everything
    assert refused.attributes["http.response.status_code"] == 401
    assert refused.status.status_code is StatusCode.UNSET


@pytest.fixture
def collector(monkeypatch):
    """An OTLP collector on a free port, which answers while its gate is open."""
    received: list = []
    gate = threading.Event()
    gate.set()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert gate.wait(10)
            received.append((self.path, ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv(
        "OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}"
    )
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield SimpleNamespace(received=received, gate=gate)
    gate.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("environment", "name"), [({}, "mmf-serve"), ({"OTEL_SERVICE_NAME": "faces"}, "faces")]
)
def test_spans_go_by_otlp_to_where_the_environment_says(collector, monkeypatch, environment, name):
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    found = tracing.configure()
    run(found)
    tracing.finish(found)
    ((path, sent),) = collector.received
    assert path == "/v1/traces"
    (resource,) = sent.resource_spans
    attributes = {a.key: a.value.string_value for a in resource.resource.attributes}
    assert attributes["service.name"] == name
    assert attributes["service.version"]
    (span,) = resource.scope_spans[0].spans
    assert span.name == "POST"


def test_a_collector_that_does_not_answer_does_not_hold_up_the_end(collector):
    found = tracing.configure()
    run(found)
    collector.gate.clear()
    began = time.perf_counter()
    tracing.finish(found, timeout_s=0.05)
    assert time.perf_counter() - began < 1
    assert collector.received == []


def test_another_protocol_is_refused_in_one_line(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(ConfigError, match=r"OTEL_EXPORTER_OTLP_PROTOCOL=grpc: spans are sent by "):
        tracing.configure()


@pytest.mark.parametrize(
    "module", ["opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http.trace_exporter"]
)
def test_a_missing_package_is_one_line_that_names_the_extra(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DependencyError, match=r'pip install "mmf-deploy\[otel\]"'):
        tracing.configure()


def test_without_tracing_the_sdk_is_not_even_imported():
    # FastAPI imports the API by itself, which does nothing without the SDK
    code = (
        "import sys, mmf_deploy.serve.app, mmf_deploy.serve.launch, mmf_deploy.serve.tracing\n"
        "found = [m for m in sys.modules if m.startswith('opentelemetry.')]\n"
        "assert not [m for m in found if m.split('.')[1] in ('sdk', 'exporter', 'proto')], found"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr

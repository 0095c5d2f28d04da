"""What an operator sees and does: metrics, ids, origins, signals under load."""

import asyncio
import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest
from mmf_deploy.serve import http_protocol
from mmf_deploy.serve.front import Front
from mmf_deploy.serve.service import Limits, Service

from mmf_deploy import bundle
from mmf_deploy.engines.base import open_engine
from tests.serve.conftest import PATIENCE_S
from tests.serve.live import live
from tests.serve.test_cli import Running
from tests.serve.test_models import rewritten, wait_for


def value(client, name, **labels):
    return client.service.metrics.registry.get_sample_value(name, labels)


# Metrics


def test_metrics_count_what_happened(tiny_bundle, serving):
    with serving(open_engine("onnxruntime", bundle.load(tiny_bundle))) as client:
        assert client.get("/metrics").status_code == 200
        before = value(client, "mmf_batch_images_sum", model="tiny")
        client.generate(n=5, seed=1)
        client.generate(n=0)
        client.get("/v1/images/nothing/0/1.png")
        client.get("/made/up/path")
        text = client.get("/metrics").text
        route = {"route": "/v1/generate", "method": "POST"}
        assert value(client, "mmf_requests_total", status="200", **route) == 1
        assert value(client, "mmf_requests_total", status="422", **route) == 1
        assert value(client, "mmf_images_total", model="tiny", variant="fp32") == 5
        assert value(client, "mmf_batch_images_sum", model="tiny") == before + 5
        assert value(client, "mmf_queue_seconds_count", model="tiny") == 1
        assert value(client, "mmf_ready") == 1
        assert value(client, "mmf_requests_in_flight") == 0
        digest = client.service.model().loaded.digest
        assert f'digest="{digest}"' in text
        assert "process_resident_memory_bytes" in text
        assert 'route="unmatched"' in text
        assert "made/up" not in text, "a client cannot make up time series"


def test_metrics_say_why_requests_were_refused_and_work_was_dropped(gated, serving):
    with serving(gated, Limits(max_queue_images=2)) as client:
        gated.shut()
        first = client.generating(seed=1)
        assert gated.entered.acquire(timeout=PATIENCE_S)
        waiting = client.generating(seed=2, n=2)
        wait_for(lambda: client.batcher.waiting == 2)
        assert value(client, "mmf_queue_images", model="tiny", priority="normal") == 2
        assert value(client, "mmf_running_images", model="tiny") == 1
        assert client.generate(seed=4).status_code == 503
        gated.gate.set()
        assert {f.result(PATIENCE_S).status_code for f in (first, waiting)} == {200}
        assert value(client, "mmf_shed_total", model="tiny", reason="queue_full") == 1
        gated.error = OSError("gone")
        assert client.generate(seed=1).status_code == 500
        assert value(client, "mmf_failed_batches_total", model="tiny") == 1
        assert value(client, "mmf_requests_total", route="/v1/generate", method="POST",
                     status="500") == 1  # fmt: skip


def test_priority_is_taken_from_the_request(gated, serving):
    with serving(gated) as client:
        gated.shut()
        first = client.generating(seed=0)
        assert gated.entered.acquire(timeout=PATIENCE_S)
        low = client.generating(seed=1, priority="low")
        wait_for(lambda: client.batcher.waiting == 1)
        high = client.generating(seed=2, priority="high")
        wait_for(lambda: client.batcher.waiting == 2)
        assert client.batcher.waiting_by_priority["low"] == 1
        gated.gate.set()
        assert {f.result(PATIENCE_S).status_code for f in (first, low, high)} == {200}


def test_a_backlog_of_encoding_is_refused_with_a_time_to_come_back(client):
    encoder = client.service.encoder
    client.generate(seed=1)
    encoder.waiting += client.service.limits.max_queue_images
    try:
        refused = client.generate(seed=1)
        assert refused.status_code == 503
        assert "wait to be encoded" in refused.json()["error"]["message"]
        assert int(refused.headers["retry-after-ms"]) >= 1
        assert client.generate(seed=1, format="npy").status_code == 200, "nothing to encode"
    finally:
        encoder.waiting -= client.service.limits.max_queue_images


# Requests and their ids


def test_every_reply_has_a_request_id_and_a_server_timing(client):
    for path in ("/healthz", "/v1/model", "/nowhere", "/metrics"):
        reply = client.get(path)
        assert reply.headers["x-request-id"]
        assert "total;dur=" in reply.headers["server-timing"]
    reply = client.request("GET", "/healthz", headers={"X-Request-Id": "mine-1"})
    assert reply.headers["x-request-id"] == "mine-1"


def test_even_a_failure_that_nobody_expected_has_its_id(gated, serving, caplog):
    with serving(gated) as client:
        gated.error = OSError("/secret/path")
        reply = client.request("POST", "/v1/generate", headers={"X-Request-Id": "mine-2"})
    assert reply.status_code == 500
    assert reply.headers["x-request-id"] == "mine-2"
    assert "secret" not in reply.text


def test_pages_of_other_origins_may_not_call_unless_they_are_named(tiny_bundle, serving):
    asked = {"Origin": "https://example.org"}
    for front, allowed in [(Front(), None), (Front(cors=["https://example.org"]), asked["Origin"])]:
        with serving(open_engine("onnxruntime", bundle.load(tiny_bundle)), front=front) as client:
            reply = client.request("GET", "/healthz", headers=asked)
            assert reply.headers.get("access-control-allow-origin") == allowed


def test_connections_are_closed_while_draining(gated, serving):
    with serving(gated) as client:
        assert "connection" not in client.get("/healthz").headers
        client.portal.call(client.service.drain)
        reply = client.generate(seed=1)
        assert (reply.status_code, reply.headers["connection"]) == (200, "close")


# Signals


async def hammer(port, count, stop, outcomes):
    """Keep ``count`` clients asking on open connections; every outcome goes into the list."""

    async def ask(k):
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
            seed = k * 1_000_000
            while not stop.is_set():
                try:
                    reply = await http.post(
                        "/v1/generate", json={"seed": seed, "n": 4, "format": "npy"}
                    )
                except httpx.ConnectError:  # nobody listens any more: nothing was accepted
                    outcomes.append("refused")
                    return
                except httpx.HTTPError as e:
                    outcomes.append(f"lost: {e!r}")
                    return
                outcomes.append(reply)
                seed += 4

    await asyncio.gather(*(ask(k) for k in range(count)))


async def more_of(outcomes, count):
    goal = len(outcomes) + count
    async with asyncio.timeout(PATIENCE_S):
        while len(outcomes) < goal:
            await asyncio.sleep(0.01)


def test_a_signal_under_load_answers_every_accepted_request(tiny_bundle, monkeypatch):
    """What the log says was answered arrived, and nothing that was taken went without answer."""
    monkeypatch.setenv("MMF_SERVE_LOG_FORMAT", "json")
    monkeypatch.setenv("MMF_SERVE_LOG_LEVEL", "info")

    async def main(server):
        outcomes = []
        asking = asyncio.create_task(hammer(server.port, 16, asyncio.Event(), outcomes))
        await more_of(outcomes, 100)
        server.process.send_signal(signal.SIGTERM)
        out, err = await asyncio.to_thread(server.process.communicate, timeout=PATIENCE_S)
        assert (server.process.returncode, out) == (0, "")
        await asking
        return outcomes, err

    with Running(tiny_bundle) as server:
        outcomes, err = asyncio.run(main(server))
    replies = {o.headers["x-request-id"]: o.status_code for o in outcomes if not isinstance(o, str)}
    lines = [json.loads(line) for line in err.splitlines()]
    taken = {line["request_id"]: line["status"] for line in lines if "request_id" in line}
    assert taken == replies
    assert set(replies.values()) == {200}
    assert len(replies) > 100
    lost = [o for o in outcomes if isinstance(o, str) and o != "refused"]
    # connections that were in the queue of the socket as it was closed: nobody had taken them
    assert len(lost) <= 6
    assert outcomes.count("refused") + len(lost) == 16, "they went on until nobody listened"


def test_who_connected_in_time_may_ask_late(tiny_bundle):
    with Running(tiny_bundle) as server, socket.socket() as late, socket.socket() as silent:
        server.process.send_signal(signal.SIGTERM)
        for client in (late, silent):
            client.settimeout(PATIENCE_S)
            client.connect(("127.0.0.1", server.port))
        time.sleep(1.2)  # the socket was closed long ago
        with (
            pytest.raises(ConnectionRefusedError),
            socket.create_connection(("127.0.0.1", server.port), 5),
        ):
            pass
        late.sendall(b"GET /v1/images/x HTTP/1.1\r\nHost: a\r\n\r\n")
        assert late.recv(1000).startswith(b"HTTP/1.1 404")
        assert silent.recv(1) == b"", "who says nothing does not keep it"
        assert server.process.wait(PATIENCE_S) == 0


def test_sighup_reloads_bundle_and_keys_under_load(tiny_bundle, tmp_path):
    path = shutil.copytree(tiny_bundle, tmp_path / "copy")
    old = bundle.load(path).digest

    async def main(server):
        stop, outcomes = asyncio.Event(), []
        asking = asyncio.create_task(hammer(server.port, 4, stop, outcomes))
        await more_of(outcomes, 20)
        new = rewritten(path, recipe={"changed": True})
        server.process.send_signal(signal.SIGHUP)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as http:
            async with asyncio.timeout(PATIENCE_S):
                while (await http.get("/v1/model")).json()["bundle"] != new:
                    await asyncio.sleep(0.01)
        await more_of(outcomes, 20)
        stop.set()
        await asking
        return new, outcomes

    with Running(path) as server:
        new, outcomes = asyncio.run(main(server))
        assert server.stop(signal.SIGTERM)[0] == 0
    assert {r.status_code for r in outcomes} == {200}
    assert {r.headers["x-mmf-bundle"] for r in outcomes} == {old, new}


def test_a_second_interrupt_does_not_wait(tiny_bundle):
    with Running(tiny_bundle) as server:
        server.process.send_signal(signal.SIGINT)
        server.process.send_signal(signal.SIGINT)
        server.process.communicate(timeout=PATIENCE_S)
        assert server.process.returncode == 0


HANGS = """
import sys, time
from mmf_deploy.engines import ort
if sys.argv.pop(1) == "load":
    ort.OnnxRuntimeEngine.load = lambda self: time.sleep(1000)
else:
    loads, run = ort.OnnxRuntimeEngine.load, ort.OnnxRuntimeEngine._run
    def hang(self, noise, *rest):
        return run(self, noise, *rest) if len(noise) != 3 else time.sleep(1000)
    ort.OnnxRuntimeEngine._run = hang
from mmf_deploy.cli import main_serve
main_serve()
"""


@pytest.mark.parametrize("where", ["load", "run"])
def test_a_second_interrupt_ends_it_even_if_its_engine_hangs(tiny_bundle, where):
    command = [sys.executable, "-c", HANGS, where, str(tiny_bundle), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as it:
        try:
            if where == "run":
                port = int(it.stdout.readline().rsplit(":", 1)[1])
                with pytest.raises(httpx.ReadTimeout):
                    httpx.post(f"http://127.0.0.1:{port}/v1/generate", json={"n": 3}, timeout=0.5)
            else:
                time.sleep(2)
            for _ in range(2):
                it.send_signal(signal.SIGINT)
                time.sleep(0.8)
            it.communicate(timeout=PATIENCE_S)
        finally:
            it.kill()


def test_settings_come_from_the_environment_and_logs_are_json(tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("MMF_SERVE_LOG_FORMAT", "json")
    monkeypatch.setenv("MMF_SERVE_LOG_LEVEL", "info")
    with Running(tiny_bundle) as server:
        reply = httpx.post(
            f"http://127.0.0.1:{server.port}/v1/generate?secret=1", json={"n": 3, "seed": 1}
        )
        _, _, err = server.stop(signal.SIGTERM)
    lines = [json.loads(line) for line in err.splitlines()]
    [line] = [found for found in lines if found.get("path") == "/v1/generate"]
    assert line["request_id"] == reply.headers["x-request-id"]
    assert (line["status"], line["images"], line["model"]) == (200, 3, "tiny")
    assert line["digest"] == reply.headers["x-mmf-bundle"]
    assert "secret" not in err


def test_a_big_body_is_refused_before_it_is_sent(tiny_bundle):
    """100 MB, announced or not: the answer comes while the client still writes."""
    code = """
import socket, sys, time
s = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
s.settimeout(10)
head = b"POST /v1/generate HTTP/1.1\\r\\nHost: x\\r\\n" + sys.argv[2].encode() + b"\\r\\n\\r\\n"
began = time.monotonic()
s.sendall(head)
if "chunked" in sys.argv[2]:
    try:
        for _ in range(40):
            s.sendall(b"10000\\r\\n" + b" " * 65536 + b"\\r\\n")
    except OSError:
        pass
print(s.recv(65536).split(b"\\r\\n")[0].decode(), time.monotonic() - began)
"""
    with Running(tiny_bundle) as server:
        for header in ("Content-Length: 100000000", "Transfer-Encoding: chunked"):
            done = subprocess.run(
                [sys.executable, "-c", code, str(server.port), header],
                capture_output=True, text=True, timeout=PATIENCE_S, check=True,
            )  # fmt: skip
            *status, seconds = done.stdout.split()
            assert status[:2] == ["HTTP/1.1", "413"]
            assert float(seconds) < 1.0


# What is hardly HTTP


def say(port, *parts, pause_s=0.0):
    """Send bytes as they are; gives the reply."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as connection:
        for part in parts:
            try:
                connection.sendall(part)
            except OSError:  # it was refused in the meantime
                break
            time.sleep(pause_s)
        with contextlib.suppress(ConnectionResetError):
            return connection.makefile("rb").read()
        return b""


def test_a_head_without_end_is_refused_and_nobody_else_is_disturbed(tiny_bundle):
    good = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
    with Running(tiny_bundle) as server:
        flood = say(server.port, good + b"X-Long: ", *[b"x" * 16384] * 4, b"x" * 100, pause_s=0.01)
        assert flood.startswith(b"HTTP/1.1 431 ")
        assert json.loads(flood.partition(b"\r\n\r\n")[2])["error"]["code"] == "head_too_large"
        nonsense = say(server.port, b"hello\r\n\r\n")
        assert nonsense.startswith(b"HTTP/1.1 400 ")
        assert json.loads(nonsense.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_http"
        many = b"".join(b"X-%d: %s\r\n" % (k, b"y" * 100) for k in range(400))
        close = b"Connection: close\r\n\r\n"
        assert say(server.port, good + many + close).startswith(b"HTTP/1.1 200 ")
        # a body is no head, however it is cut
        post = b"POST /v1/generate HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n" + close
        reply = say(server.port, post, b"{}", *[b" " * 19999] * 10, b" " * 8)
        assert reply.startswith(b"HTTP/1.1 200 ")


def test_a_head_that_takes_too_long_is_refused(tiny_bundle, monkeypatch):
    monkeypatch.setattr(http_protocol, "HEAD_S", 0.2)
    service = Service({"tiny": lambda: [open_engine("onnxruntime", bundle.load(tiny_bundle))]})
    with live(service) as server:
        began = time.monotonic()
        reply = say(server.port, b"GET /healthz HTTP/1.1\r\nHost:")
        assert reply.startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - began < 5
        # an open connection without a request is nobody's fault
        assert say(server.port, b"", b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n",
                   pause_s=0.4).startswith(b"HTTP/1.1 200 ")  # fmt: skip

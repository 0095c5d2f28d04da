"""One line a request, which no client can forge, and an id that leads to it."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import warnings

import pytest
from mmf_deploy.serve.api_keys import KeyRing
from mmf_deploy.serve.front import Front
from mmf_deploy.serve.key_file import Key, digest_of
from mmf_deploy.serve.log_format import UVICORN, configure, rfc3339
from mmf_deploy.serve.request_log import RequestLog

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


def parsed(line):
    """A line as strict JSON, which has neither NaN nor Infinity."""
    return json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} in {line}"))


@pytest.fixture
def logs(capsys):
    """``logs(level, format)`` configures logging; calling the result gives the lines so far."""
    names = ["", *UVICORN]
    loggers = [logging.getLogger(name) for name in names]
    before = [(x.handlers[:], x.level, x.propagate) for x in loggers]

    def start(level="info", log_format="json"):
        configure(level, log_format)

        def lines():
            found = capsys.readouterr().err.splitlines()
            return [parsed(line) for line in found] if log_format == "json" else found

        return lines

    yield start
    logging.captureWarnings(False)
    for found, (handlers, level, propagate) in zip(loggers, before, strict=True):
        found.handlers[:] = handlers
        found.setLevel(level)
        found.propagate = propagate


def request(path="/v1/generate", headers=(), **scope):
    return {"type": "http", "method": "POST", "path": path, "query_string": b"token=secret",
            "headers": list(headers), "client": ("192.0.2.7", 1234), **scope}  # fmt: skip


async def fine(scope, receive, send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
    await send({"type": "http.response.body", "body": b"x"})


def run(app=fine, scope=None):
    """Serves one request; gives the headers of the reply, or None without one."""
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(RequestLog(app)(request() if scope is None else scope, None, send))
    return dict(sent[0]["headers"]) if sent else None


def test_an_access_line_has_everything_but_query_and_key(logs):
    lines = logs()
    key = Key(name="ci", sha256=digest_of("mmf_x").hex())

    async def app(scope, receive, send):
        scope["state"]["key"] = key
        scope["state"]["log"] = {"model": "digits", "images": 4, "queue_ms": 1.23456}
        scope["state"]["log"] |= {"time": 0, "status": 999}
        await fine(scope, receive, send)

    scope = request(headers=[(b"x-request-id", b"abc-1"), (b"x-api-key", b"mmf_x")])
    run(app, scope)
    (line,) = lines()
    assert re.fullmatch(TIME, line.pop("time"))  # what a route says cannot replace it
    assert 0 <= line.pop("duration_ms") < 1000
    assert line == {
        "level": "info", "logger": "mmf.access", "request_id": "abc-1", "method": "POST",
        "path": "/v1/generate", "status": 200, "client": "192.0.2.7", "key": "ci",
        "model": "digits", "images": 4, "queue_ms": 1.235,
    }  # fmt: skip


def test_the_text_of_an_access_line_can_be_read_and_parsed(logs):
    lines = logs(log_format="text")
    run(scope=request("/a b", headers=[(b"x-request-id", b"abc-1")], client=None))
    (line,) = lines()
    assert re.fullmatch(
        rf'{TIME} INFO mmf\.access request_id=abc-1 method=POST path="/a b" status=200 '
        r"duration_ms=[\d.]+",
        line,
    )


@pytest.mark.parametrize("given", [b"a", b"A-z_0.9", b"x" * 128])
def test_the_clients_id_is_kept(given):
    scope = request(headers=[(b"x-request-id", given)])
    assert run(scope=scope)[b"x-request-id"] == given
    assert scope["state"]["request_id"] == given.decode()


@pytest.mark.parametrize(
    "given",
    [None, b"", b" a", b"a b", b"a\n", b"a\nb", b"x" * 129, b"\xff", "é".encode(), b"a/b", b"\x00"],
)
def test_an_id_that_could_do_harm_is_replaced(given):
    scope = request(headers=[] if given is None else [(b"x-request-id", given)])
    assert re.fullmatch(rb"[0-9a-f]{16}", run(scope=scope)[b"x-request-id"])


def test_ids_differ():
    assert len({run()[b"x-request-id"] for _ in range(100)}) == 100


FORGED = "/x\n2026-01-01T00:00:00.000Z INFO mmf.access status=200 \r\x1b[2K\u2028\x85\x00\x7f"


def test_what_a_client_sends_cannot_begin_a_line_or_command_a_terminal(logs):
    lines = logs(log_format="text")
    run(scope=request(FORGED, method="GET\nX"))
    logging.getLogger("x").error("path %s", FORGED)
    found = lines()
    assert len(found) == 2
    assert all(line.isprintable() for line in found)
    assert r'path="/x\n2026-01-01T00:' in found[0]
    assert r"\x1b[2K\u2028\x85\x00\x7f" in found[1]
    assert found[0].count(" status=") == 2  # the forged one is inside of quotes


def test_in_json_everything_is_one_line_of_ascii(logs, capsys):
    logs()
    run(scope=request(FORGED))
    logging.getLogger("x").error("path %s", FORGED)
    written = capsys.readouterr().err
    assert written.count("\n") == 2
    assert all(c.isascii() and (c.isprintable() or c == "\n") for c in written)
    access, error = map(json.loads, written.splitlines())
    assert access["path"] == FORGED
    assert error["message"] == f"path {FORGED}"


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_traceback_cannot_forge_a_record(logs, log_format):
    lines = logs(log_format=log_format)
    try:
        raise ValueError(f"bad {FORGED}")
    except ValueError:
        logging.getLogger("x").exception("it failed")
    found = lines()
    if log_format == "json":
        (line,) = found
        assert line["message"] == "it failed"
        assert line["exception"].startswith("Traceback (most recent call last):\n")
        assert FORGED in line["exception"]
    else:
        assert re.fullmatch(rf"{TIME} ERROR x it failed", found[0])
        assert len(found) > 3
        assert all(line.startswith("    ") and line.isprintable() for line in found[1:])


def test_fields_that_json_does_not_have_do_not_cost_the_line(logs):
    lines = logs()
    log = logging.getLogger("x")
    loop: dict = {}
    loop["self"] = loop
    for value in (float("nan"), {1, 2}, object(), loop, {(1,): 2}, b"\xff"):
        log.warning("odd", extra={"fields": {"value": value}})
    assert [line["message"] for line in lines()] == ["odd"] * 6


def test_long_paths_are_cut(logs):
    lines = logs()
    run(scope=request("/" + "x" * 100_000))
    assert len(lines()[0]["path"]) == 200


def test_below_its_level_a_request_writes_nothing_but_has_its_id(logs):
    lines = logs(level="warning")
    assert b"x-request-id" in run()
    assert lines() == []


def test_whatever_is_logged_during_a_request_carries_its_id(logs):
    lines = logs(level="warning")

    async def app(scope, receive, send):
        await asyncio.to_thread(logging.getLogger("deep").warning, "odd")
        await fine(scope, receive, send)

    async def send(message):
        pass

    async def server():
        await RequestLog(app)(request(headers=[(b"x-request-id", b"abc")]), None, send)
        logging.getLogger("later").warning("over")

    asyncio.run(server())
    inside, after = lines()
    assert inside["request_id"] == "abc"
    assert "request_id" not in after


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("bug"), 500), (asyncio.CancelledError(), 499)]
)
def test_a_request_that_breaks_is_logged_and_so_is_the_servers_traceback(logs, error, status):
    lines = logs()

    async def broken(scope, receive, send):
        raise error

    async def server():
        try:
            await RequestLog(broken)(request(), None, None)
        except BaseException:
            logging.getLogger("uvicorn.error").error("Exception in ASGI application")

    asyncio.run(server())
    access, server_line = lines()
    assert access["status"] == status
    assert server_line["request_id"] == access["request_id"]


def test_a_reply_that_had_begun_keeps_its_status_in_the_log(logs):
    lines = logs()

    async def breaks_late(scope, receive, send):
        await fine(scope, receive, send)
        raise ValueError("late")

    with pytest.raises(ValueError, match="late"):
        run(breaks_late)
    assert lines()[0]["status"] == 200


def test_uvicorn_and_pythons_warnings_speak_the_same_format(logs):
    for name in UVICORN:
        logging.getLogger(name).addHandler(logging.StreamHandler())
        logging.getLogger(name).propagate = False
    lines = logs()
    logging.getLogger("uvicorn.error").info("Started")
    logging.getLogger("uvicorn.access").info("a line that RequestLog writes better")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("careful\nnow", UserWarning, stacklevel=1)
        logging.captureWarnings(False)
    started, careful = lines()
    assert (started["logger"], started["message"]) == ("uvicorn.error", "Started")
    assert careful["logger"] == "py.warnings"
    assert "careful\nnow" in careful["message"]


def test_configuring_twice_does_not_write_twice(logs):
    logs()
    lines = logs()
    run()
    assert len(lines()) == 1


def test_times_are_rfc_3339_in_utc_with_milliseconds():
    assert rfc3339(0.0) == "1970-01-01T00:00:00.000Z"
    assert rfc3339(1769860799.9996) == "2026-01-31T11:59:59.999Z"


@pytest.mark.parametrize(("level", "limit_us"), [("info", 40), ("warning", 10)])
def test_the_log_costs_a_request_microseconds(logs, level, limit_us):
    logs(level=level)
    logged = RequestLog(fine)

    async def send(message):
        pass

    async def best_s(app):
        best = 1.0
        for _ in range(30):
            began = time.perf_counter()
            for _ in range(50):
                await app(request(), None, send)
            best = min(best, (time.perf_counter() - began) / 50)
        return best

    cost_us = (asyncio.run(best_s(logged)) - asyncio.run(best_s(fine))) * 1e6
    assert cost_us < limit_us


def test_every_reply_of_the_service_carries_the_id_and_leaves_a_line(logs, gated, serving):
    lines = logs()
    ring = KeyRing([Key(name="ci", sha256=digest_of("mmf_x").hex())])
    with serving(gated, front=Front(keys=ring)) as client:
        lines()

        def ask(method, path, **options):
            headers = {"X-API-Key": "mmf_x", "X-Request-Id": "abc"} | options.pop("headers", {})
            reply = client.request(method, path, headers=headers, **options)
            assert reply.headers.get_list("x-request-id") == ["abc"]
            found = [line for line in lines() if line["logger"] == "mmf.access"]
            assert [line["request_id"] for line in found] == ["abc"]
            assert found[0]["status"] == reply.status_code
            return reply.status_code, found[0]

        status, line = ask("POST", "/v1/generate?token=secret", json={"n": 2, "seed": 1})
        assert status == 200
        assert line["path"] == "/v1/generate"
        assert (line["key"], line["model"], line["images"]) == ("ci", "tiny", 2)
        assert line["digest"] == gated.bundle.digest
        assert {"queue_ms", "infer_ms", "encode_ms", "bucket"} <= line.keys()
        assert "secret" not in json.dumps(line)
        assert ask("POST", "/v1/generate", json={"n": 0})[0] == 422
        assert ask("POST", "/v1/generate", content=b"x" * 2_000_000)[0] == 413
        assert ask("GET", "/nowhere")[0] == 404
        assert ask("PUT", "/v1/generate")[0] == 405
        status, line = ask("GET", "/v1/model", headers={"X-API-Key": "mmf_wrong"})
        assert (status, line["key"]) == (401, None)
        gated.error = RuntimeError("broken")
        assert ask("POST", "/v1/generate", json={})[0] == 500

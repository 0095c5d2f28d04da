"""Nobody gets in without a key, and nobody learns one."""

from __future__ import annotations

import asyncio
import datetime
import json
import logging

import pytest
from mmf_deploy.serve.api_keys import KeyRing
from mmf_deploy.serve.auth import Auth
from mmf_deploy.serve.front import Front
from mmf_deploy.serve.key_file import Key, digest_of

KEY, OTHER, OLD = "mmf_right", "mmf_other", "mmf_old"


def entry(name, secret, **fields) -> Key:
    return Key(name=name, sha256=digest_of(secret).hex(), **fields)


RING = KeyRing(
    [
        entry("ci", KEY),
        entry("other", OTHER),
        entry("old", OLD, expires=datetime.date(2020, 1, 31)),
    ]
)


class Inner:
    """Stands for the service: says whose key came through."""

    def __init__(self) -> None:
        self.seen: list[str | None] = []

    async def __call__(self, scope, receive, send) -> None:
        key = scope.get("state", {}).get("key")
        self.seen.append(key.name if key else None)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"in"})


async def untouched():
    raise AssertionError("the body of a refused request was read")


def ask(headers=(), path="/v1/generate", *, ring=RING, kind="http", root_path=""):
    """One request through Auth; gives status, headers, body, and who came through."""
    inner, sent = Inner(), []

    async def send(message):
        sent.append(message)

    scope = {"type": kind, "method": "POST", "path": path, "headers": list(headers)}
    scope["root_path"] = root_path
    asyncio.run(Auth(inner, lambda: ring)(scope, untouched, send))
    if kind == "websocket" and sent[0]["type"] == "websocket.close":
        return sent[0]["code"], {}, b"", inner.seen
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"], inner.seen


@pytest.mark.parametrize(
    "headers",
    [
        [(b"authorization", b"Bearer mmf_right")],
        [(b"authorization", b"bearer   mmf_right  ")],
        [(b"x-api-key", b"mmf_right")],
        [(b"x-api-key", b" mmf_right ")],
        [(b"authorization", b"Bearer mmf_right"), (b"x-api-key", b"mmf_right")],
        [(b"authorization", b"Basic dTpw"), (b"x-api-key", b"mmf_right")],
        [(b"authorization", b"Bearer "), (b"x-api-key", b"mmf_right")],
    ],
)
def test_a_key_opens_the_door_in_either_header(headers):
    status, _, body, seen = ask(headers)
    assert (status, body, seen) == (200, b"in", ["ci"])


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ([], "needs an API key"),
        ([(b"authorization", b"")], "needs an API key"),
        ([(b"authorization", b"Bearer")], "needs an API key"),
        ([(b"authorization", b"Bearer ")], "needs an API key"),
        ([(b"authorization", b"mmf_right")], "needs an API key"),
        ([(b"authorization", b"Basic mmf_right")], "needs an API key"),
        ([(b"x-api-key", b"  ")], "needs an API key"),
        ([(b"cookie", b"x-api-key=mmf_right")], "needs an API key"),
        ([(b"x-api-key", b"mmf_wrong")], "not valid here"),
        ([(b"x-api-key", b"Bearer mmf_right")], "not valid here"),
        ([(b"authorization", b"Bearer mmf_right mmf_right")], "not valid here"),
        ([(b"authorization", b"Bearer mmf_right\x00")], "not valid here"),
        ([(b"authorization", b"Bearer \xff\xfe\x80")], "not valid here"),
        ([(b"x-api-key", "mmf_ключ".encode())], "not valid here"),
        ([(b"x-api-key", b"\xed\xa0\x80")], "not valid here"),
        ([(b"x-api-key", b"x" * 1_000_000)], "not valid here"),
        ([(b"authorization", b"Bearer " + b" " * 1_000_000)], "needs an API key"),
        ([(b"x-api-key", b"mmf_right"), (b"x-api-key", b"mmf_other")], "two different"),
        ([(b"authorization", b"Bearer mmf_right"), (b"x-api-key", b"mmf_wrong")], "two diff"),
        ([(b"authorization", b"Bearer mmf_old")], "expired after 2020-01-31"),
    ],
)
def test_anything_else_is_401_before_the_body_is_read_and_echoes_no_key(
    headers, said, caplog, capsys
):
    caplog.set_level(logging.DEBUG)
    status, reply, body, seen = ask(headers)
    assert (status, seen) == (401, [])
    assert reply[b"www-authenticate"] == b"Bearer"
    error = json.loads(body)["error"]
    assert (error["code"], error["field"]) == ("unauthorized", None)
    assert said in error["message"]
    assert b"mmf_" not in body + b"".join(reply.values())
    assert "mmf_" not in caplog.text
    assert capsys.readouterr() == ("", "")


def test_what_is_refused_speaks_the_language_of_its_route():
    def error_at(path):
        return json.loads(ask((), path)[2])["error"]

    native, openai = error_at("/v1/generate"), error_at("/v1/images/generations")
    assert set(native) == {"code", "message", "field"}
    assert (openai["type"], openai["code"]) == ("authentication_error", "unauthorized")
    assert set(openai) == {"message", "type", "param", "code"}
    assert error_at("/v1/models") == openai
    assert error_at("/v2/models/digits/infer") == native["message"]


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/v2/health/ready"])
def test_health_and_metrics_are_open(path):
    assert ask((), path)[0] == 200
    assert ask((), f"/mounted{path}", root_path="/mounted")[0] == 200


@pytest.mark.parametrize(
    "path",
    ["/healthz/", "//healthz", "/healthz/..", "/HEALTHZ", "/metrics/x", "/docs", "/openapi.json",
     "/", "", "/v1/generate/healthz", "/mounted/healthz"],
)  # fmt: skip
def test_only_exactly_those_are_open(path):
    assert ask((), path)[0] == 401


def test_a_prefix_is_taken_off_only_where_the_app_is_mounted():
    assert ask((), "/mountedhealthz", root_path="/mounted")[0] == 401
    assert ask((), "/healthz/v1/generate", root_path="/healthz")[0] == 401


def test_without_a_ring_everybody_gets_in_and_nobody_has_a_name():
    assert ask((), ring=None)[3] == [None]
    assert ask([(b"x-api-key", b"whatever")], ring=None)[3] == [None]


def test_an_empty_ring_refuses_everybody():
    assert ask([(b"x-api-key", KEY.encode())], ring=KeyRing([]))[0] == 401


def test_a_revoked_key_is_out_at_the_next_request():
    rings = [RING, KeyRing([entry("other", OTHER)])]
    inner, statuses = Inner(), []

    async def send(message):
        statuses.append(message.get("status"))

    door = Auth(inner, lambda: rings.pop(0))
    for _ in range(2):
        scope = {"type": "http", "path": "/v1/model", "headers": [(b"x-api-key", KEY.encode())]}
        asyncio.run(door(scope, untouched, send))
    assert [s for s in statuses if s] == [200, 401]


def test_a_websocket_needs_a_key_as_well():
    assert ask((), kind="websocket")[0] == 1008
    assert ask([(b"x-api-key", KEY.encode())], kind="websocket")[3] == ["ci"]


def test_the_start_and_the_end_of_the_app_need_no_key():
    ran = []

    async def inner(scope, receive, send):
        ran.append(scope["type"])

    asyncio.run(Auth(inner, lambda: RING)({"type": "lifespan"}, None, None))
    assert ran == ["lifespan"]


@pytest.fixture
def guarded(gated, serving):
    """A client of the real service behind keys; one is for another model."""
    ring = KeyRing([entry("ci", KEY), entry("other", OTHER, models=["faces"])])
    with serving(gated, front=Front(keys=ring, cors=["https://example.org"])) as client:
        yield client


def headers_of(key):
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/generate"), ("POST", "/v1/interpolate"), ("GET", "/v1/model"),
        ("POST", "/v1/trajectory"),
        ("GET", "/v1/models"), ("POST", "/v1/images/generations"), ("GET", "/v1/images/x/-/1.png"),
        ("GET", "/v2"), ("POST", "/v2/models/tiny/infer"),
        ("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/nowhere"), ("OPTIONS", "/v1/model"),
    ],
)  # fmt: skip
def test_every_path_of_the_service_but_the_open_ones_is_locked(guarded, method, path):
    reply = guarded.request(method, path, content=b"{}")
    assert reply.status_code == 401
    assert reply.headers["www-authenticate"] == "Bearer"
    assert reply.headers["x-request-id"]
    assert guarded.request(method, path, headers=headers_of(KEY)).status_code != 401


def test_health_and_metrics_of_the_service_are_open(guarded):
    for path in ("/healthz", "/readyz", "/metrics"):
        assert guarded.get(path).status_code == 200


def test_a_key_generates_and_a_refused_request_reaches_no_engine(guarded):
    def made() -> str:
        lines = guarded.get("/metrics").text.splitlines()
        return next(x for x in lines if x.startswith("mmf_images_total{"))

    good = guarded.request("POST", "/v1/generate", headers=headers_of(KEY), json={"n": 2})
    assert good.status_code == 200
    before = made()
    assert guarded.generate(n=2).status_code == 401
    assert made() == before


def test_a_key_for_another_model_is_refused_with_403(guarded):
    headers = headers_of(OTHER)
    reply = guarded.request("POST", "/v1/generate", headers=headers, json={})
    assert reply.status_code == 403
    error = reply.json()["error"]
    assert (error["code"], error["field"]) == ("model_not_allowed", "model")
    assert "it is for faces" in error["message"]
    stream = guarded.request("POST", "/v1/generate", headers=headers, json={"stream": True})
    assert stream.status_code == 403


def test_a_page_of_an_allowed_origin_can_read_why_it_was_refused(guarded):
    asked = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST",
             "Access-Control-Request-Headers": "authorization"}  # fmt: skip
    preflight = guarded.request("OPTIONS", "/v1/generate", headers=asked)
    assert preflight.status_code == 200  # browsers ask without the key
    assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
    refused = guarded.request("POST", "/v1/generate", headers={"Origin": "https://example.org"})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://example.org"

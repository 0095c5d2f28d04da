"""The client against scripted replies: what it sends, when it tries again, what it makes of it."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from mmf_deploy import images
from mmf_deploy.client import AsyncClient, Client
from mmf_deploy.client.events import EventReader
from mmf_deploy.errors import (
    BusyError,
    ConfigError,
    RequestError,
    ServiceError,
    ShapeError,
    UnreachableError,
)

URL = "http://service.test:8000"
ARRAY = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4, 1)
MADE = {
    "X-MMF-Bundle": "d" * 64,
    "X-MMF-Variant": "fp32",
    "X-MMF-Model": "tiny",
    "X-MMF-Seeds": "7,8",
    "X-MMF-Labels": "1,2",
    "Server-Timing": "queue;dur=0.5, infer;dur=2.25, encode;dur=0.125, bucket;desc=4",
    "X-Request-Id": "abc123",
}
Script = list[httpx.Response | Exception]


def npy(array: np.ndarray = ARRAY, **headers: str) -> httpx.Response:
    out = io.BytesIO()
    np.save(out, array)
    return httpx.Response(200, content=out.getvalue(), headers={**MADE, **headers})


def error(status: int, code: str = "overloaded", **headers: str) -> httpx.Response:
    content = {"error": {"code": code, "message": f"it is {code}", "field": None}}
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, json=content, headers={"X-Request-Id": "abc123", **given})


class Driver:
    """A client, blocking or not, whose service follows a script and whose time is not real."""

    def __init__(self, blocking: bool, script: Script, **options: Any) -> None:
        self.blocking, self.script = blocking, script
        self.requests: list[httpx.Request] = []
        self.slept: list[float] = []
        self.now = 0.0
        self.took_s = 0.0  # each attempt
        transport = httpx.MockTransport(self._reply)
        options["clock"] = lambda: self.now
        if blocking:
            http = httpx.Client(transport=transport)
            self.client: Any = Client(URL, http=http, sleep=self._sleep, **options)
        else:
            http_async = httpx.AsyncClient(transport=transport)
            self.client = AsyncClient(URL, http=http_async, sleep=self._asleep, **options)

    def _reply(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        self.now += self.took_s
        reply = self.script.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    async def _asleep(self, seconds: float) -> None:
        self._sleep(seconds)

    def call(self, name: str, *args: Any, **wanted: Any) -> Any:
        found = getattr(self.client, name)(*args, **wanted)
        if name == "stream":
            return list(found) if self.blocking else asyncio.run(_listed(found))
        return found if self.blocking else asyncio.run(found)

    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(request.content) for request in self.requests]


async def _listed(found: Any) -> list[Any]:
    return [item async for item in found]


@pytest.fixture(params=[True, False], ids=["blocking", "async"])
def driver(request) -> Callable[..., Driver]:
    return lambda *script, **options: Driver(request.param, list(script), **options)


# What is sent, and what is made of the reply


def test_images_come_with_everything_that_the_headers_say(driver):
    one = driver(npy(), api_key="k-1")
    made = one.call("generate", n=2, seed=7, labels=["cat", 2], priority="high", model=None)
    np.testing.assert_array_equal(made.array, ARRAY)
    assert (made.seeds, made.labels, made.guidance) == ((7, 8), (1, 2), None)
    assert (made.digest, made.variant, made.model) == ("d" * 64, "fp32", "tiny")
    assert made.timing_ms == {"queue": 0.5, "infer": 2.25, "encode": 0.125}
    assert (made.request_id, len(made)) == ("abc123", 2)
    assert one.bodies() == [{"n": 2, "seed": 7, "labels": ["cat", 2], "priority": "high"}]
    request = one.requests[0]
    assert (request.method, str(request.url)) == ("POST", f"{URL}/v1/generate")
    assert request.headers["accept"] == "application/x-npy"
    assert request.headers["authorization"] == "Bearer k-1"


def test_vectors_of_a_model_without_classes(driver):
    reply = npy(np.zeros((1, 3), np.float32))
    del reply.headers["X-MMF-Labels"]
    reply.headers["X-MMF-Seeds"] = "9"
    reply.headers["X-MMF-Guidance"] = "1.5"
    made = driver(reply).call("generate", seed=9, guidance=1.5)
    assert (made.array.dtype, made.array.shape) == (np.float32, (1, 3))
    assert (made.seeds, made.labels, made.guidance) == ((9,), None, (1.5,))


def test_numpy_numbers_arrays_and_ranges_are_written_as_json(driver):
    one = driver(npy())
    one.call("generate", seeds=np.arange(2), labels=range(2), guidance=np.float32(1.5))
    assert one.bodies() == [{"seeds": [0, 1], "labels": [0, 1], "guidance": 1.5}]


@pytest.mark.parametrize("guidance", [float("nan"), object()])
def test_what_json_cannot_hold_is_refused_before_anything_is_sent(driver, guidance):
    one = driver()
    with pytest.raises(RequestError, match="cannot be written as JSON"):
        one.call("generate", guidance=guidance)
    assert one.requests == []


@pytest.mark.parametrize("kind", images.MEDIA_TYPES)
def test_an_image_file_is_asked_for_by_its_media_type(driver, kind):
    media_type = images.MEDIA_TYPES[kind]
    reply = httpx.Response(200, content=b"file", headers={**MADE, "content-type": media_type})
    one = driver(reply)
    file = one.call("encoded", kind, n=16, size=64)
    assert (file.data, file.media_type, file.seeds) == (b"file", media_type, (7, 8))
    assert one.requests[0].headers["accept"] == media_type
    assert one.bodies()[0]["size"] == 64


def test_png_is_the_file_and_nothing_else(driver):
    reply = httpx.Response(200, content=b"file", headers={**MADE, "content-type": "image/png"})
    assert driver(reply).call("png", seed=1) == b"file"


def test_an_unknown_image_format_is_refused_with_those_that_exist(driver):
    with pytest.raises(RequestError, match="'gif': expected one of png, jpeg, webp"):
        driver().call("encoded", "gif")


@pytest.mark.parametrize(
    ("name", "args"), [("generate", ()), ("png", ()), ("model", ()), ("models", ())]
)
def test_a_reply_of_something_else_is_said_to_be_that(driver, name, args):
    page = httpx.Response(200, html="<h1>It works!</h1>")
    with pytest.raises(ServiceError, match="is this the address of an mmf-serve") as caught:
        driver(page).call(name, *args)
    assert str(caught.value).count("\n") == 0


WAY = {"label": "cat", "guidance": 1.5, "steps": 4, "model": "tiny", "priority": "high"}


def test_an_interpolation_has_the_seeds_of_its_ends_and_a_label_a_frame(driver):
    frames = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(3, 4, 4, 1)
    one = driver(npy(frames, **{"X-MMF-Labels": "1,1,1", "X-MMF-Guidance": "1.5,1.5,1.5"}))
    made = one.call("interpolate", 7, np.int64(8), frames=3, **WAY)
    np.testing.assert_array_equal(made.array, frames)
    assert (made.seeds, made.labels, made.guidance) == ((7, 8), (1, 1, 1), (1.5, 1.5, 1.5))
    assert one.bodies() == [{"from": 7, "to": 8, "frames": 3, **WAY}]
    [request] = one.requests
    assert (request.url.path, request.headers["accept"]) == ("/v1/interpolate", "application/x-npy")
    other = driver(npy(frames))
    other.call("interpolate", 7, 8, label=None)
    assert other.bodies() == [{"from": 7, "to": 8}], "the number of frames is the service's"


def test_a_trajectory_has_one_seed_and_label_for_all_its_points(driver):
    points = np.arange(5 * 4 * 4, dtype=np.uint8).reshape(5, 4, 4, 1)
    one = driver(npy(points, **{"X-MMF-Seeds": "7", "X-MMF-Labels": "1"}))
    made = one.call("trajectory", seed=7, **WAY)
    np.testing.assert_array_equal(made.array, points)
    assert (made.seeds, made.labels, len(made)) == ((7,), (1,), 5)
    assert one.bodies() == [{"seed": 7, **WAY}]
    [request] = one.requests
    assert (request.url.path, request.headers["accept"]) == ("/v1/trajectory", "application/x-npy")


def test_models_are_what_the_lists_say(driver):
    described, listed = {"bundle": "d"}, {"object": "list", "data": [{"id": "tiny"}]}
    one = driver(*[httpx.Response(200, json=reply) for reply in (described, described, listed)])
    assert one.call("model") == described
    assert one.call("model", "a b&c") == described
    assert one.call("models") == listed["data"]
    urls = [str(request.url).removeprefix(URL) for request in one.requests]
    assert urls == ["/v1/model", "/v1/model?model=a+b%26c", "/v1/models"]


def test_the_url_of_an_image_names_all_that_decides_it():
    with Client(f"{URL}/behind/a/proxy/") as client:
        digest = "d" * 64
        assert client.image_url(digest, 7, 42) == (
            f"{URL}/behind/a/proxy/v1/images/{digest}/7/42.png"
        )
        assert client.image_url(digest, None, 42, "jpeg", guidance=2, size=64).endswith(
            f"/v1/images/{digest}/-/42.jpg?guidance=2.0&size=64"
        )
        with pytest.raises(ShapeError, match="seed -1"):
            client.image_url(digest, None, -1)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "http://", "http://h/?a=1", ""])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(ConfigError, match="expected http://HOST:PORT"):
        Client(url)


def test_a_key_with_a_line_end_is_refused_without_repeating_it():
    with pytest.raises(ConfigError, match="strip") as caught:
        Client(URL, api_key="secret\n")
    assert "secret" not in str(caught.value)


# Trying again


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
def test_what_may_pass_is_tried_again_with_the_same_seed(driver, status):
    one = driver(error(status), error(status), npy())
    one.call("generate", n=2)
    first, *others = one.bodies()
    assert isinstance(first["seed"], int)
    assert others == [first, first]


@pytest.mark.parametrize(("name", "args"), [("interpolate", (7, 8)), ("trajectory", ())])
def test_ways_are_tried_again_as_they_were_asked_for_and_within_their_deadline(driver, name, args):
    one = driver(error(503, Retry_After_Ms="100"), npy())
    one.call(name, *args, deadline_ms=500)
    first, second = one.bodies()
    assert (first.pop("deadline_ms"), second.pop("deadline_ms")) == (500, 400)
    assert first == second
    assert one.slept == [0.1]
    if name == "trajectory":
        assert isinstance(first["seed"], int)
    refused = driver(error(422, "no_trajectory"))
    with pytest.raises(ServiceError) as caught:
        refused.call(name, *args)
    assert caught.value.code == "no_trajectory"


def test_every_call_draws_a_seed_of_its_own(driver):
    one = driver(npy(), npy())
    one.call("generate")
    one.call("generate")
    first, second = one.bodies()
    assert first["seed"] != second["seed"]


@pytest.mark.parametrize("status", [400, 401, 404, 406, 413, 422, 500, 501])
def test_what_stays_wrong_is_not_tried_again(driver, status):
    one = driver(error(status, "wrong", retry_after="1"))
    with pytest.raises(ServiceError) as caught:
        one.call("generate")
    assert not isinstance(caught.value, BusyError)
    assert (caught.value.status, caught.value.code) == (status, "wrong")
    assert (len(one.requests), one.slept) == (1, [])


@pytest.mark.parametrize(
    ("headers", "expected_s"),
    [
        ({"retry_after_ms": "130", "retry_after": "1"}, 0.13),
        ({"retry_after": "2"}, 2.0),
        ({"retry_after": "0"}, 0.0),
        ({"retry_after_ms": "soon", "retry_after": "3"}, 3.0),
        (
            {
                "retry_after": "Wed, 21 Oct 2026 07:28:10 GMT",
                "date": "Wed, 21 Oct 2026 07:28:00 GMT",
            },
            10.0,
        ),
        (
            {
                "retry_after": "Wed, 21 Oct 2026 07:28:00 GMT",
                "date": "Wed, 21 Oct 2026 07:28:10 GMT",
            },
            0.0,
        ),
    ],
)
def test_what_the_service_says_is_waited_exactly(driver, headers, expected_s):
    one = driver(error(503, **headers), npy())
    one.call("generate")
    assert one.slept == [expected_s]


@pytest.mark.parametrize("said", ["soon", "-1", "nan", "inf", "Wed, 99 Oct 2026"])
def test_what_cannot_be_read_counts_as_not_said(driver, said):
    one = driver(error(503, retry_after=said, retry_after_ms=said), npy())
    one.call("generate")
    assert 0.05 <= one.slept[0] <= 0.1


def test_without_a_word_the_pauses_double_and_are_spread(driver):
    one = driver(*[error(503)] * 8, npy(), max_retries=8)
    one.call("generate")
    longest = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert all(top / 2 <= pause <= top for pause, top in zip(one.slept, longest, strict=True))
    ratios = {round(pause / top, 6) for pause, top in zip(one.slept, longest, strict=True)}
    assert len(ratios) > 1, "there is no spread"


@pytest.mark.parametrize("status", [429, 503])
def test_the_last_refusal_is_raised_when_the_retries_are_used_up(driver, status):
    one = driver(*[error(status, retry_after_ms="250")] * 3, max_retries=2)
    with pytest.raises(BusyError) as caught:
        one.call("generate")
    busy = caught.value
    assert (busy.status, busy.code, busy.retry_after_s) == (status, "overloaded", 0.25)
    assert (busy.message, busy.request_id) == ("it is overloaded", "abc123")
    assert str(busy) == (
        "it is overloaded; try again in 0.25 s, or raise timeout_s (60) or max_retries (2) "
        f"(HTTP {status} from POST {URL}/v1/generate, 3 attempts in 0.5 s, request abc123)"
    )
    assert one.slept == [0.25, 0.25]


def test_a_pause_beyond_the_timeout_is_not_begun(driver):
    one = driver(error(503, retry_after="3"), error(503, retry_after="3"), timeout_s=5.0)
    with pytest.raises(BusyError):
        one.call("generate")
    assert (one.slept, one.now) == ([3.0], 3.0)


def test_each_attempt_may_take_what_is_left_of_the_timeout(driver):
    one = driver(error(503, retry_after="3"), npy(), timeout_s=10.0)
    one.took_s = 1.0
    one.call("generate")
    reads = [request.extensions["timeout"]["read"] for request in one.requests]
    assert reads == [10.0, 6.0]


def test_a_deadline_counts_from_the_call_on_and_not_from_the_retry(driver):
    one = driver(error(503, retry_after_ms="150"), npy())
    one.took_s = 0.02
    one.call("generate", deadline_ms=400)
    assert [body["deadline_ms"] for body in one.bodies()] == [400, 230]


def test_a_retry_that_would_miss_the_deadline_is_not_made(driver):
    one = driver(error(503, retry_after_ms="400"))
    with pytest.raises(BusyError):
        one.call("generate", deadline_ms=400)
    assert one.slept == []


REFUSED = httpx.ConnectError("Connection refused")


@pytest.mark.parametrize(
    "broken",
    [
        REFUSED,
        httpx.ReadError(""),
        httpx.WriteError(""),
        httpx.RemoteProtocolError("Server disconnected without sending a response."),
        httpx.ConnectTimeout(""),
    ],
    ids=lambda e: type(e).__name__,
)
def test_a_connection_that_is_refused_or_breaks_is_tried_again(driver, broken):
    one = driver(broken, broken, npy())
    assert len(one.call("generate", n=2)) == 2
    assert len(one.slept) == 2


def test_an_address_where_nothing_listens_is_named_with_what_to_do(driver):
    one = driver(REFUSED, REFUSED, max_retries=1)
    with pytest.raises(UnreachableError) as caught:
        one.call("model")
    assert str(caught.value) == (
        f"{URL}: Connection refused (2 attempts in {one.now:.1f} s); is mmf-serve running there?"
    )
    assert (caught.value.status, caught.value.code) == (None, "unreachable")


def test_a_reply_that_takes_too_long_ends_the_call(driver):
    one = driver(httpx.ReadTimeout("timed out"), timeout_s=2.0)
    one.took_s = 1.0
    with pytest.raises(UnreachableError, match=r"raise timeout_s \(2\) or ask for less"):
        one.call("generate")
    assert len(one.requests) == 1


# Errors


def test_a_refusal_says_field_code_and_request(driver):
    content = {"error": {"code": "invalid_request", "message": "n: 0 is too few", "field": "n"}}
    reply = httpx.Response(422, json=content, headers={"X-Request-Id": "r-1"})
    with pytest.raises(ServiceError) as caught:
        driver(reply).call("generate", n=0)
    assert str(caught.value) == (
        f"n: 0 is too few (HTTP 422 from POST {URL}/v1/generate, request r-1)"
    )
    assert (caught.value.field, caught.value.message) == ("n", "n: 0 is too few")


def test_a_missing_key_is_asked_for(driver):
    with pytest.raises(ServiceError, match=r"it is unauthorized; pass Client\(url, api_key=…\)"):
        driver(error(401, "unauthorized")).call("generate")


@pytest.mark.parametrize(
    ("content", "message", "code"),
    [
        ('{"error": {"message": "m", "type": "t", "param": "n", "code": null}}', "m", "t"),
        ('{"error": "one\\nline"}', "one line", "http_404"),
        ("<html>nginx</html>", "Not Found", "http_404"),
        ("", "Not Found", "http_404"),
        ("[]", "Not Found", "http_404"),
    ],
)
def test_errors_of_other_formats_and_of_proxies_are_read(driver, content, message, code):
    with pytest.raises(ServiceError) as caught:
        driver(httpx.Response(404, content=content)).call("models")
    assert (caught.value.message, caught.value.code) == (message, code)


# Readiness


def test_ready_is_one_look(driver):
    assert driver(httpx.Response(200, json={})).call("ready") is True
    assert driver(error(503)).call("ready") is False
    assert driver(REFUSED).call("ready") is False
    with pytest.raises(ServiceError, match="HTTP 404"):
        driver(error(404)).call("ready")


def test_wait_ready_looks_until_it_is(driver):
    one = driver(*[REFUSED] * 10, *[error(503, "not_ready")] * 10, httpx.Response(200, json={}))
    one.call("wait_ready", 60.0)
    assert len(one.slept) == 20
    assert max(one.slept) <= 0.25


def test_wait_ready_gives_up_in_time_and_says_why(driver):
    one = driver(*[error(503, "not_ready_starting")] * 100)
    with pytest.raises(BusyError, match=r"it is not_ready_starting; .* timeout_s \(2\) \("):
        one.call("wait_ready", 2.0)
    assert 1.7 < one.now <= 2.0


# Streams


def event(name: str, **fields: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps(fields)}\n\n".encode()


def image_event(index: int) -> bytes:
    png = base64.b64encode(images.encode(ARRAY[index])).decode()
    return event("image", index=index, seed=7 + index, label=index, png_base64=png)


class Chunks(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body in pieces of a few bytes, with an error at its end if there is one."""

    def __init__(self, content: bytes, size: int, end: Exception | None = None) -> None:
        self.pieces = [content[k : k + size] for k in range(0, len(content), size)]
        self.end = end
        self.closed = False

    def __iter__(self):
        yield from self.pieces
        if self.end is not None:
            raise self.end

    async def __aiter__(self):
        for piece in self:
            yield piece

    def close(self) -> None:
        self.closed = True

    async def aclose(self) -> None:
        self.close()


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_stream_gives_every_image_however_its_bytes_are_cut(driver, size):
    content = b": hello\n\n" + image_event(1) + image_event(0) + event("done", n=2)
    body = Chunks(content, size)
    one = driver(error(503), httpx.Response(200, stream=body))
    found = one.call("stream", n=2, seed=7)
    assert [(piece.index, piece.seed, piece.label) for piece in found] == [(1, 8, 1), (0, 7, 0)]
    for piece in found:
        np.testing.assert_array_equal(piece.image, ARRAY[piece.index])
    assert one.requests[0].headers["accept"] == "text/event-stream"
    assert body.closed
    assert len(one.requests) == 2, "until it begins, a stream is tried again like anything else"


def test_a_stream_of_vectors(driver):
    content = event("sample", index=0, seed=1, sample=[0.5, -1.0]) + event("done")
    reply = httpx.Response(200, content=content, headers={"X-MMF-Bundle": "d" * 64})
    (piece,) = driver(reply).call("stream")
    assert (piece.image.dtype, piece.image.tolist()) == (np.float32, [0.5, -1.0])
    assert (piece.label, piece.guidance, piece.digest) == (None, None, "d" * 64)


@pytest.mark.parametrize(
    ("end", "why"), [(None, "the connection ended;"), (httpx.ReadError("reset"), "ended: reset;")]
)
def test_a_stream_that_ends_early_is_an_error_that_says_how_far_it_came(driver, end, why):
    one = driver(httpx.Response(200, stream=Chunks(image_event(0), 50, end)))
    with pytest.raises(ServiceError, match=r"after 1 images: .* \(7 \+ index\)") as caught:
        one.call("stream", n=2, seed=7)
    assert why in str(caught.value)
    assert len(one.requests) == 1


def test_an_error_in_a_stream_is_raised_with_its_code(driver):
    broken = event("error", error={"code": "internal_error", "message": "the engine failed"})
    one = driver(httpx.Response(200, content=image_event(0) + broken))
    with pytest.raises(ServiceError, match="the engine failed") as caught:
        one.call("stream", seeds=[7, 8])
    assert caught.value.code == "internal_error"


def test_an_image_that_cannot_be_read_ends_the_stream(driver):
    one = driver(httpx.Response(200, content=event("image", index=0, seed=1, png_base64="AAAA")))
    with pytest.raises(ServiceError, match="cannot be read"):
        one.call("stream")


async def leave(pieces: Any) -> None:
    await anext(pieces)
    await pieces.aclose()


def test_leaving_a_stream_closes_the_connection(driver):
    body = Chunks(image_event(0) + image_event(1), 10)
    one = driver(httpx.Response(200, stream=body))
    pieces = one.client.stream(n=2)
    if one.blocking:
        next(pieces)
        pieces.close()
    else:
        asyncio.run(leave(pieces))
    assert body.closed


def test_events_may_have_many_lines_comments_and_carriage_returns():
    content = b"data: a\r\ndata:b\r\n\r\n:x\n\nevent: e\n\ndata\n\n"
    content += b"event: e\nid: 1\ndata: \xc3\xa9\n\ndata: cut"
    assert list(EventReader().feed(content)) == [("message", "a\nb"), ("message", ""), ("e", "é")]


# The package


def test_importing_the_client_needs_neither_httpx_nor_torch_nor_a_stage():
    code = (
        "import sys, mmf_deploy.client\n"
        "heavy = {'torch', 'httpx', 'onnxruntime', 'fastapi', 'mmf_deploy.serve'}\n"
        "print(*heavy & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == ""


def test_without_httpx_the_extra_is_named(tmp_path):
    code = (
        "import sys; sys.modules['httpx'] = None\n"
        "from mmf_deploy.client import Client\n"
        "try: Client('http://127.0.0.1:1')\n"
        "except Exception as e: print(type(e).__name__, e)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.startswith("DependencyError ")
    assert 'pip install "mmf-deploy[client]"' in done.stdout

"""What no honest client sends: refused at once, in the words of its protocol, telling nothing.

Everything goes over real connections, because half of it is not even HTTP.
"""

from __future__ import annotations

import asyncio
import datetime
import gc
import gzip
import json
import logging
import math
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import yaml
from mmf_deploy.serve.api_keys import KeyRing
from mmf_deploy.serve.front import Front
from mmf_deploy.serve.key_file import digest_of
from mmf_deploy.serve.service import Service

from mmf_deploy import bundle
from mmf_deploy.engines.base import open_engine
from mmf_deploy.spec import SampleSpec
from tests.stepped import write_stepped_bundle

from .live import GoneError, Live, Reply, bounded, connected, live, request, wait_until

AT_ONCE_S = 0.5
TRIES = 3
"""A busy machine is slow now and then; a service that is slow is so every time."""

GUIDED = SampleSpec(shape=(3, 4, 4), classes=2, class_names=("cat", "dog"), guidance=(1.0, 4.0))
SEED = {"name": "seed", "shape": [1], "datatype": "INT64", "data": [1]}
POSTS: dict[str, tuple[str, dict[str, Any]]] = {
    "native": ("/v1/generate", {"seed": 1}),
    "interpolate": ("/v1/interpolate", {"from": 1, "to": 2, "frames": 2, "format": "json"}),
    "trajectory": ("/v1/trajectory", {"seed": 1, "format": "json"}),
    "openai": ("/v1/images/generations", {"prompt": "7", "seed": 1}),
    "kserve": ("/v2/models/digits/infer", {"inputs": [SEED]}),
    "index": ("/v2/repository/index", {"ready": True}),
}
every_family = pytest.mark.parametrize("family", POSTS)

# what would tell of the host, or of what the service is made of
TELLS = ("/root", "/work", "/home", "/tmp", "/usr", "site-packages", "Traceback", "<class",
         "object at 0x", ".py", "pydantic", "uvicorn", "starlette", "root:")  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A service to be treated badly."""

    live: Live
    secrets: tuple[str, ...]

    def send(self, raw: bytes) -> Reply:
        """The reply to some bytes, and the connection closed."""

        async def exchange() -> Reply:
            async with connected(self.live.port) as wire:
                await wire.send(raw)
                return await wire.reply()

        return bounded(exchange())

    def post(self, family: str, body: Any = None, path: str | None = None, **headers) -> Reply:
        """A body to a family's route; its own good one if none is given."""
        return self.send(_post(family, body, path, headers))

    def refused(self, raw: bytes, *statuses: int) -> Reply:
        """The reply to a request that must be refused: soon, as its family does, discreetly."""
        took = []
        for _ in range(TRIES):
            began = time.monotonic()
            reply = self.send(raw)
            took.append(time.monotonic() - began)
            if took[-1] < AT_ONCE_S:
                break
        assert min(took) < AT_ONCE_S, f"refused only after {took} s"
        assert reply.status in statuses, f"{reply.status}: {reply.body[:300]!r}"
        self.tells_nothing(reply)
        assert reply.headers["content-type"] == "application/json"
        message = _message(raw.split(b" ", 2)[1], reply.json())
        assert "\n" not in message
        assert 5 < len(message) < 600, message
        return reply

    def refused_post(self, family: str, body: Any, *statuses: int, path=None, **headers) -> Reply:
        return self.refused(_post(family, body, path, headers), *statuses)

    def tells_nothing(self, reply: Reply) -> None:
        said = f"{reply.headers} {reply.body.decode('utf-8', 'replace')}"
        for tell in (*TELLS, *self.secrets):
            assert tell not in said, f"{tell} in {said[:500]}"


def _post(family: str, body: Any, path: str | None, headers: dict[str, str]) -> bytes:
    route, good = POSTS[family]
    if not isinstance(body, bytes):
        body = json.dumps(good if body is None else body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return request("POST", path or route, body, named)


def _message(path: bytes, body: Any) -> str:
    """What an error says, if it has the form of its path's protocol."""
    assert set(body) == {"error"}
    error = body["error"]
    if path.startswith(b"/v2"):
        return error
    if path.startswith((b"/v1/images/generations", b"/v1/models")):
        assert set(error) == {"message", "type", "param", "code"}
    else:
        assert set(error) == {"code", "message", "field"}
    return error["message"]


def _engine(path, variant=None):
    return open_engine("onnxruntime", bundle.load(path), variant)


@pytest.fixture(scope="module")
def target(tiny_bundle, make_tiny_bundle, tmp_path_factory) -> Iterator[Target]:
    """A service of two models; at the end it must be as it was."""
    guided = make_tiny_bundle(GUIDED)
    stepped = write_stepped_bundle(tiny_bundle, tmp_path_factory.mktemp("stepped") / "bundle")
    service = Service(
        {
            "digits": lambda: [_engine(stepped), _engine(stepped, "fp32-4step")],
            "guided": lambda: [_engine(guided)],
        }
    )
    with live(service) as server:
        yield Target(server, (str(stepped), str(guided)))
        state = server.server.server_state
        wait_until(lambda: not state.tasks and not state.connections, "some requests never ended")
        assert service.intake.busy == service.encoder.waiting == 0
        assert service.metrics.registry.get_sample_value("mmf_requests_in_flight") == 0


@pytest.fixture(autouse=True)
def nothing_is_reported(caplog):
    """Bad requests are no errors of the service: none may get as far as that."""
    yield
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR] == []


@every_family
def test_an_honest_request_is_answered(target, family):
    assert target.post(family).status == 200


# Who comes in

KEYS = {"right": "mmf_right", "old": "mmf_old", "stolen": "mmf_stolen"}
DOORS = [("POST", path) for path, _ in POSTS.values()] + [
    ("GET", path)
    for path in ("/v1/model", "/v1/models", "/v1/models/digits", "/v1/images/0/0/1.png", "/docs",
                 "/openapi.json", "/v2", "/v2/models/digits",
                 "/v2/models/stats", "/no/such/path")
]  # fmt: skip


@pytest.fixture(scope="module")
def locked(tiny_bundle, tmp_path_factory) -> Iterator[tuple[Target, KeyRing]]:
    file = tmp_path_factory.mktemp("keys") / "keys.yaml"
    entries = [{"name": name, "sha256": digest_of(key).hex()} for name, key in KEYS.items()]
    entries[1]["expires"] = datetime.date(2020, 1, 31)
    file.write_text(yaml.safe_dump(entries))
    file.chmod(0o600)
    ring = KeyRing.read(file)
    with live(Service({"digits": lambda: [_engine(tiny_bundle)]}), Front(keys=ring)) as server:
        yield Target(server, (str(tiny_bundle), str(file), *KEYS.values(), "mmf_")), ring


@pytest.mark.parametrize(("method", "path"), DOORS)
def test_without_a_valid_key_every_door_is_closed(locked, method, path):
    target, _ = locked
    for headers in (
        {},
        {"authorization": "Bearer mmf_wrong"},
        {"authorization": "Basic mmf_right"},
        {"x-api-key": "mmf_old"},
        {"x-api-key": "mmf_right", "authorization": "Bearer mmf_wrong"},
        {"x-api-key": "x" * 60_000},
        {"cookie": "x-api-key=mmf_right"},
    ):
        # nothing of the body is waited for
        raw = request(method, path, b"", {"content-length": "100000000", **headers})
        reply = target.refused(raw, 401)
        assert reply.headers["www-authenticate"] == "Bearer"
    target.refused(request(method, f"{path}?api_key=mmf_right&x-api-key=mmf_right"), 401)


def test_a_stolen_key_opens_nothing_once_it_is_out_of_the_file(locked):
    target, ring = locked
    door = request("GET", "/v1/models", headers={"x-api-key": "mmf_stolen"})
    assert target.send(door).status == 200
    entries = [e for e in yaml.safe_load(ring.path.read_text()) if e["name"] != "stolen"]
    ring.path.write_text(yaml.safe_dump(entries))
    ring.path.chmod(0o600)
    assert target.live.call(ring.reload)
    target.refused(door, 401)
    assert target.send(door.replace(b"stolen", b"right")).status == 200


# Names and addresses

TRAVERSALS = [
    "../../../../etc/passwd",
    "%2e%2e%2f%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "..%2f..%2f..%2fetc%2fpasswd",
    "%252e%252e%252fetc%252fpasswd",
    "..\\..\\etc\\passwd",
    "....//....//etc/passwd",
    "%c0%ae%c0%ae/etc/passwd",
    "/etc/passwd",
    "file:///etc/passwd",
    "digits/../../../etc/passwd",
    "digits%00.png",
    "..;/etc/passwd",
    "~root/.ssh/id_rsa",
    "manifest.json",
    "model.fp32.onnx",
]


@pytest.mark.parametrize("name", TRAVERSALS)
def test_a_path_leads_nowhere_but_to_routes(target, name):
    for base in ("/", "/v1/models/", "/v1/images/", "/v2/models/", "/docs/", "/metrics/"):
        target.refused(request("GET", base + name), 404)
    digest = target.live.service.model().loaded.digest
    target.refused(request("GET", f"/v1/images/{digest}/{name}/1.png"), 404, 422)
    target.refused(request("GET", f"/v1/images/{digest}/0/{name}"), 404, 422)
    target.refused_post("kserve", None, 404, path=f"/v2/models/{name}/infer")
    target.refused_post("kserve", None, 404, path=f"/v2/models/digits/versions/{name}/infer")
    target.refused(request("GET", f"/v1/model?model={name}"), 404)


NAMES = [*TRAVERSALS, "", " ", "\0", "digits\0", "DIGITS", "digits\n", "x" * 900_000, "é" * 40_000,
         "{}", "${HOME}", "$(id)", "'; drop table models; --", "<script>alert(1)</script>",
         "\u202egnp", "__class__", "0"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name[:20]))
def test_a_model_that_does_not_exist_is_404_whatever_it_is_called(target, name):
    for family in ("native", "interpolate", "trajectory", "openai"):
        body = {**POSTS[family][1], "model": name}
        reply = target.refused_post(family, body, 404)
        assert reply.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("label", NAMES[:-1], ids=lambda name: ascii(name[:20]))
def test_a_class_that_does_not_exist_is_named_back_in_short(target, label):
    asked = {"native": "labels", "interpolate": "label", "openai": "class_label"}
    for family, name in asked.items():
        body = {**POSTS[family][1], name: label, "model": "guided"}
        target.refused_post(family, body, 400 if family == "openai" else 422)
    if len(label) < 1000:
        labels = {"name": "label", "shape": [1], "datatype": "BYTES", "data": [label]}
        target.refused_post("kserve", {"inputs": [SEED, labels]}, 400,
                            path="/v2/models/guided/infer")  # fmt: skip


@every_family
def test_very_long_addresses_and_headers_change_nothing(target, family):
    long = "x" * 60_000
    path, _ = POSTS[family]
    target.refused_post(family, None, 404, path=f"{path}/{long}")
    assert target.post(family, path=f"{path}?{long}").status in (200, 404)
    assert target.post(family, path=f"{path}?{'a=b&' * 10_000}").status in (200, 404)
    third = "x" * 20_000
    assert target.post(family, x_junk=third, cookie=third, x_request_id=third).status == 200
    reply = target.post(family, user_agent=third, traceparent=third, forwarded=third)
    assert reply.status == 200
    assert third.encode() not in str(reply.headers).encode() + reply.body
    assert target.post(family, x_junk=long, cookie=long, x_request_id=long).status == 431


def test_headers_that_are_read_may_be_long_and_senseless(target):
    ranges = ",".join(f"a{k}/b;q=0.{k}" for k in range(4000))
    target.refused_post("native", None, 406, accept=ranges)
    target.refused_post("native", None, 406, accept="," * 60_000)
    target.refused_post("native", None, 406, accept=f"image/{'x' * 60_000}")
    for length in ("9" * 5000, "-1", "1e3", "٣", "0x10", " ", "1,2"):
        named = {"inference_header_content_length": length.encode().decode("latin-1")}
        target.refused_post("kserve", None, 400, **named)
    for coding in ("x" * 60_000, "gzip, gzip", "br", "gzip\t", "deflate"):
        target.refused_post("kserve", None, 400, content_encoding=coding)
    digest = target.live.service.model().loaded.digest
    conditions = {"if-none-match": '"x",' * 15_000, "range": "bytes=0-0"}
    reply = target.send(request("GET", f"/v1/images/{digest}/0/1.png", b"", conditions))
    assert reply.status == 200


# Bodies


def _nested(levels: int) -> list[bytes]:
    return [
        b"[" * levels,
        b"[" * levels + b"]" * levels,
        b'{"a":' * levels,
        b'{"a":' * levels + b"1" + b"}" * levels,
        b"[{" * levels,
    ]


@every_family
def test_json_of_100_000_levels_is_400(target, family):
    inside = {"native": b'{"labels":%s}', "interpolate": b'{"label":%s}',
              "trajectory": b'{"label":%s}',
              "openai": b'{"prompt":"7","class_label":%s}', "index": b'{"ready":%s}',
              "kserve": b'{"inputs":[{"name":"seed","shape":[1],"datatype":"INT64","data":%s}]}',
              }  # fmt: skip
    for deep in _nested(100_000):
        target.refused_post(family, deep, 400)
        target.refused_post(family, inside[family] % deep, 400)
    for deep in _nested(150):  # which a parser may take
        target.refused_post(family, inside[family] % deep, 400, 422)


@pytest.mark.parametrize(
    "number", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400", "1e39", '"NaN"', "1e-400", "true"]
)
def test_guidance_that_is_no_number_of_the_range_is_refused(target, number):
    raw = b'{"model":"guided","seed":1,"guidance":%s}' % number.encode()
    target.refused_post("native", raw, 422)
    target.refused_post("interpolate", raw[:-1] + b',"from":1,"to":2}', 422)
    target.refused_post(
        "openai",
        b'{"model":"guided","prompt":"cat","guidance_scale":%s}' % number.encode(),
        400,
    )
    inputs = json.dumps(SEED)[:-1].encode() + b'},{"name":"guidance","shape":[1],"datatype":"FP32"'
    target.refused_post("kserve", b'{"inputs":[%s,"data":[%s]}]}' % (inputs, number.encode()), 400,
                        path="/v2/models/guided/infer")  # fmt: skip


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e38, -0.0, 5e-324])
@pytest.mark.parametrize(("datatype", "code"), [("FP32", "<f"), ("FP64", "<d")])
def test_binary_guidance_out_of_range_is_refused(target, value, datatype, code):
    content = struct.pack(code, value)
    about = {"name": "guidance", "shape": [1], "datatype": datatype,
             "parameters": {"binary_data_size": len(content)}}  # fmt: skip
    body = json.dumps({"inputs": [SEED, about]}).encode()
    target.refused_post("kserve", body + content, 400, path="/v2/models/guided/infer",
                        inference_header_content_length=str(len(body)))  # fmt: skip


def test_ten_thousand_images_are_refused_in_every_family(target):
    many = list(range(10_000))
    target.refused_post("native", {"seeds": many}, 422)
    target.refused_post("native", {"seed": 1, "n": 10_000}, 422)
    target.refused_post("native", {"labels": [0] * 10_000}, 422)
    target.refused_post("interpolate", {"from": 1, "to": 2, "frames": 10_000}, 422)
    target.refused_post("openai", {"prompt": "7", "n": 10_000}, 400)
    target.refused_post("kserve", {"inputs": [{**SEED, "shape": [10_000], "data": many}]}, 400)
    target.refused_post("kserve", {"inputs": [{**SEED, "shape": [10**9] * 8}]}, 400)
    target.refused_post("kserve", {"inputs": [SEED] * 10_000}, 400)
    packed = struct.pack("<10000q", *many)
    about = {**SEED, "shape": [10_000], "parameters": {"binary_data_size": len(packed)}}
    del about["data"]
    body = json.dumps({"inputs": [about]}).encode()
    target.refused_post("kserve", body + packed, 400,
                        inference_header_content_length=str(len(body)))  # fmt: skip


@every_family
def test_a_body_full_of_mistakes_is_refused_without_listing_them(target, family):
    unknown = {f"a{k}": 1 for k in range(60_000)}
    reply = target.refused_post(family, {**POSTS[family][1], **unknown}, 400, 422)
    assert _message(POSTS[family][0].encode(), reply.json()).startswith("60000 fields or elements")
    few = {f"a{k}": 1 for k in range(900)}
    reply = target.refused_post(family, {**POSTS[family][1], **few}, 400, 422)
    assert "a0" in _message(POSTS[family][0].encode(), reply.json())


@pytest.mark.parametrize(
    ("seeds", "wrong"),
    [([""] * 250_000, 0), ([7] * 300 + [None] * 150_000, 300), ([1, -1] * 140_000, 1),
     ([3, 2**63], 1), ([5, 1.5, True], 1), ([[]] * 250_000, 0)],
)  # fmt: skip
def test_of_many_wrong_seeds_the_first_is_named(target, seeds, wrong):
    reply = target.refused_post("native", {"seeds": seeds}, 422)
    assert reply.json()["error"]["field"] == f"seeds.{wrong}"


@pytest.mark.parametrize("digits", [19, 20, 400, 4299, 4300, 4301, 100_000])
@pytest.mark.parametrize("sign", ["", "-"])
def test_integers_of_any_length_are_refused(target, sign, digits):
    number = (sign + "9" * digits).encode()
    fields = {
        "native": ["n", "seed", "seeds", "labels", "steps", "size", "deadline_ms", "quality"],
        "interpolate": ["from", "to", "frames", "label"],
        "trajectory": ["seed", "label", "steps", "fps"],
        "openai": ["n", "seed", "class_label", "steps", "output_compression"],
    }
    for family, names in fields.items():
        for name in names:
            if name == "deadline_ms" and not sign and digits < 400:
                continue  # a very long time
            body = {k: v for k, v in POSTS[family][1].items() if k != name}
            raw = b'%s,"%s":%s}' % (json.dumps(body).encode()[:-1], name.encode(), number)
            raw = raw.replace(b"{,", b"{")
            target.refused_post(family, raw, 400, 422)
    for body in (
        b'{"inputs":[{"name":"seed","shape":[1],"datatype":"INT64","data":[%s]}]}',
        b'{"inputs":[{"name":"seed","shape":[1],"datatype":"UINT64","data":[%s]}]}',
        b'{"inputs":[{"name":"seed","shape":[1],"datatype":"FP64","data":[%s]}]}',
        b'{"inputs":[{"name":"seed","shape":[%s],"datatype":"INT64","data":[1]}]}',
        b'{"inputs":[{"name":"seed","shape":[1],"datatype":"INT64",'
        b'"parameters":{"binary_data_size":%s}}]}',
    ):
        target.refused_post("kserve", body % number, 400)


@every_family
def test_the_content_type_does_not_matter_and_the_content_does(target, family):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "image/png", "x" * 1000,
                 "multipart/form-data", "application/json; charset=utf-16"):  # fmt: skip
        assert target.post(family, content_type=kind).status == 200
    good = json.dumps(POSTS[family][1])
    for body in (
        b"seed=1&n=2",
        b'--x\r\nContent-Disposition: form-data; name="n"\r\n\r\n1\r\n--x--\r\n',
        b"<?xml version='1.0'?><!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><x>&e;</x>",
        b"\x80\x04\x95\x10\x00\x00\x00.",
        good.encode("utf-16"),
        good.encode("utf-32"),
        b"\xef\xbb\xbf" + good.encode(),
        b"\0",
        b"\0" * 1000 + good.encode(),
        good.encode() + b"\0",
        good.encode()[:-1],
        b"\xff" * 1000,
        good.encode().replace(b'"', b"'"),
        b'{"\xff\xfe": 1}',
        b'{"n": "\xc3\x28"}',
        b'{"model": "\\ud800"}',
        gzip.compress(good.encode(), mtime=0),
    ):
        target.refused_post(family, body, 400)


@every_family
def test_null_bytes_and_controls_in_strings_are_only_strings(target, family):
    for name in ("\0", "n\0", "\x1b[2J", "a\r\nX-Injected: 1"):
        reply = target.refused_post(family, {name: 1}, 400, 422)
        assert "x-injected" not in reply.headers
    target.refused_post(family, b'{"a\0b": 1}', 400)


def test_of_two_keys_with_one_name_the_last_one_holds(target):
    reply = target.post("native", b'{"n":100000,"n":2,"seed":1}')
    assert len(reply.json()["images"]) == 2
    target.refused_post("native", b'{"n":2,"n":100000,"seed":1}', 422)
    assert len(target.post("openai", b'{"prompt":"7","n":99,"n":2}').json()["data"]) == 2
    target.refused_post("openai", b'{"prompt":"7","n":2,"n":99}', 400)
    seeds = b'{"name":"seed","shape":[1],"datatype":"INT64","data":[1],"data":[7]}'
    body = b'{"inputs":[],"inputs":[%s],"outputs":[{"name":"seed"}]}' % seeds
    assert target.post("kserve", body).json()["outputs"][0]["data"] == [7]
    target.refused_post("kserve", b'{"inputs":[%s],"inputs":[]}' % seeds, 400)


# Sizes


@every_family
def test_a_body_of_100_megabytes_that_is_announced_is_refused_before_it_comes(target, family):
    path, _ = POSTS[family]
    for length in ("100000000", str(2**63 - 1)):
        reply = target.refused(request("POST", path, b"", {"content-length": length}), 413)
        assert reply.headers["connection"] == "close"


@every_family
def test_a_body_of_100_megabytes_that_is_not_announced_is_cut_off(target, family):
    chunk = b"%x\r\n%s\r\n" % (1 << 16, b" " * (1 << 16))

    async def pour() -> tuple[Reply, int]:
        sent = 0
        async with connected(target.live.port) as wire:
            await wire.send(request("POST", POSTS[family][0], b"",
                                    {"transfer-encoding": "chunked"}))  # fmt: skip
            reply = asyncio.create_task(wire.reply())
            while not reply.done() and sent < 100 << 20:
                try:
                    await wire.send(chunk)
                except GoneError:
                    break
                sent += 1 << 16
                await asyncio.sleep(0)
            return await reply, sent

    reply, sent = bounded(pour())
    assert reply.status == 413
    target.tells_nothing(reply)
    _message(POSTS[family][0].encode(), reply.json())
    assert sent < 32 << 20, "what buffers hold, not what a client has"


def test_a_body_where_none_belongs_is_refused_too(gated):
    with live(Service({"digits": lambda: [gated]})) as server:
        target = Target(server, (str(gated.bundle.path),))
        path = f"/v1/images/{server.service.model().loaded.digest}/0/1.png"
        assert target.send(request("GET", path, b"junk")).status == 200
        gated.shut()
        try:  # nobody waits for the image
            target.refused(request("GET", path, b"", {"content-length": "100000000"}), 413)
        finally:
            gated.gate.set()
        assert target.send(request("GET", path)).status == 200
        gc.collect()  # tasks that fail unheard are reported when they are collected


def test_what_grows_when_it_is_unpacked_is_refused(target):
    bomb = zlib.compressobj(1, zlib.DEFLATED, 31)
    packed = b"".join(bomb.compress(bytes(1 << 20)) for _ in range(128)) + bomb.flush()
    assert len(packed) < 1 << 20
    target.refused_post("kserve", packed, 413, content_encoding="gzip")
    target.refused_post(
        "kserve", gzip.compress(packed, mtime=0), 400, content_encoding="gzip, gzip"
    )
    good = gzip.compress(json.dumps(POSTS["kserve"][1]).encode(), mtime=0)
    assert target.post("kserve", good, content_encoding="gzip").status == 200
    for wrong in (good[:-1], good + b"x", good + good, b"", b"\x1f\x8b", good[:20] + good[21:]):
        target.refused_post("kserve", wrong, 400, content_encoding="gzip")
    for family in ("native", "interpolate", "openai"):
        target.refused_post(family, packed, 400, content_encoding="gzip")


# What is not quite HTTP


def closed_with(target: Target, raw: bytes) -> bytes:
    """Everything that comes back until the server closes."""

    async def exchange() -> bytes:
        async with connected(target.live.port) as wire:
            try:
                await wire.send(raw)
            except GoneError:
                return b""
            return await wire.closed()

    return bounded(exchange())


@every_family
@pytest.mark.parametrize(
    "lines",
    [
        "content-length: -1",
        "content-length: +2",
        "content-length: 2x",
        "content-length: 1e3",
        "content-length: 0x2",
        "content-length: 99999999999999999999999999",
        "content-length: 2, 3",
        "content-length: 2\r\ncontent-length: 3",
        "content-length: 2\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked, identity",
        "transfer-encoding: chunked\r\n\r\nzz",
        "transfer-encoding: chunked\r\n\r\n-1",
        "transfer-encoding: chunked\r\n\r\nfffffffffffffffff",
        "x\0y: 1",
        "x: a\0b",
        " folded",
        "no colon",
        ": nameless",
    ],
)
def test_a_length_or_header_that_makes_no_sense_ends_the_connection(target, family, lines):
    path, _ = POSTS[family]
    raw = f"POST {path} HTTP/1.1\r\nhost: x\r\n{lines}\r\n\r\n{{}}\r\n\r\n".encode()
    said = closed_with(target, raw)
    assert said.startswith(b"HTTP/1.1 400 ")
    assert said.count(b"HTTP/1.1") == 1, "bytes of a body are not taken for a second request"
    target.tells_nothing(Reply(400, {}, said))


@pytest.mark.parametrize(
    "raw",
    [
        b"\0" * 100 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"FROBNICATE / HTTP/1.1\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nhost: x\r\n\r\n",
        b"CONNECT example.org:443 HTTP/1.1\r\n\r\n",
        b"GET http:// HTTP/1.1\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n",
        b"x" * 10_000 + b"\r\n\r\n",
    ],
    ids=lambda raw: ascii(raw[:16]),
)
def test_what_is_no_request_gets_a_short_answer(target, raw):
    said = closed_with(target, raw + b"GET /nothing HTTP/1.1\r\nconnection: close\r\n\r\n")
    assert said.startswith((b"HTTP/1.1 400", b"HTTP/1.1 404"))
    target.tells_nothing(Reply(400, {}, said))
    assert len(said) < 2000


@every_family
def test_bytes_that_are_no_utf8_in_addresses_and_headers_do_no_harm(target, family):
    path, _ = POSTS[family]
    for odd in ("%ff%fe", "%00", "%0d%0aX-Injected:%201", "%ed%a0%80", "%", "%zz", "%u0041"):
        reply = target.refused_post(family, None, 404, path=f"{path}/{odd}")
        assert "x-injected" not in reply.headers
        assert target.post(family, path=f"{path}?{odd}={odd}").status == 200
    headers = dict.fromkeys(("cookie", "x-request-id", "traceparent", "host"), "\xff\xfe\x80")
    reply = target.post(family, **headers)
    assert reply.status == 200
    assert "\xff" not in str(reply.headers)


@every_family
def test_requests_in_one_packet_are_answered_in_order(target, family):
    async def pipeline() -> list[int]:
        async with connected(target.live.port) as wire:
            bad = _post(family, b"{", None, {})
            await wire.send(_post(family, None, None, {}) + bad + _post(family, None, None, {}))
            return [(await wire.reply()).status for _ in range(3)]

    assert bounded(pipeline()) == [200, 400, 200]


@every_family
@pytest.mark.parametrize(
    "garbage", [b"\0\xff" * 50, b"GET / HTTP/1.1\r\nx\0: 1\r\n\r\n", b"}" * 99]
)
def test_garbage_behind_a_good_request_ends_that_connection_alone(target, family, garbage):
    said = closed_with(target, _post(family, None, None, {}) + garbage)
    assert said.startswith((b"HTTP/1.1 200", b"HTTP/1.1 400"))
    assert target.post(family).status == 200


@every_family
@pytest.mark.parametrize("to", ["h2c", "websocket", "TLS/1.0"])
def test_an_offer_to_speak_something_else_costs_nobody_his_body_in_silence(target, family, to):
    headers = {"connection": "Upgrade", "upgrade": to}
    reply = target.post(family, **headers)
    if reply.status == 400:
        assert "Upgrade" in _message(POSTS[family][0].encode(), reply.json())
    else:  # with another parser below
        assert reply.status == 200
        if family == "native":
            assert reply.json()["images"][0]["seed"] == 1
    assert target.send(request("GET", "/v1/models", headers=headers)).status == 200


def test_clients_that_never_finish_hold_up_nobody(target):
    async def siege() -> None:
        wires = [connected(target.live.port) for _ in range(60)]
        opened = [await wire.__aenter__() for wire in wires]
        raws = [_post(list(POSTS)[k % len(POSTS)], None, None, {}) for k in range(len(opened))]
        try:
            for k, (wire, raw) in enumerate(zip(opened, raws, strict=True)):
                await wire.send(raw[: (0, 1, 20, len(raw) // 2, len(raw) - 1)[k // 5 % 5]])
            for _ in range(3):
                for family in POSTS:
                    began = time.monotonic()
                    reply = await asyncio.to_thread(target.post, family)
                    assert reply.status == 200
                    assert time.monotonic() - began < 5
            for k, (wire, raw) in enumerate(zip(opened, raws, strict=True)):
                await wire.send(raw[(0, 1, 20, len(raw) // 2, len(raw) - 1)[k // 5 % 5] :])
            assert {(await wire.reply()).status for wire in opened} == {200}
        finally:
            for wire in wires:
                await wire.__aexit__(None, None, None)

    bounded(siege(), 40)

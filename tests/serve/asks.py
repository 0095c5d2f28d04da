"""Requests of every kind at random, and what a reply to each must hold."""

from __future__ import annotations

import base64
import gzip
import io
import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmf_deploy import images
from mmf_deploy.noise import MAX_SEED, gaussian_batch, spherical
from mmf_deploy.spec import SampleSpec

from .live import Reply, request

CLASSES = 10


@dataclass(frozen=True)
class Wanted:
    """What a good request asks for: a label of None is the seed's own."""

    seeds: list[int]
    labels: list[int] | None = None
    guidance: float = 1.0
    toward: int | None = None  # an interpolation from the only seed to this one
    frames: int = 0

    def noise(self, spec: SampleSpec) -> NDArray[np.float32]:
        if self.toward is None:
            return gaussian_batch(self.seeds, spec.shape)
        one, other = gaussian_batch([self.seeds[0], self.toward], spec.shape)
        steps = [k / (self.frames - 1) for k in range(self.frames)]
        return np.stack([spherical(one, other, step) for step in steps])

    def values(self, spec: SampleSpec, formula: Callable[..., Any]) -> NDArray[Any]:
        """What the tiny model makes of it, by numpy."""
        noise = self.noise(spec)
        label = np.array(self.all_labels(len(noise))) if spec.conditional else None
        guidance = np.full(len(noise), self.guidance, np.float32) if spec.guided else None
        sample = formula(spec, noise, label, guidance)
        return images.to_uint8(sample) if spec.is_image else sample

    def all_labels(self, count: int) -> list[int]:
        if self.labels is not None:
            return self.labels
        seeds = self.seeds if self.toward is None else self.seeds * count
        return [seed % CLASSES for seed in seeds]


Decode = Callable[[Reply], NDArray[Any]]


@dataclass(frozen=True)
class Ask:
    """A request.

    Attributes:
        raw: all its bytes.
        head: how many of them are its head.
        decode: the values in a good reply, as the spec has them; None if nothing is made.
        wanted: what it asks for; only then it may meet an overload or an engine that fails.
        allowed: statuses of replies, apart from these two.
        stream: whether the reply is events.
        closing: whether the connection is closed after the reply.
    """

    kind: str
    raw: bytes
    head: int
    wanted: Wanted | None = None
    decode: Decode | None = None
    allowed: tuple[int, ...] = (200,)
    stream: bool = False
    closing: bool = False

    @property
    def family(self) -> str:
        path = self.raw.split(b" ", 2)[1]
        if path.startswith(b"/v2"):
            return "kserve"
        return "openai" if path.startswith((b"/v1/images/gen", b"/v1/models")) else "native"


def _ask(kind: str, method: str, path: str, body: Any = b"", **more: Any) -> Ask:
    headers = more.pop("headers", None)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    raw = request(method, path, content, headers)
    return Ask(kind, raw, raw.index(b"\r\n\r\n") + 4, **more)


def pixels(encoded: bytes) -> NDArray[np.uint8]:
    found = np.asarray(Image.open(io.BytesIO(encoded)))
    return found[:, :, None] if found.ndim == 2 else found


def of_base64(text: str) -> NDArray[np.uint8]:
    return pixels(base64.b64decode(text))


def events_of(body: bytes) -> list[tuple[str, Any]]:
    """Names and data of server-sent events."""
    found = []
    for block in body.decode().split("\n\n")[:-1]:
        lines = dict(line.split(": ", 1) for line in block.split("\n"))
        data = json.loads(lines["data"])
        found.append((lines.get("event") or data["type"], data))
    return found


# What a reply holds


def _json(reply: Reply) -> NDArray[Any]:
    return np.stack([of_base64(i["png_base64"]) for i in reply.json()["images"]])


def _samples(reply: Reply) -> NDArray[Any]:
    return np.array([s["sample"] for s in reply.json()["samples"]], np.float32)


def _npy(reply: Reply) -> NDArray[Any]:
    return np.load(io.BytesIO(reply.body))


def _raw(reply: Reply) -> NDArray[Any]:
    shape = [int(size) for size in reply.headers["x-mmf-shape"].split(",")]
    return np.frombuffer(reply.body, reply.headers["x-mmf-dtype"]).reshape(shape)


def _multipart(reply: Reply) -> NDArray[Any]:
    boundary = reply.headers["content-type"].partition("boundary=")[2].encode()
    first, *parts, last = reply.body.split(b"--" + boundary)
    assert (first, last) == (b"", b"--\r\n")
    return np.stack([pixels(part.split(b"\r\n\r\n", 1)[1][:-2]) for part in parts])


def _grid(reply: Reply) -> NDArray[Any]:
    return pixels(reply.body)[None]


def _json_grid(reply: Reply) -> NDArray[Any]:
    return of_base64(reply.json()["grid"]["png_base64"])[None]


def _openai(reply: Reply) -> NDArray[Any]:
    return np.stack([of_base64(i["b64_json"]) for i in reply.json()["data"]])


def _kserve(reply: Reply) -> NDArray[Any]:
    output = reply.json()["outputs"][0]
    kind = np.uint8 if output["datatype"] == "UINT8" else np.float32
    return np.array(output["data"], kind).reshape(output["shape"])


def _kserve_binary(reply: Reply) -> NDArray[Any]:
    length = int(reply.headers["inference-header-content-length"])
    output = json.loads(reply.body[:length])["outputs"][0]
    return np.frombuffer(reply.body[length:], np.uint8).reshape(output["shape"])


def in_order(events: list[tuple[str, Any]]) -> NDArray[Any]:
    """The images of a stream."""
    shown = [data for _, data in events if "index" in data]
    assert [data["index"] for data in shown] == list(range(len(shown)))
    key = "png_base64" if "png_base64" in shown[0] else "b64_json"
    return np.stack([of_base64(data[key]) for data in shown])


def _stream(reply: Reply) -> NDArray[Any]:
    return in_order(events_of(reply.body))


# What is asked


@dataclass
class Asks:
    """Makes requests, each from its number alone, so that a run can be repeated.

    Attributes:
        digests: of the bundles that may be serving.
    """

    seed: int
    digests: list[str]

    def number(self, k: int) -> tuple[Ask, random.Random]:
        rng = random.Random(f"{self.seed}-{k}")
        make = rng.choices(list(KINDS), list(KINDS.values()))[0]
        return make(self, k, rng), rng

    def _wanted(self, k: int, rng: random.Random, most: int = 40) -> Wanted:
        sizes = [1] * 6 + [2, 3, 4, 5, 8, rng.randint(9, 40)]
        count = min(most, rng.choice(sizes))
        first = 100 * (k + 1)  # no two requests share a seed
        seeds = list(range(first, first + count))
        labels = [rng.randrange(CLASSES) for _ in seeds] if rng.random() < 0.5 else None
        return Wanted(seeds, labels)

    def _urgency(self, rng: random.Random) -> tuple[dict[str, Any], bool]:
        more: dict[str, Any] = {"priority": rng.choice(["high", "normal", "low"])}
        if rng.random() < 0.75:
            return more, False
        scale = rng.choice([1, 10, 100, 1000])
        return more | {"deadline_ms": max(0.01, rng.random() * scale)}, True

    def native(self, k: int, rng: random.Random) -> Ask:
        wanted, (more, urgent) = self._wanted(k, rng), self._urgency(rng)
        if rng.random() < 0.5:
            rng.shuffle(wanted.seeds)
            body = {"seeds": wanted.seeds, **more}
        else:
            body = {"seed": wanted.seeds[0], "n": len(wanted.seeds), **more}
        if wanted.labels is not None:
            body["labels"] = wanted.labels
        form, decode = rng.choice(
            [("json", _json), ("json", _json), ("png", _grid), ("npy", _npy),
             ("raw", _raw), ("multipart", _multipart), ("grid", _json_grid), ("events", _stream)]
        )  # fmt: skip
        headers = {}
        if form == "events" and rng.random() < 0.5:
            headers["accept"] = "text/event-stream"
        elif form == "events":
            body["stream"] = True
        elif form == "grid":
            body["grid"] = True
        else:
            body["format"] = form
        return _ask(
            f"native {form}", "POST", "/v1/generate", body, headers=headers, wanted=wanted,
            decode=decode, stream=form == "events", allowed=(200, 422) if urgent else (200,),
        )  # fmt: skip

    def points(self, k: int, rng: random.Random) -> Ask:
        seeds = self._wanted(k, rng).seeds
        wanted = Wanted(seeds, None, rng.choice([1.0, 1.5, 4.0]))
        form, decode = rng.choice([("json", _samples), ("npy", _npy), ("raw", _raw)])
        body = {"model": "points", "seeds": seeds, "guidance": wanted.guidance, "format": form}
        return _ask(f"points {form}", "POST", "/v1/generate", body, wanted=wanted, decode=decode)

    def interpolate(self, k: int, rng: random.Random) -> Ask:
        wanted = Wanted([100 * (k + 1)], None, 1.0, 100 * (k + 1) + 50, rng.randint(2, 12))
        body = {"from": wanted.seeds[0], "to": wanted.toward, "frames": wanted.frames}
        form, decode = rng.choice([("json", _json), ("npy", _npy), ("raw", _raw)])
        return _ask(f"interpolate {form}", "POST", "/v1/interpolate", {**body, "format": form},
                    wanted=wanted, decode=decode)  # fmt: skip

    def url(self, k: int, rng: random.Random) -> Ask:
        seed, label = 100 * (k + 1), rng.randrange(CLASSES)
        path = f"/v1/images/{rng.choice(self.digests)}/{label}/{seed}.png"
        return _ask("url", "GET", path, wanted=Wanted([seed], [label]), decode=_grid,
                    allowed=(200, 404))  # fmt: skip

    def openai(self, k: int, rng: random.Random) -> Ask:
        wanted, (more, urgent) = self._wanted(k, rng, 10), self._urgency(rng)
        label = rng.choice([None, rng.randrange(CLASSES)])
        wanted = Wanted(wanted.seeds, None if label is None else [label] * len(wanted.seeds))
        body = {"prompt": "any" if label is None else f"the digit {label}",
                "seed": wanted.seeds[0], "n": len(wanted.seeds), **more}  # fmt: skip
        stream = rng.random() < 0.3
        return _ask(
            "openai stream" if stream else "openai", "POST", "/v1/images/generations",
            body | ({"stream": True} if stream else {}), wanted=wanted, stream=stream,
            decode=_stream if stream else _openai, allowed=(200, 400) if urgent else (200,),
        )  # fmt: skip

    def kserve(self, k: int, rng: random.Random) -> Ask:
        wanted, (more, urgent) = self._wanted(k, rng), self._urgency(rng)
        allowed = (200, 400) if urgent else (200,)
        arrays = {"seed": wanted.seeds}
        if wanted.labels is not None:
            arrays["label"] = wanted.labels
        binary = rng.random() < 0.5
        inputs, tail = [], b""
        for name, values in arrays.items():
            about = {"name": name, "shape": [len(values)], "datatype": "INT64"}
            if binary:
                about["parameters"] = {"binary_data_size": 8 * len(values)}
                tail += struct.pack(f"<{len(values)}q", *values)
            else:
                about["data"] = values
            inputs.append(about)
        more["binary_data_output"] = binary
        body = json.dumps({"inputs": inputs, "parameters": more}).encode()
        headers = {"inference-header-content-length": str(len(body))} if binary else {}
        content = body + tail
        if rng.random() < 0.2:
            content, headers["content-encoding"] = gzip.compress(content, mtime=0), "gzip"
        path = "/v2/models/digits/infer"
        if rng.random() < 0.2:
            path = f"/v2/models/digits/versions/{rng.choice(self.digests)[:12]}/infer"
            allowed += (404,)
        return _ask("kserve binary" if binary else "kserve", "POST", path, content,
                    headers=headers, wanted=wanted, allowed=allowed,
                    decode=_kserve_binary if binary else _kserve)  # fmt: skip

    def operation(self, k: int, rng: random.Random) -> Ask:
        path = rng.choice(["/healthz", "/metrics", "/v1/model", "/v1/models", "/v2",
                           "/v2/models/digits", "/v2/models/digits/config", "/v2/models/stats",
                           "/openapi.json", "/v1/models/points"])  # fmt: skip
        return _ask("operation", "GET", path)

    def bad(self, k: int, rng: random.Random) -> Ask:
        method, path, body, status = rng.choice(BAD)
        return _ask("bad", method, path, body, allowed=(status,), closing=status == 413)


KINDS: dict[Callable[[Asks, int, random.Random], Ask], int] = {
    Asks.native: 40, Asks.points: 8, Asks.interpolate: 4, Asks.url: 8, Asks.openai: 12,
    Asks.kserve: 14, Asks.operation: 5, Asks.bad: 14,
}  # fmt: skip

_SEEDS = {"name": "seed", "shape": [2], "datatype": "INT64"}
BAD: list[tuple[str, str, Any, int]] = [
    ("POST", "/v1/generate", b"{", 400),
    ("POST", "/v1/generate", b"\xff\xfe", 400),
    ("POST", "/v1/generate", {"n": 0}, 422),
    ("POST", "/v1/generate", {"n": 1000}, 422),
    ("POST", "/v1/generate", {"sede": 1}, 422),
    ("POST", "/v1/generate", {"labels": 99}, 422),
    ("POST", "/v1/generate", {"seed": MAX_SEED, "n": 2}, 422),
    ("POST", "/v1/generate", {"model": "nobody"}, 404),
    ("POST", "/v1/generate", {"steps": 7}, 422),
    ("POST", "/v1/generate", {"size": 9}, 422),
    ("POST", "/v1/generate", b" " * (1 << 20) + b"{}", 413),
    ("POST", "/v1/interpolate", {"from": 1}, 422),
    ("POST", "/v1/images/generations", {"n": 1}, 400),
    ("POST", "/v1/images/generations", {"prompt": "7", "n": 11}, 400),
    ("POST", "/v1/images/generations", {"prompt": "7", "model": "dall-e-3"}, 404),
    ("POST", "/v2/models/digits/infer", b"nonsense", 400),
    ("POST", "/v2/models/digits/infer", {"inputs": [{**_SEEDS, "data": [1]}]}, 400),
    ("POST", "/v2/models/nobody/infer", {"inputs": [{**_SEEDS, "data": [1, 2]}]}, 404),
    ("GET", "/v1/images/0123/0/1.png", b"", 404),
    ("GET", "/v1/generate", b"", 405),
    ("GET", "/no/such/path", b"", 404),
]

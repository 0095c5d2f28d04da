"""Every way an image can be sent, and the URLs that never change."""

import base64
import io
import json
from email import message_from_bytes

import numpy as np
import pytest
from mmf_deploy.serve import render
from mmf_deploy.serve.error_replies import known_paths
from mmf_deploy.serve.formats import (
    LONGEST_SIDE,
    MAX_PIXELS,
    ImageFormat,
    check_animation,
    check_grid,
)
from PIL import Image

from mmf_deploy import bundle, images
from mmf_deploy.engines.base import open_engine
from mmf_deploy.errors import EngineError, RequestError, ShapeError
from mmf_deploy.noise import gaussian, gaussian_batch, spherical
from mmf_deploy.spec import SampleSpec

SPEC = SampleSpec(shape=(1, 8, 8), classes=10)
COLOUR = SampleSpec(
    shape=(3, 8, 8), classes=3, class_names=("cat", "7", "a/b"), guidance=(1.0, 4.0)
)


@pytest.fixture
def expected(tiny_formula):
    def compute(seeds, labels):
        noise = gaussian_batch(seeds, SPEC.shape)
        return images.to_uint8(tiny_formula(SPEC, noise, np.asarray(labels)))

    return compute


@pytest.fixture(scope="module")
def colour(make_tiny_bundle):
    from tests.serve.conftest import serve

    with serve(open_engine("onnxruntime", bundle.load(make_tiny_bundle(COLOUR)))) as found:
        yield found


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def pixels(content: bytes) -> np.ndarray:
    found = np.asarray(opened(content))
    return found[:, :, None] if found.ndim == 2 else found


# POST /v1/generate


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_the_field_format_gives_what_the_accept_header_gives(client, kind):
    by_field = client.generate(seed=3, format=kind)
    by_header = client.generate(accept=f"image/{kind}", seed=3)
    assert by_field.headers["content-type"] == by_header.headers["content-type"] == f"image/{kind}"
    assert by_field.content == by_header.content
    assert opened(by_field.content).format.lower() == kind


def test_size_makes_each_pixel_a_block(client, expected):
    found = pixels(client.generate(seed=3, format="png", size=24).content)
    np.testing.assert_array_equal(found, expected([3], [3])[0].repeat(3, 0).repeat(3, 1))


@pytest.mark.parametrize("size", [4, 12, 1025, 0, 10_000])
def test_a_size_that_is_no_multiple_or_too_large_is_refused(client, size):
    reply = client.generate(seed=3, size=size)
    assert (reply.status_code, reply.json()["error"]["field"]) == (422, "size")


def test_quality_changes_the_bytes_of_a_jpeg(client):
    low = client.generate(seed=3, format="jpeg", size=64, quality=5)
    high = client.generate(seed=3, format="jpeg", size=64, quality=95)
    assert len(low.content) < len(high.content)


def test_several_images_as_one_picture_are_a_grid(client, expected):
    found = pixels(client.generate(seeds=[1, 2, 3], format="png").content)
    np.testing.assert_array_equal(found, images.grid(expected([1, 2, 3], [1, 2, 3])))


def test_json_can_hold_one_grid_instead_of_every_image(client, expected):
    body = client.generate(seeds=[1, 2], grid=True, image_format="webp").json()
    assert "png_base64" not in body["images"][0]
    grid = opened(base64.b64decode(body["grid"]["webp_base64"]))
    assert grid.size == images.grid(expected([1, 2], [1, 2])).shape[1::-1]


def test_multipart_has_a_part_for_every_image(client, expected):
    reply = client.generate(seeds=[5, 6], format="multipart")
    head = f"Content-Type: {reply.headers['content-type']}\r\n\r\n".encode()
    parts = message_from_bytes(head + reply.content).get_payload()
    assert [(p["X-MMF-Seed"], p["X-MMF-Label"]) for p in parts] == [("5", "5"), ("6", "6")]
    found = np.stack([pixels(p.get_payload(decode=True)) for p in parts])
    np.testing.assert_array_equal(found, expected([5, 6], [5, 6]))


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"format": "gif"}, "format"),
        ({"format": "npy", "size": 16}, "size"),
        ({"format": "raw", "size": 16}, "size"),
        ({"format": "npy", "grid": True}, "grid"),
        ({"format": "raw", "grid": True}, "grid"),
        ({"image_format": "gif"}, "image_format"),
        ({"quality": 0}, "quality"),
        ({"priority": "urgent"}, "priority"),
        ({"steps": 3}, "steps"),
        ({"stream": 1}, "stream"),
        ({"stream": True, "format": "json"}, "stream"),
        ({"stream": True, "format": "png"}, "stream"),
        ({"stream": True, "grid": True}, "grid"),
    ],
)
def test_what_is_not_on_offer_is_422_and_named(client, body, field):
    reply = client.generate(**body)
    assert (reply.status_code, reply.json()["error"]["field"]) == (422, field)


def test_vectors_have_no_grid(gated_of, serving):
    with serving(gated_of(SampleSpec(shape=(2,)))) as client:
        for more in ({}, {"format": "npy"}, {"format": "raw"}, {"stream": True}):
            reply = client.generate(grid=True, **more)
            assert (reply.status_code, reply.json()["error"]["field"]) == (422, "grid")


def test_the_guidance_in_the_headers_is_exactly_the_one_that_was_used(colour):
    reply = colour.generate(seed=3, labels=2, guidance=1.23456789, format="png")
    guidance = reply.headers["x-mmf-guidance"]
    url = f"/v1/images/{reply.headers['x-mmf-bundle']}/2/3.png?guidance={guidance}"
    assert guidance == "1.23456789"
    assert colour.get(url).content == reply.content


# How large one picture may be


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("generate", {"n": 256, "size": 1024, "format": "webp"}),  # a side of 16418
        ("generate", {"n": 256, "size": 1024, "format": "png"}),  # 270 million pixels
        ("generate", {"n": 256, "size": 1024, "grid": True}),
        ("generate", {"n": 256, "size": 1024, "grid": True, "image_format": "jpeg"}),
        ("interpolate", {"from": 1, "to": 2, "frames": 128, "size": 512, "format": "jpeg"}),
        ("interpolate", {"from": 1, "to": 2, "frames": 128, "size": 512, "format": "png"}),
        ("interpolate", {"from": 1, "to": 2, "frames": 256, "size": 1024}),
    ],
)
def test_a_picture_that_no_format_or_memory_holds_is_refused_before_it_is_made(client, path, body):
    def made():
        read = client.service.metrics.registry.get_sample_value
        return read("mmf_images_total", {"model": "tiny", "variant": "fp32"})

    before = made()
    reply = client.request("POST", f"/v1/{path}", json=body)
    error = reply.json()["error"]
    assert (reply.status_code, error["field"]) == (422, "size")
    assert "ask for a smaller size" in error["message"]
    assert len(error["message"]) < 300
    assert made() == before


@pytest.mark.parametrize("kind", [ImageFormat.JPEG, ImageFormat.WEBP])
def test_the_longest_side_is_what_the_encoder_takes(kind):
    longest = LONGEST_SIDE[kind]
    assert images.encode(np.zeros((1, longest, 1), np.uint8), kind)
    with pytest.raises((OSError, ValueError)):
        images.encode(np.zeros((1, longest + 1, 1), np.uint8), kind)


def test_the_size_that_is_checked_is_that_of_the_picture():
    long = SampleSpec(shape=(1, 1, 65_500 - 4))
    check_grid(2, long, ImageFormat.JPEG, scale=1, columns=1)  # the gaps fit, by a pixel
    with pytest.raises(RequestError, match="jpeg with all of it has 65501 × 8 pixels; at most"):
        check_grid(2, SampleSpec(shape=(1, 1, 65_497)), ImageFormat.JPEG, scale=1, columns=1)
    check_grid(1, SampleSpec(shape=(1, 1, 65_500)), ImageFormat.JPEG, scale=1)  # alone: no gaps
    square = SampleSpec(shape=(1, 2**10, 2**10))
    frames = MAX_PIXELS // 2**20
    check_animation(frames, square, scale=1)
    with pytest.raises(RequestError, match=f"{frames + 1} × 1024 × 1024 pixels"):
        check_animation(frames + 1, square, scale=1)
    check_grid(6, square, ImageFormat.PNG, scale=3)  # 9224 × 6150
    with pytest.raises(RequestError, match="altogether"):
        check_grid(7, square, ImageFormat.PNG, scale=3)  # 9224 × 9224


@pytest.mark.parametrize("channels", [1, 3])
def test_of_an_animation_few_frames_are_in_memory_at_a_time(monkeypatch, channels):
    alive = []
    enlarged = images.enlarged

    def counting(image, scale):
        stats = Image.core.get_stats()
        alive.append(stats["allocated_blocks"] - stats["freed_blocks"])
        return enlarged(image, scale)

    monkeypatch.setattr(images, "enlarged", counting)
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, (12, 8, 8, channels), dtype=np.uint8)
    found = opened(render.animation_of(values, scale=4, fps=10, quality=90))
    assert (found.n_frames, found.size) == (12, (32, 32))
    assert len(alive) == 12
    assert max(alive[2:]) <= alive[1] + 1, "what is alive does not grow with the frames"


def test_an_unknown_model_is_404_with_the_nearest_name(client):
    reply = client.generate(model="tiy")
    assert reply.status_code == 404
    assert "did you mean 'tiny'?" in reply.json()["error"]["message"]
    for name in ("../../etc/passwd", "x" * 5000, "", "\x00"):
        reply = client.generate(model=name)
        assert reply.status_code == 404
        assert len(reply.text) < 300


# Server-sent events


def events(text: str) -> list[tuple[str, dict]]:
    found = []
    for block in text.strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines())
        found.append((lines["event"], json.loads(lines["data"])))
    return found


@pytest.mark.parametrize("by", ["field", "header"])
def test_a_stream_has_an_event_for_every_image_and_then_done(client, expected, by):
    seeds = list(range(30))
    if by == "field":
        reply = client.generate(seeds=seeds, stream=True)
    else:
        reply = client.generate(accept="text/event-stream", seeds=seeds)
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.headers["cache-control"] == "no-store"
    for name in ("queue;dur=", "infer;dur=", "encode;dur=", "bucket;desc=", "padding;", "total;"):
        assert reply.headers["server-timing"].count(name) == 1
    found = events(reply.text)
    assert [name for name, _ in found] == ["image"] * 30 + ["done"]
    got = np.stack([pixels(base64.b64decode(data["png_base64"])) for _, data in found[:-1]])
    assert [data["index"] for _, data in found[:-1]] == seeds
    np.testing.assert_array_equal(got, expected(seeds, [s % 10 for s in seeds]))
    assert found[-1][1]["bundle"] == client.service.model().loaded.digest


def test_a_stream_that_is_refused_has_a_status_of_its_own(client):
    assert client.generate(stream=True, labels="seven").status_code == 422
    assert client.generate(stream=True, deadline_ms=1e-6).status_code == 422


def test_a_stream_that_fails_midway_says_so_in_its_last_event(gated, serving, caplog):
    with serving(gated) as client:
        gated.fail_from = 3  # the third batch of this stream
        gated.batches = 0
        largest = client.batcher.cost.largest
        reply = client.generate(n=largest * 5, seed=0, stream=True)
    found = events(reply.text)
    assert [name for name, _ in found] == ["image"] * 2 * largest + ["error"]
    assert found[-1][1]["error"]["code"] == "internal_error"
    assert "secret" not in reply.text


# What the log says, and what a wrong path is told


def test_a_failed_engine_is_logged_with_one_traceback(gated, serving, caplog):
    with serving(gated) as client:
        caplog.clear()
        gated.error = EngineError("no memory left")
        assert client.generate(seed=1).status_code == 500
    assert caplog.text.count("Traceback") == 1, "that of the batch"
    last = caplog.records[-1].getMessage()
    assert last.startswith("POST /v1/generate failed: ")
    assert "no memory left" in last


def test_an_error_of_our_own_that_no_request_explains_is_logged(gated, serving, caplog):
    async def broken():
        raise ShapeError("of the wrong shape")

    with serving(gated) as client:
        client.app.add_api_route("/broken", broken)
        reply = client.get("/broken")
    assert (reply.status_code, reply.json()["error"]["code"]) == (500, "internal_error")
    assert "wrong shape" not in reply.text
    assert "GET /broken failed: of the wrong shape" in caplog.text
    assert "Traceback" in caplog.text


def test_a_wrong_path_costs_no_openapi_document(gated, serving):
    with serving(gated) as client:
        message = client.get("/v1/interpolat").json()["error"]["message"]
        assert "did you mean '/v1/interpolate'?" in message
        assert client.app.openapi_schema is None
        assert set(known_paths(client.app)) == set(client.app.openapi()["paths"])


def test_a_long_path_is_compared_with_none(client):
    known = max(known_paths(client.app), key=len)
    assert "did you mean" in client.get(f"{known}x").text
    reply = client.get(f"{known}/{'x' * (100 - len(known))}")
    assert reply.status_code == 404
    assert "did you mean" not in reply.text


# GET /v1/images/…


def test_every_image_has_a_url_that_gives_it_again(client, expected):
    body = client.generate(seeds=[3, 2**63 - 1], labels=[4, 5]).json()
    for image, seed, label in zip(body["images"], [3, 2**63 - 1], [4, 5], strict=True):
        reply = client.get(image["url"])
        assert reply.status_code == 200
        assert reply.headers["content-type"] == "image/png"
        assert reply.headers["cache-control"] == "public, max-age=31536000, immutable"
        np.testing.assert_array_equal(pixels(reply.content), expected([seed], [label])[0])


def test_urls_carry_what_else_decides_an_image(colour):
    body = {"seed": 3, "labels": "a/b", "guidance": 1.1, "size": 16, "image_format": "jpeg"}
    [image] = colour.generate(**body).json()["images"]
    assert image["url"].endswith("/2/3.jpg?guidance=1.1&size=16")
    again = colour.get(image["url"])
    assert again.content == base64.b64decode(image["jpeg_base64"])
    assert opened(again.content).size == (16, 16)


def test_a_class_can_be_named_in_a_url(colour):
    digest = colour.service.model().loaded.digest
    by_name = colour.get(f"/v1/images/{digest}/cat/3.png")
    by_number = colour.get(f"/v1/images/{digest}/0/3.png")
    assert by_name.content == by_number.content
    # a name that looks like a number is a name first
    assert colour.get(f"/v1/images/{digest}/7/3.png").content == (
        colour.get(f"/v1/images/{digest}/1/3.png").content
    )


def test_a_cached_image_is_not_made_again(client):
    [image] = client.generate(seed=8).json()["images"]
    tag = client.get(image["url"]).headers["etag"]
    made = client.service.metrics.registry.get_sample_value
    before = made("mmf_images_total", {"model": "tiny", "variant": "fp32"})
    for header in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        reply = client.request("GET", image["url"], headers={"If-None-Match": header})
        assert (reply.status_code, reply.content) == (304, b"")
        assert reply.headers["etag"] == tag
    assert made("mmf_images_total", {"model": "tiny", "variant": "fp32"}) == before
    other = client.get(image["url"].replace("/8.png", "/9.png")).headers["etag"]
    assert other != tag


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("{digest}/3/7.gif", 404),
        ("{digest}/3/7", 404),
        ("{digest}/3/seven.png", 422),
        ("{digest}/3/-1.png", 422),
        ("{digest}/3/9223372036854775808.png", 422),
        ("{digest}/3/٣.png", 422),
        ("{digest}/10/7.png", 422),
        ("{digest}/-/7.png", 422),
        ("{digest}/3/7.png?guidance=2", 422),
        ("{digest}/3/7.png?guidance=nan", 422),
        ("{digest}/3/7.png?size=9", 422),
        ("{digest}/3/7.png?size=x", 422),
        ("{digest}/3/7.png?variant=int8", 404),
        ("0000/3/7.png", 404),
        ("..%2F..%2Fetc/3/7.png", 404),
    ],
)
def test_a_url_that_names_nothing_is_refused(client, path, status):
    digest = client.service.model().loaded.digest
    reply = client.get("/v1/images/" + path.format(digest=digest))
    assert reply.status_code == status, reply.text
    assert set(reply.json()["error"]) == {"code", "message", "field"}


# POST /v1/interpolate


def way(first, last, frames, label, formula):
    ends = gaussian(first, SPEC.shape), gaussian(last, SPEC.shape)
    noise = np.stack([spherical(*ends, k / (frames - 1)) for k in range(frames)])
    return images.to_uint8(formula(SPEC, noise, np.full(frames, label)))


def interpolate(client, accept="*/*", **body):
    return client.request("POST", "/v1/interpolate", json=body, headers={"Accept": accept})


def test_interpolation_goes_from_one_seed_to_the_other(client, tiny_formula):
    reply = interpolate(client, **{"from": 3, "to": 141, "frames": 7, "format": "npy"})
    found = np.load(io.BytesIO(reply.content))
    np.testing.assert_array_equal(found, way(3, 141, 7, 3, tiny_formula))
    alone = [np.load(io.BytesIO(client.generate(seed=s, labels=3, format="npy").content))[0]
             for s in (3, 141)]  # fmt: skip
    np.testing.assert_array_equal(found[[0, -1]], alone)
    assert reply.headers["x-mmf-seeds"] == "3,141"
    raw = interpolate(client, **{"from": 3, "to": 141, "frames": 7, "format": "raw"})
    assert (raw.headers["x-mmf-shape"], raw.content) == ("7,8,8,1", found.tobytes())


def test_interpolation_is_an_animation_unless_something_else_is_asked_for(client):
    reply = interpolate(client, **{"from": 3, "to": 141, "frames": 6, "size": 32, "fps": 20})
    assert reply.headers["content-type"] == "image/webp"
    animation = opened(reply.content)
    assert (animation.n_frames, animation.size) == (6, (32, 32))
    assert animation.info["loop"] == 0
    strip = opened(interpolate(client, "image/png", **{"from": 3, "to": 141, "frames": 6}).content)
    assert strip.size == (6 * 10 + 2, 12)


def test_frames_as_json_say_where_on_the_way_they_are(client, tiny_formula):
    body = interpolate(client, "application/json", **{"from": 3, "to": 9, "frames": 3, "label": 5})
    frames = body.json()["images"]
    assert [f["fraction"] for f in frames] == [0, 0.5, 1]
    assert all("url" not in f for f in frames)
    found = np.stack([pixels(base64.b64decode(f["png_base64"])) for f in frames])
    np.testing.assert_array_equal(found, way(3, 9, 3, 5, tiny_formula))


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"to": 1}, "from"),
        ({"from": 1}, "to"),
        ({"from": 1, "to": 2, "frames": 1}, "frames"),
        ({"from": 1, "to": 2, "frames": 257}, "frames"),
        ({"from": 1, "to": 2, "fps": 0}, "fps"),
        ({"from": 1, "to": 2, "size": 16, "format": "npy"}, "size"),
        ({"from": 1, "to": 2, "size": 16, "format": "raw"}, "size"),
        ({"from": 1, "to": 2, "label": [1]}, "label"),
        ({"from": 1, "to": 2, "label": "ten"}, "label"),
        ({"from": 1, "to": 2, "labels": 1}, "labels"),
        ({"from": -1, "to": 2}, "from"),
    ],
)
def test_a_way_that_cannot_be_gone_is_422_and_named(client, body, field):
    reply = interpolate(client, **body)
    assert (reply.status_code, reply.json()["error"]["field"]) == (422, field)

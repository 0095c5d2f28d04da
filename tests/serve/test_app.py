import base64
import io
import json
import time

import numpy as np
import pytest
from mmf_deploy.serve.service import Limits, State
from PIL import Image

from mmf_deploy import images
from mmf_deploy.errors import EngineError
from mmf_deploy.noise import MAX_SEED, gaussian_batch
from mmf_deploy.spec import SampleSpec

PATIENCE_S = 10


@pytest.fixture
def expected(tiny_formula):
    """The bytes that the tiny bundle gives for seeds and labels, computed by numpy."""
    spec = SampleSpec(shape=(1, 8, 8), classes=10)

    def compute(seeds, labels):
        noise = gaussian_batch(seeds, spec.shape)
        return images.to_uint8(tiny_formula(spec, noise, np.asarray(labels)))

    return compute


def pixels(png: bytes) -> np.ndarray:
    found = np.asarray(Image.open(io.BytesIO(png)))
    return found[:, :, None] if found.ndim == 2 else found


def wait_until_inside(engine):
    assert engine.entered.acquire(timeout=PATIENCE_S)


# What is generated


def test_json_carries_every_image_with_its_seed_and_label(client, expected):
    reply = client.generate(seeds=[3, 141], labels=[0, 9])
    assert reply.status_code == 200
    body = reply.json()
    assert body["bundle"] == client.service.model().loaded.digest
    assert body["variant"] == "fp32"
    assert [(i["seed"], i["label"]) for i in body["images"]] == [(3, 0), (141, 9)]
    assert set(body["timing_ms"]) == {"queue", "infer", "encode"}
    found = np.stack([pixels(base64.b64decode(i["png_base64"])) for i in body["images"]])
    np.testing.assert_array_equal(found, expected([3, 141], [0, 9]))


def test_npy_is_a_uint8_array_with_seeds_and_labels_in_the_headers(client, expected):
    reply = client.generate(accept="application/x-npy", n=3, seed=18)
    array = np.load(io.BytesIO(reply.content))
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, expected([18, 19, 20], [8, 9, 0]))
    assert reply.headers["x-mmf-seeds"] == "18,19,20"
    assert reply.headers["x-mmf-labels"] == "8,9,0"
    assert reply.headers["x-mmf-bundle"] == client.service.model().loaded.digest


@pytest.mark.parametrize("accept", ["application/octet-stream", "*/*"])
def test_raw_is_the_bytes_of_that_array_and_headers_say_its_shape(client, expected, accept):
    form = {"format": "raw"} if accept == "*/*" else {}
    reply = client.generate(accept=accept, n=3, seed=18, **form)
    assert reply.headers["content-type"] == "application/octet-stream"
    assert reply.content == expected([18, 19, 20], [8, 9, 0]).tobytes()
    said = {name: reply.headers[f"x-mmf-{name}"] for name in ("shape", "dtype", "seeds", "labels")}
    assert said == {"shape": "3,8,8,1", "dtype": "uint8", "seeds": "18,19,20", "labels": "8,9,0"}


def test_raw_vectors_are_little_endian_floats(gated_of, serving):
    with serving(gated_of(SampleSpec(shape=(2,)))) as client:
        reply, npy = (client.generate(seed=4, n=3, format=form) for form in ("raw", "npy"))
        assert (reply.headers["x-mmf-shape"], reply.headers["x-mmf-dtype"]) == ("3,2", "float32")
        found = np.frombuffer(reply.content, "<f4").reshape(3, 2)
        np.testing.assert_array_equal(found, np.load(io.BytesIO(npy.content)))


def test_png_is_the_image_itself_or_a_grid(client, expected):
    one = client.generate(accept="image/png", seed=5, labels=2)
    assert one.headers["content-type"] == "image/png"
    np.testing.assert_array_equal(pixels(one.content), expected([5], [2])[0])
    four = client.generate(accept="image/png", seed=5, n=4)
    grid = images.grid(expected([5, 6, 7, 8], [5, 6, 7, 8]))
    np.testing.assert_array_equal(pixels(four.content), grid)


def test_without_a_body_one_image_of_a_random_seed_comes_and_says_its_seed(client, expected):
    first, second = (client.request("POST", "/v1/generate").json()["images"] for _ in range(2))
    assert len(first) == 1
    assert first[0]["seed"] != second[0]["seed"]
    again = client.generate(seed=first[0]["seed"]).json()["images"]
    assert again == first


@pytest.mark.parametrize(
    ("body", "seeds", "labels"),
    [
        ({"seed": 7, "n": 3}, [7, 8, 9], [7, 8, 9]),
        ({"seed": 7, "n": 3, "labels": 1}, [7, 8, 9], [1, 1, 1]),
        ({"seed": 7, "labels": [4, 2]}, [7, 8], [4, 2]),
        ({"seeds": [0, 0], "n": 2}, [0, 0], [0, 0]),
        ({"seed": MAX_SEED}, [MAX_SEED], [MAX_SEED % 10]),
        ({"seed": 0, "n": None, "guidance": None}, [0], [0]),
    ],
)
def test_n_seed_seeds_and_labels_say_what_each_image_is(client, body, seeds, labels):
    found = client.generate(**body).json()["images"]
    assert [i["seed"] for i in found] == seeds
    assert [i["label"] for i in found] == labels


def test_an_image_is_the_same_alone_and_in_the_largest_request(client):
    many = np.load(io.BytesIO(client.generate("application/x-npy", seed=0, n=256).content))
    assert many.shape == (256, 8, 8, 1)
    for seed in (0, 100, 255):
        alone = np.load(io.BytesIO(client.generate("application/x-npy", seed=seed).content))
        np.testing.assert_array_equal(alone[0], many[seed])


def test_a_guided_model_with_class_names_takes_both(gated_of, serving):
    spec = SampleSpec(shape=(3, 4, 4), classes=2, class_names=("cat", "dog"), guidance=(1.0, 4.0))
    with serving(gated_of(spec)) as client:
        found = client.generate(seed=1, n=2, labels=["dog", 0], guidance=2.5).json()["images"]
        assert [(i["label"], i["guidance"]) for i in found] == [(1, 2.5), (0, 2.5)]
        assert client.generate(seed=1).json()["images"][0]["guidance"] == 1.0
        for guidance in (0.5, 4.5, "2", True):
            error = client.generate(guidance=guidance)
            assert (error.status_code, error.json()["error"]["field"]) == (422, "guidance")
        wrong = client.generate(labels="dgo").json()["error"]
        assert "did you mean 'dog'?" in wrong["message"]


def test_vectors_come_as_lists_or_float_arrays(gated_of, serving, tiny_formula):
    spec = SampleSpec(shape=(2,))
    with serving(gated_of(spec)) as client:
        expected = tiny_formula(spec, gaussian_batch([4, 5], (2,)))
        samples = client.generate(seed=4, n=2).json()["samples"]
        assert samples == [
            {"seed": 4, "sample": expected[0].tolist()},
            {"seed": 5, "sample": expected[1].tolist()},
        ]
        array = np.load(io.BytesIO(client.generate("application/x-npy", seed=4, n=2).content))
        np.testing.assert_array_equal(array, expected)
        assert client.generate("image/png").status_code == 406
        assert client.generate(labels=1).json()["error"]["field"] == "labels"
        assert client.generate(guidance=1.0).json()["error"]["field"] == "guidance"


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("*/*", "application/json"),
        ("image/*", "image/png"),
        ("image/png;q=0.5, application/x-npy", "application/x-npy"),
        ("text/html, */*;q=0.1", "application/json"),
        ("application/json;q=0, */*", "image/png"),
        ("APPLICATION/X-NPY; q=1.0", "application/x-npy"),
        ("application/octet-stream", "application/octet-stream"),
        ("application/*", "application/json"),
    ],
)
def test_accept_chooses_the_reply(client, accept, content_type):
    assert client.generate(accept, seed=1).headers["content-type"] == content_type


@pytest.mark.parametrize("accept", ["text/html", "image/gif", "*/*;q=0", "nonsense"])
def test_an_accept_that_cannot_be_met_is_406(client, accept):
    reply = client.generate(accept, seed=1)
    assert reply.status_code == 406
    assert reply.json()["error"]["field"] == "Accept"


def test_server_timing_is_on_every_kind_of_reply(client):
    for accept in ("application/json", "image/png", "application/octet-stream"):
        timing = client.generate(accept, seed=1).headers["server-timing"]
        names = [part.strip().split(";")[0] for part in timing.split(",")]
        assert names == ["queue", "infer", "encode", "bucket", "padding", "total"]


# What is refused


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ('{"n": 0}', "n"),
        ('{"n": -1}', "n"),
        ('{"n": 257}', "n"),
        ('{"n": 1.0}', "n"),
        ('{"n": true}', "n"),
        ('{"n": 1e400}', "n"),
        ('{"n": 1' + "0" * 4000 + "}", "n"),
        ('{"labels": 1' + "0" * 4000 + "}", "labels"),
        ('{"seeds": [1' + "0" * 4000 + "]}", "seeds.0"),
        ('{"seeds": {"a": 1' + "0" * 4000 + "}}", "seeds"),
        ('{"n": 2, "seeds": [1]}', "n"),
        ('{"seed": "12"}', "seed"),
        ('{"seed": 1.0}', "seed"),
        ('{"seed": true}', "seed"),
        ('{"seed": -1}', "seed"),
        ('{"seed": 9223372036854775808}', "seed"),
        ('{"seed": 1' + "0" * 4000 + "}", "seed"),
        ('{"seed": NaN}', "seed"),
        ('{"seed": 9223372036854775807, "n": 2}', "seed"),
        ('{"seed": 1, "seeds": [1]}', "seeds"),
        ('{"seeds": []}', "seeds"),
        ('{"seeds": 5}', "seeds"),
        ('{"seeds": [1, "2"]}', "seeds.1"),
        ('{"seeds": [1, -2]}', "seeds.1"),
        ('{"seeds": [' + "1," * 9999 + "1]}", "seeds"),
        ('{"labels": 10}', "labels"),
        ('{"labels": -1}', "labels"),
        ('{"labels": 1.5}', "labels"),
        ('{"labels": true}', "labels"),
        ('{"labels": "seven"}', "labels"),
        ('{"labels": {}}', "labels"),
        ('{"labels": [1, null]}', "labels"),
        ('{"labels": []}', "labels"),
        ('{"labels": [1, 2], "n": 3}', "labels"),
        ('{"labels": [' + "1," * 9999 + "1]}", "labels"),
        ('{"guidance": 2}', "guidance"),
        ('{"guidance": NaN}', "guidance"),
        ('{"guidance": Infinity}', "guidance"),
        ('{"deadline_ms": 0}', "deadline_ms"),
        ('{"deadline_ms": NaN}', "deadline_ms"),
        ('{"deadline_ms": 0.000001}', "deadline_ms"),
        ('{"sede": 1}', "sede"),
        ("[1, 2]", None),
        ("null", None),
        ("7", None),
    ],
)
def test_a_wrong_field_is_422_and_named(client, body, field):
    reply = client.request("POST", "/v1/generate", content=body)
    assert reply.status_code == 422, reply.text
    error = reply.json()["error"]
    assert set(error) == {"code", "message", "field"}
    assert error["field"] == field
    assert len(error["message"]) < 300
    assert "\n" not in error["message"]


def test_an_unknown_field_names_the_nearest_one(client):
    error = client.generate(lables=[1]).json()["error"]
    assert error["code"] == "unknown_field"
    assert "did you mean 'labels'?" in error["message"]


@pytest.mark.parametrize(
    "body",
    [
        "{",
        "nonsense",
        '{"n": 1,}',
        "[" * 100_000,
        b"\xff\xfe{}",
        '{"n": 1} x',
        '{"n": ' + "1" * 5000 + "}",
    ],
)
def test_what_is_not_json_is_400(client, body):
    reply = client.request("POST", "/v1/generate", content=body)
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "invalid_json"


def test_a_body_over_the_limit_is_413_announced_or_not(client):
    limit = client.service.limits.max_body_bytes
    padded = json.dumps({"n": 1}).encode().ljust(limit)
    assert client.request("POST", "/v1/generate", content=padded).status_code == 200

    def chunks(count):
        async def stream():
            for _ in range(count):
                yield b" " * (limit // 4)

        return stream()

    for content in (padded + b" ", chunks(5)):
        reply = client.request("POST", "/v1/generate", content=content)
        assert reply.status_code == 413
        assert reply.json()["error"]["code"] == "body_too_large"


def test_an_announced_body_over_the_limit_is_refused_unread(client):
    async def never():
        raise AssertionError("the body was read")
        yield b""

    reply = client.request(
        "POST", "/v1/generate", content=never(), headers={"Content-Length": "100000000"}
    )
    assert reply.status_code == 413


def test_unknown_paths_and_methods_are_json_errors(client):
    missing = client.get("/v1/generte")
    assert missing.status_code == 404
    assert "did you mean '/v1/generate'?" in missing.json()["error"]["message"]
    wrong = client.get("/v1/generate")
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "POST"
    assert wrong.json()["error"]["code"] == "method_not_allowed"


def test_a_request_larger_than_the_queue_is_refused_outright(gated, serving):
    with serving(gated, Limits(max_queue_images=4)) as client:
        assert client.generate(n=4).status_code == 200
        assert client.generate(n=5).json()["error"]["field"] == "n"
        assert client.get("/v1/model").json()["limits"]["max_images"] == 4


def wait_until(condition):
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.001)


def test_overload_is_503_with_both_retry_headers(gated, serving):
    with serving(gated, Limits(max_queue_images=2)) as client:
        gated.shut()
        first = client.generating(seed=1)
        wait_until_inside(gated)
        waiting = client.generating(seed=2, n=2)
        wait_until(lambda: client.batcher.waiting >= 2)
        refused = client.generate(seed=4)
        gated.gate.set()
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "overloaded"
        milliseconds = int(refused.headers["retry-after-ms"])
        assert int(refused.headers["retry-after"]) == max(1, -(-milliseconds // 1000))
        assert first.result(PATIENCE_S).status_code == 200
        assert len(waiting.result(PATIENCE_S).json()["images"]) == 2


# How it fails


def test_a_failed_batch_is_a_500_that_tells_nothing_and_the_next_request_works(gated, serving):
    with serving(gated) as client:
        for error in (EngineError("/secret/path"), OSError("/secret/path")):
            gated.error = error
            reply = client.generate(seed=1)
            assert reply.status_code == 500
            assert reply.json()["error"]["code"] == "internal_error"
            assert "secret" not in reply.text
            gated.error = None
            assert client.generate(seed=1).status_code == 200


def test_readiness_is_red_until_the_golden_images_are_reproduced(gated, serving):
    gated.load_gate.clear()
    with serving(gated, until=State.STARTING) as client:
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").json()["error"]["code"] == "not_ready_starting"
        assert client.get("/v1/model").status_code == 200
        refused = client.generate(seed=1)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
        assert "retry-after" in refused.headers
        gated.load_gate.set()
        wait_until(lambda: client.get("/readyz").status_code == 200)
        assert client.generate(seed=1).status_code == 200


def test_an_engine_that_misses_the_golden_images_never_becomes_ready(gated, serving):
    gated.offset = 0.1
    with serving(gated, until=State.FAILED) as client:
        reply = client.get("/readyz")
        assert reply.status_code == 503
        assert reply.json()["error"]["code"] == "not_ready_failed"
        assert str(client.service.model().loaded.bundle.path) not in reply.text
        assert client.generate(seed=1).status_code == 503
        assert "golden image of seed" in str(client.service.failure)


def test_readiness_turns_red_while_draining_and_accepted_work_is_answered(gated, serving):
    with serving(gated) as client:
        gated.shut()
        accepted = client.generating(seed=1)
        wait_until_inside(gated)
        client.portal.call(client.service.drain)
        assert client.get("/readyz").json()["error"]["code"] == "not_ready_draining"
        assert client.get("/healthz").status_code == 200
        closing = client.portal.start_task_soon(client.service.close)
        refused = client.generate(seed=2)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert (refused.headers["retry-after"], refused.headers["retry-after-ms"]) == ("1", "1000")
        assert not closing.done()
        gated.gate.set()
        assert accepted.result(PATIENCE_S).status_code == 200
        closing.result(PATIENCE_S)


def test_the_work_of_a_client_that_leaves_is_not_done(gated, serving, caplog):
    with serving(gated) as client:
        gated.shut()
        first = client.generating(seed=1)
        wait_until_inside(gated)
        messages = [
            {"type": "http.request", "body": b'{"n": 5, "seed": 10}', "more_body": False},
            {"type": "http.disconnect"},
        ]
        sent = []

        async def leave():
            async def receive():
                return messages.pop(0)

            async def send(message):
                sent.append(message)

            scope = {
                "type": "http",
                "method": "POST",
                "path": "/v1/generate",
                "raw_path": b"/v1/generate",
                "query_string": b"",
                "headers": [],
            }
            await client.app(scope, receive, send)

        client.portal.call(leave)
        assert sent[0]["status"] == 499
        gated.gate.set()
        assert first.result(PATIENCE_S).status_code == 200
        assert client.generate(seed=2).status_code == 200
        assert gated.sizes == [1, 1]
    assert caplog.text == "", "a client that leaves is nothing to report"


def test_model_describes_what_is_served(client):
    model = client.get("/v1/model").json()
    assert model["name"] == "tiny"
    assert model["bundle"] == client.service.model().loaded.digest
    assert model["spec"]["shape"] == [1, 8, 8]
    assert (model["engine"], model["device"], model["precision"]) == ("onnxruntime", "cpu", "fp32")
    assert model["variants"] == [{"name": "fp32", "precision": "fp32", "steps": 1}]
    assert model["limits"]["max_images"] == 256


def test_the_openapi_document_describes_the_body(client):
    paths = client.get("/openapi.json").json()["paths"]
    body = paths["/v1/generate"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(body["properties"]) == {
        "n", "seed", "seeds", "labels", "guidance", "steps", "model", "size", "format",
        "image_format", "quality", "grid", "stream", "priority", "deadline_ms",
    }  # fmt: skip
    assert {"200", "400", "406", "413", "422", "503"} <= set(
        paths["/v1/generate"]["post"]["responses"]
    )


def test_every_bucket_is_measured_before_the_service_is_ready(gated, serving):
    with serving(gated) as client:
        cost = client.batcher.cost
        assert all(cost.measured(size) for size in gated.buckets)
        assert client.generate(n=gated.buckets[-1], deadline_ms=10_000).status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_probes_may_use_head(gated, serving, path):
    with serving(gated) as client:
        assert client.request("HEAD", path).status_code == 200

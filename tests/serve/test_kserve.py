"""The V2 routes, spoken to by the official client on a socket, and by rude ones without."""

from __future__ import annotations

import gzip
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import uvicorn
from mmf_deploy.serve.api_keys import KeyRing
from mmf_deploy.serve.app import create_app
from mmf_deploy.serve.front import Front
from mmf_deploy.serve.key_file import Key, digest_of
from mmf_deploy.serve.listen import listen
from mmf_deploy.serve.model import SICK_AFTER
from mmf_deploy.serve.samples import Priority
from mmf_deploy.serve.service import Service, State
from mmf_deploy.serve.work import Limits
from tritonclient.utils import InferenceServerException

from mmf_deploy import __version__, bundle
from mmf_deploy.engines.base import open_engine
from mmf_deploy.spec import SampleSpec

ANIMALS = SampleSpec(
    shape=(3, 4, 6), classes=3, class_names=("cat", "dog", "sea lion"), guidance=(1.0, 1.1)
)
POINTS = SampleSpec(shape=(2,))
INFER = "/v2/models/tiny/infer"
PATIENCE_S = 10


@contextmanager
def listening(paths) -> Iterator[str]:
    """The address of a service on a socket, one bundle a model."""
    ready = threading.Event()
    engines = {name: open_engine("onnxruntime", bundle.load(p)) for name, p in paths.items()}
    sources = {name: partial(lambda e: [e], engine) for name, engine in engines.items()}
    service = Service(sources, None, lambda s: ready.set() if s is State.READY else None)
    config = uvicorn.Config(create_app(service), log_config=None, log_level="error", ws="none")
    server, listener = uvicorn.Server(config), listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        assert ready.wait(PATIENCE_S), service.failure
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
        listener.close()


@pytest.fixture(scope="module")
def address(tiny_bundle, make_tiny_bundle) -> Iterator[str]:
    paths = {"digits": tiny_bundle}
    paths |= {"animals": make_tiny_bundle(ANIMALS), "points": make_tiny_bundle(POINTS)}
    with listening(paths) as found:
        yield found


@pytest.fixture(scope="module")
def official(address) -> Iterator[triton.InferenceServerClient]:
    with closing(triton.InferenceServerClient(address, concurrency=4)) as client:
        yield client


@pytest.fixture(scope="module")
def native(address):
    """Arrays of the native route."""

    def generate(**body):
        reply = httpx.post(
            f"http://{address}/v1/generate", json=body | {"format": "npy"}, trust_env=False
        )
        return np.load(io.BytesIO(reply.raise_for_status().content))

    return generate


def tensor(name, values, datatype, binary=True):
    values = np.asarray(values)
    given = triton.InferInput(name, list(values.shape), datatype)
    return given.set_data_from_numpy(values, binary_data=binary)


def seeds(*values, binary=True):
    return [tensor("seed", np.array(values, np.int64), "INT64", binary)]


def version_at(path) -> str:
    return bundle.load(path).digest[:12]


# The official client


@pytest.mark.parametrize("wanted", [None, True, False])
@pytest.mark.parametrize("binary", [True, False])
def test_images_are_those_of_the_native_route(official, native, binary, wanted):
    outputs = None if wanted is None else [triton.InferRequestedOutput("image", wanted)]
    reply = official.infer("digits", seeds(7, 2**63 - 1, binary=binary), outputs=outputs)
    expected = native(seeds=[7, 2**63 - 1], model="digits")
    np.testing.assert_array_equal(reply.as_numpy("image"), expected, strict=True)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compression_both_ways_changes_no_image(official, native, encoding, binary):
    count = 256  # more than is compressed in the event loop
    reply = official.infer(
        "digits",
        seeds(*range(count), binary=binary),
        outputs=[triton.InferRequestedOutput("image", binary)],
        request_compression_algorithm=encoding,
        response_compression_algorithm=encoding,
    )
    expected = native(n=count, seed=0, model="digits")
    np.testing.assert_array_equal(reply.as_numpy("image"), expected, strict=True)


def test_labels_by_number_or_name_and_guidance_reach_the_model(official, native):
    expected = native(seeds=[5, 6], labels=["sea lion", "cat"], guidance=1.1, model="animals")
    guidance = tensor("guidance", np.array([[1.1], [1.1]], np.float32), "FP32")
    for label in (
        tensor("label", np.array([2, 0]), "INT64"),
        tensor("label", np.array([[2], [0]], np.uint8), "UINT8", binary=False),
        tensor("label", np.array([b"sea lion", b"cat"], object), "BYTES"),
    ):
        reply = official.infer("animals", [guidance, label, *seeds(5, 6)])
        np.testing.assert_array_equal(reply.as_numpy("image"), expected, strict=True)


def test_vectors_come_as_float32(official, native):
    reply = official.infer("points", seeds(1, 2, 3))
    np.testing.assert_array_equal(
        reply.as_numpy("sample"), native(seeds=[1, 2, 3], model="points"), strict=True
    )


def test_seeds_labels_and_the_id_come_back_if_they_are_asked_for(official, tiny_bundle):
    outputs = [triton.InferRequestedOutput(n, b) for n, b in (("seed", True), ("label", False))]
    reply = official.infer("digits", seeds(3, 14), outputs=outputs, request_id="ä7")
    assert reply.as_numpy("seed").tolist() == [3, 14]
    assert reply.as_numpy("label").tolist() == [3, 4]
    assert reply.as_numpy("image") is None
    said = reply.get_response()
    assert (said["id"], said["model_name"]) == ("ä7", "digits")
    assert said["model_version"] == version_at(tiny_bundle)


def test_asynchronous_requests_each_get_their_own_images(official, native):
    waiting = [official.async_infer("digits", seeds(seed)) for seed in range(8)]
    found = np.concatenate([w.get_result().as_numpy("image") for w in waiting])
    np.testing.assert_array_equal(found, native(n=8, seed=0, model="digits"))


def test_the_server_and_its_models_introduce_themselves(official, tiny_bundle):
    assert official.is_server_live()
    assert official.is_server_ready()
    assert official.is_model_ready("points")
    assert not official.is_model_ready("pints")
    server = official.get_server_metadata()
    assert (server["name"], server["version"]) == ("mmf-deploy", __version__)
    assert "binary_tensor_data" in server["extensions"]
    assert official.get_model_metadata("digits") == {
        "name": "digits",
        "versions": [version_at(tiny_bundle)],
        "platform": "mmf_onnxruntime",
        "inputs": [
            {"name": "seed", "datatype": "INT64", "shape": [-1]},
            {"name": "label", "datatype": "INT64", "shape": [-1]},
        ],
        "outputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, 8, 8, 1]}],
    }
    tensors = official.get_model_metadata("animals")["inputs"]
    assert [t["name"] for t in tensors] == ["seed", "label", "guidance"]
    config = official.get_model_config("points")
    assert [i["name"] for i in config["input"]] == ["seed"]
    assert config["output"] == [{"name": "sample", "data_type": "TYPE_FP32", "dims": [-1, 2]}]
    index = official.get_model_repository_index()
    assert [(m["name"], m["state"]) for m in index] == [
        (name, "READY") for name in ("digits", "animals", "points")
    ]


def test_only_the_version_of_the_bundle_exists(official, tiny_bundle):
    version = version_at(tiny_bundle)
    assert official.is_model_ready("digits", version)
    assert official.get_model_metadata("digits", version)["versions"] == [version]
    assert official.infer("digits", seeds(1), model_version=version).as_numpy("image") is not None
    assert not official.is_model_ready("digits", "1")
    with pytest.raises(InferenceServerException, match=f"no version '1'; there is '{version}'"):
        official.infer("digits", seeds(1), model_version="1")


def test_statistics_count_requests_and_images(official):
    def read():
        (found,) = official.get_inference_statistics("points")["model_stats"]
        return found["inference_count"], found["inference_stats"]

    images, before = read()
    official.infer("points", seeds(1, 2, 3))
    with pytest.raises(InferenceServerException):
        official.infer("points", seeds(-1))
    images_after, after = read()
    grown = {kind: after[kind]["count"] - before[kind]["count"] for kind in after}
    assert images_after - images == 3
    assert (grown["success"], grown["fail"], grown["compute_infer"]) == (1, 1, 1)
    assert after["success"]["ns"] > after["compute_infer"]["ns"] > 0
    everything = official.get_inference_statistics()["model_stats"]
    assert [found["name"] for found in everything] == ["digits", "animals", "points"]


def test_the_official_client_is_told_what_was_wrong(official):
    with pytest.raises(InferenceServerException, match="no model 'digit'") as refused:
        official.infer("digit", seeds(1))
    assert refused.value.status() == "404"
    with pytest.raises(InferenceServerException, match="no input 'sed'") as refused:
        official.infer("digits", [tensor("sed", np.array([1]), "INT64")])
    assert refused.value.status() == "400"
    with pytest.raises(InferenceServerException, match="no such path"):
        official.load_model("digits")


# Any client


def body(values=(1,), **more) -> bytes:
    seed = {"name": "seed", "shape": [len(values)], "datatype": "INT64", "data": list(values)}
    return json.dumps({"inputs": [seed], **more}).encode()


def infer(client, content=None, **headers):
    return client.request("POST", INFER, content=content or body(), headers=headers)


def test_the_content_type_does_not_matter(client):
    for content_type in ("application/json", "application/octet-stream", "text/html", ""):
        assert infer(client, **{"Content-Type": content_type}).status_code == 200


def test_a_binary_reply_says_where_its_json_ends(client):
    reply = infer(client, body([1, 2], parameters={"binary_data_output": True}))
    split = int(reply.headers["inference-header-content-length"])
    (output,) = json.loads(reply.content[:split])["outputs"]
    assert output["parameters"]["binary_data_size"] == len(reply.content) - split == 2 * 64
    assert reply.headers["content-type"] == "application/octet-stream"
    assert reply.headers["x-mmf-model"] == "tiny"
    assert "infer;dur=" in reply.headers["server-timing"]


def test_a_library_that_would_take_any_compression_gets_none(client):
    reply = infer(client, **{"Accept-Encoding": "gzip, deflate, br"})
    assert "content-encoding" not in reply.headers
    assert infer(client, **{"Accept-Encoding": "gzip"}).headers["content-encoding"] == "gzip"


@pytest.mark.parametrize(
    ("content", "headers", "status", "message"),
    [
        (b"{", {}, 400, "not JSON"),
        (body([-1]), {}, 400, "out of range"),
        (body(range(10_000)), {}, 400, "more than the 256 elements"),
        (body(parameters={"steps": 7}), {}, 400, "no variant of 7 steps"),
        (body(), {"Inference-Header-Content-Length": "-5"}, 400, "expected a number"),
        (body(), {"Inference-Header-Content-Length": "5000"}, 400, "exceeds"),
        (body(), {"Content-Encoding": "br"}, 400, "expected gzip or deflate"),
        (body(), {"Content-Encoding": "gzip"}, 400, "is not gzip"),
        (
            gzip.compress(bytes(2 << 20), mtime=0),
            {"Content-Encoding": "gzip"},
            413,
            "when decompressed",
        ),
        (bytes(2 << 20), {}, 413, "the body exceeds"),
    ],
)
def test_errors_are_one_line_in_the_format_of_the_protocol(
    client, content, headers, status, message
):
    reply = infer(client, content, **headers)
    assert reply.status_code == status
    assert set(reply.json()) == {"error"}
    assert message in reply.json()["error"]
    assert "\n" not in reply.json()["error"]


def test_an_engine_that_fails_tells_the_client_nothing(gated, serving):
    with serving(gated) as client:
        gated.error = RuntimeError("secret of the host")
        reply = infer(client)
    assert reply.status_code == 500
    assert set(reply.json()) == {"error"}
    assert "secret" not in reply.text


def wait_until(condition) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def post(client, **parameters):
    return client.portal.start_task_soon(
        partial(client._http.post, INFER, content=body(parameters=parameters), timeout=None)
    )


@pytest.mark.parametrize(
    ("priority", "expected"),
    [(1, Priority.HIGH), ("high", Priority.HIGH), (0, Priority.NORMAL), (9, Priority.LOW)],
)
def test_the_priority_is_that_of_the_queue(gated, serving, priority, expected):
    with serving(gated) as client:
        gated.shut()
        first = client.generating(n=1)
        assert gated.entered.acquire(timeout=PATIENCE_S)
        second = post(client, priority=priority)
        wait_until(lambda: client.batcher.waiting_by_priority[expected] == 1)
        gated.gate.set()
        assert first.result(PATIENCE_S).status_code == second.result(PATIENCE_S).status_code == 200


@pytest.mark.parametrize("parameters", [{"timeout": 20_000}, {"deadline_ms": 20}])
def test_a_timeout_that_passes_in_the_queue_is_told_with_the_time_to_come_back(
    gated, serving, parameters
):
    with serving(gated) as client:
        gated.shut()
        first = client.generating(n=1)
        assert gated.entered.acquire(timeout=PATIENCE_S)
        late = post(client, **parameters)
        patient = post(client, timeout=PATIENCE_S * 1_000_000)
        wait_until(lambda: client.batcher.waiting_by_priority[Priority.NORMAL] >= 1)
        time.sleep(0.03)
        gated.gate.set()
        assert first.result(PATIENCE_S).status_code == 200
        assert patient.result(PATIENCE_S).status_code == 200
        refused = late.result(PATIENCE_S)
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    assert set(refused.json()) == {"error"}


def test_a_timeout_shorter_than_the_work_is_a_mistake(client):
    reply = infer(client, body(parameters={"timeout": 1}))
    assert reply.status_code == 400
    assert "allow more" in reply.json()["error"]


def test_a_full_queue_sheds_with_the_time_to_come_back(gated, serving):
    with serving(gated, Limits(max_queue_images=1)) as client:
        gated.shut()
        first, second = client.generating(n=1), None
        assert gated.entered.acquire(timeout=PATIENCE_S)
        second = client.generating(n=1)
        wait_until(lambda: client.batcher.waiting == 1)
        refused = infer(client)
        gated.gate.set()
        assert first.result(PATIENCE_S).status_code == second.result(PATIENCE_S).status_code == 200
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1


def health(client) -> list[int]:
    paths = ("/v2/health/live", "/v2/health/ready", "/v2/models/tiny/ready")
    return [client.get(path).status_code for path in paths]


def test_readiness_is_red_while_starting_and_draining(gated, serving):
    gated.load_gate.clear()
    with serving(gated, until=State.STARTING) as client:
        try:
            assert health(client) == [200, 503, 503]
            assert infer(client).status_code == 503
            assert set(client.get("/v2/health/ready").json()) == {"error"}
            (entry,) = client.request("POST", "/v2/repository/index").json()
            assert (entry["state"], bool(entry["reason"])) == ("UNAVAILABLE", True)
            only_ready = client.request("POST", "/v2/repository/index", content=b'{"ready":true}')
            assert only_ready.json() == []
        finally:
            gated.load_gate.set()
        wait_until(lambda: client.service.state is State.READY)
        assert health(client) == [200, 200, 200]
        client.portal.call(client.service.drain)
        assert health(client) == [200, 503, 503]


def test_an_engine_that_only_fails_turns_health_red(gated, serving):
    with serving(gated) as client:
        gated.error = RuntimeError("out of memory")
        assert {infer(client).status_code for _ in range(SICK_AFTER)} == {500}
        assert health(client) == [503, 503, 503]


def test_a_key_for_another_model_is_told_so(gated, serving):
    ring = KeyRing([Key(name="ci", sha256=digest_of("right").hex(), models=["letters"])])
    with serving(gated, front=Front(keys=ring)) as client:
        headers = {"Authorization": "Bearer right"}
        reply = client.request("POST", INFER, content=body(), headers=headers)
    assert reply.status_code == 403
    assert set(reply.json()) == {"error"}
    assert "it is for letters" in reply.json()["error"]


def test_every_route_documents_bodies_that_it_takes_and_all_of_its_errors(client):
    paths = client.get("/openapi.json").json()["paths"]
    infers = [path for path in paths if path.startswith("/v2") and path.endswith("/infer")]
    assert len(infers) == 2
    for path in infers:
        post = paths[path]["post"]
        statuses = {"200", "400", "401", "403", "404", "413", "429", "500", "503"}
        assert statuses == set(post["responses"])
        schema = post["requestBody"]["content"]["application/json"]["schema"]
        assert "$ref" not in json.dumps(schema)
        for example in schema["examples"]:
            assert infer(client, json.dumps(example).encode()).status_code == 200
    versioned = {p["name"] for p in paths[infers[1]]["post"]["parameters"]}
    assert {"model_name", "model_version"} < versioned

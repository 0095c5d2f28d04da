"""The embedded bundle through a live server, with an ordinary HTTP client."""

import base64
import concurrent.futures
import io
import socket
import subprocess
import sys
import time

import httpx
import numpy as np
import psutil
import pytest
from mmf_deploy.training.evaluate import evaluate_digits
from PIL import Image

from mmf_deploy import bundle as bundles
from mmf_deploy import noise
from mmf_deploy.embedded import digits_bundle
from mmf_deploy.engines.base import open_engine


@pytest.fixture(scope="module")
def server():
    """(URL, process) of `mmf serve` without an argument on a free port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mmf_deploy.cli", "serve", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    line = process.stdout.readline()
    assert "serving digits" in line, process.stderr.read()
    yield line[line.index("http://") :].strip(), process
    process.terminate()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert err == ""


@pytest.fixture
def client(server):
    with httpx.Client(base_url=server[0], timeout=30) as client:
        yield client


def generate(client, **body):
    reply = client.post("/v1/generate", json=body, headers={"accept": "application/x-npy"})
    assert reply.status_code == 200, reply.text
    return np.load(io.BytesIO(reply.content), allow_pickle=False)


def test_health_readiness_and_model(client):
    assert client.get("/healthz").status_code == 200
    assert client.get("/readyz").status_code == 200
    model = client.get("/v1/model").json()
    assert model["bundle"] == bundles.load(digits_bundle()).digest
    assert model["spec"]["shape"] == [1, 8, 8]


def test_golden_images_come_out_of_the_live_service(client):
    golden = bundles.load(digits_bundle()).golden()
    found = generate(client, seeds=golden.seeds.tolist(), labels=golden.labels.tolist())
    assert np.abs(found.astype(int) - golden.outputs.astype(int)).max() <= 1


def test_one_seed_is_one_image_alone_in_a_batch_and_under_load(client, server):
    batch = generate(client, n=64, seed=0)
    assert len({image.tobytes() for image in batch}) == 64

    def alone(seed):
        with httpx.Client(base_url=server[0], timeout=30) as own:
            return generate(own, seed=seed)[0]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        images = list(pool.map(alone, range(64)))
    assert np.abs(np.stack(images).astype(int) - batch.astype(int)).max() <= 1


def test_json_png_and_npy_carry_the_same_image(client):
    body = {"seed": 5, "labels": 7}
    as_json = client.post("/v1/generate", json=body).json()
    png = base64.b64decode(as_json["images"][0]["png_base64"])
    assert as_json["images"][0]["seed"] == 5
    assert as_json["images"][0]["label"] == 7
    raw = client.post("/v1/generate", json=body, headers={"accept": "image/png"})
    assert raw.headers["content-type"] == "image/png"
    expected = generate(client, **body)[0, :, :, 0]
    for encoded in (png, raw.content):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encoded))), expected)


def test_the_service_equals_the_engine_in_this_process(client):
    bundle = bundles.load(digits_bundle())
    seeds = list(range(100, 120))
    labels = np.array([3] * 20)
    with open_engine("onnxruntime", bundle) as engine:
        expected = engine.generate(noise.gaussian_batch(seeds, (1, 8, 8)), labels)
    found = generate(client, seeds=seeds, labels=3)
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"n": 0}, "n"),
        ({"n": 100_000}, "n"),
        ({"seed": "seven"}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"seed": -1}, "seed"),
        ({"labels": 10}, "labels"),
        ({"labels": [1, 2], "n": 3}, "labels"),
        ({"sede": 1}, "sede"),
    ],
)
def test_bad_input_is_a_4xx_that_names_the_field(client, body, field):
    reply = client.post("/v1/generate", json=body)
    assert 400 <= reply.status_code < 500
    assert reply.json()["error"]["field"] == field
    assert field in reply.json()["error"]["message"]


def test_the_running_service_stays_small(client, server):
    generate(client, n=64, seed=0)
    assert psutil.Process(server[1].pid).memory_info().rss < 200e6


def test_a_port_in_use_is_one_clear_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "mmf_deploy.cli", "serve", "--port", str(port)],
            capture_output=True, text=True, timeout=30,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"port {port}" in done.stderr
    assert time.monotonic() - began < 10


def test_the_embedded_bundle_is_as_good_as_its_card_says():
    bundle = bundles.load(digits_bundle())
    # fp32 and int8, of 1, 2 and 4 steps: what the demo shows
    assert sum(f.stat().st_size for f in bundle.path.iterdir()) <= 4e6
    with open_engine("onnxruntime", bundle) as engine:
        quality = evaluate_digits(
            lambda seeds, labels: engine.generate(noise.gaussian_batch(seeds, (1, 8, 8)), labels)
        )
    assert quality.classifier_accuracy >= 0.97
    assert quality.class_accuracy >= 0.98
    assert quality.ratio <= 2.0
    # the card was written where it was trained; another machine's judge may differ a little
    assert quality.class_accuracy == pytest.approx(
        bundle.manifest.quality["class_accuracy"], abs=0.01
    )

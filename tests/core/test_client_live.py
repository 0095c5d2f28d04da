"""The client, and every example of docs/clients.md, against a real mmf-serve."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from mmf_deploy.serve import key_file
from mmf_deploy.serve.api_keys import KeyRing
from mmf_deploy.serve.auth import Auth
from PIL import Image
from starlette.responses import JSONResponse

from mmf_deploy import bundle
from mmf_deploy.client import AsyncClient, Client
from mmf_deploy.errors import ServiceError, UnreachableError
from mmf_deploy.images import to_uint8
from mmf_deploy.noise import gaussian_batch, spherical
from mmf_deploy.spec import SampleSpec
from tests.stepped import as_images, way, write_stepped_bundle

PAGE = Path(__file__).parents[2] / "docs" / "clients.md"
SERVE = [sys.executable, "-c", "from mmf_deploy.cli import main_serve; main_serve()"]
PATIENCE_S = 60
DIGITS = SampleSpec(shape=(1, 8, 8), classes=10)
GUIDED = SampleSpec(shape=(3, 4, 4), classes=2, class_names=("cat", "dog"), guidance=(1.0, 4.0))
VECTORS = SampleSpec(shape=(3,))
MAX_QUEUE = 128


@contextmanager
def served(*args: str) -> Iterator[str]:
    """The address of an mmf-serve that is ready."""
    command = [*SERVE, *args, "--port", "0", "--threads", "1", "--drain-delay", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            assert line.startswith("serving "), line
            yield line.split()[-1]
        finally:
            process.terminate()
            assert process.wait(PATIENCE_S) == 0


@pytest.fixture(scope="module")
def stepped(tiny_bundle, tmp_path_factory) -> Path:
    return write_stepped_bundle(tiny_bundle, tmp_path_factory.mktemp("stepped") / "bundle")


@pytest.fixture(scope="module")
def url(stepped, make_tiny_bundle) -> Iterator[str]:
    """Three models, the first with trajectories, and a queue that is soon full."""
    models = {"digits": stepped, "guided": make_tiny_bundle(GUIDED),
              "vectors": make_tiny_bundle(VECTORS)}  # fmt: skip
    named = [arg for name, path in models.items() for arg in ("--model", f"{name}={path}")]
    with served(*named, "--max-queue", str(MAX_QUEUE)) as found:
        yield found


@pytest.fixture
def client(url) -> Iterator[Client]:
    with Client(url) as found:
        yield found


def test_generated_images_are_those_of_the_seeds_and_labels(client, stepped, tiny_formula):
    made = client.generate(seeds=np.array([3, 141]), labels=[0, 9], deadline_ms=30_000)
    noise = gaussian_batch([3, 141], DIGITS.shape)
    expected = to_uint8(tiny_formula(DIGITS, noise, np.array([0, 9])))
    np.testing.assert_array_equal(made.array, expected)
    assert (made.seeds, made.labels, made.guidance) == ((3, 141), (0, 9), None)
    assert made.digest == bundle.load(stepped).digest
    assert (made.variant, made.model) == ("fp32", "digits")
    assert {"queue", "infer", "encode"} <= made.timing_ms.keys()
    assert made.request_id


def test_a_seed_drawn_by_the_client_makes_the_images_again(client):
    made = client.generate(n=3)
    again = client.generate(seeds=made.seeds)
    np.testing.assert_array_equal(made.array, again.array)


def test_guided_models_take_names_and_a_scale(client, tiny_formula):
    made = client.generate(seed=1, n=2, labels=["dog", 0], guidance=2.5, model="guided")
    assert (made.labels, made.guidance, made.model) == ((1, 0), (2.5, 2.5), "guided")
    assert made.array.shape == (2, 4, 4, 3)
    pieces = list(client.stream(seed=1, n=2, labels=["dog", 0], guidance=2.5, model="guided"))
    for piece in pieces:
        assert (piece.label, piece.guidance, piece.digest) == (
            made.labels[piece.index], 2.5, made.digest,
        )  # fmt: skip
        np.testing.assert_array_equal(piece.image, made.array[piece.index])
    assert sorted(piece.index for piece in pieces) == [0, 1]


def test_an_interpolation_goes_from_one_seed_to_the_other(client, tiny_formula):
    made = client.interpolate(3, 141, frames=5, label=2)
    start, end = gaussian_batch([3, 141], DIGITS.shape)
    noise = np.stack([spherical(start, end, k / 4) for k in range(5)])
    expected = to_uint8(tiny_formula(DIGITS, noise, np.full(5, 2)))
    np.testing.assert_array_equal(made.array, expected)
    assert (made.seeds, made.labels, made.guidance) == ((3, 141), (2,) * 5, None)
    guided = client.interpolate(3, 141, label="dog", guidance=2.5, model="guided")
    assert (len(guided), set(guided.labels), set(guided.guidance)) == (24, {1}, {2.5})


def test_a_trajectory_goes_from_noise_to_the_image(client, tiny_formula):
    made = client.trajectory(seed=7, label=3)
    noise = gaussian_batch([7], DIGITS.shape)
    expected = as_images(way(noise, tiny_formula(DIGITS, noise, np.array([3])), 4))[0]
    np.testing.assert_array_equal(made.array, expected)
    assert (made.seeds, made.labels, made.variant) == ((7,), (3,), "fp32-4step")
    image = client.generate(seed=7, labels=3, steps=4)
    np.testing.assert_array_equal(made.array[-1], image.array[0])
    assert len(client.trajectory(steps=2)) == 3


def test_where_there_is_no_trajectory_it_says_how_to_export_one(client):
    with pytest.raises(ServiceError, match="mmf export CHECKPOINT --steps 1,4") as caught:
        client.trajectory(seed=7, model="guided")
    assert (caught.value.status, caught.value.code) == (422, "no_trajectory")


def test_the_asynchronous_client_has_the_same_ways(url, client):
    async def both():
        async with AsyncClient(url) as found:
            calls = found.interpolate(3, 9, frames=4, label=1), found.trajectory(seed=7, label=1)
            return await asyncio.gather(*calls)

    frames, points = asyncio.run(both())
    np.testing.assert_array_equal(frames.array, client.interpolate(3, 9, 4, label=1).array)
    np.testing.assert_array_equal(points.array, client.trajectory(7, label=1).array)


def test_vectors_are_float_arrays_either_way(client, tiny_formula):
    made = client.generate(seed=4, n=2, model="vectors")
    expected = tiny_formula(VECTORS, gaussian_batch([4, 5], VECTORS.shape))
    np.testing.assert_array_equal(made.array, expected)
    assert made.labels is None
    streamed = {p.index: p.image for p in client.stream(seed=4, n=2, model="vectors")}
    np.testing.assert_array_equal(np.stack([streamed[0], streamed[1]]), expected)


def test_files_and_permanent_addresses_have_the_same_content(client):
    for kind in ("png", "jpeg", "webp"):
        file = client.encoded(kind, seed=7, labels=3, size=32)
        assert file.media_type == f"image/{kind}"
        address = client.image_url(file.digest, file.labels[0], file.seeds[0], kind, size=32)
        assert httpx.get(address).content == file.data
    made = client.generate(seed=7, labels="cat", guidance=2, model="guided")
    address = client.image_url(made.digest, 0, 7, guidance=2)
    assert httpx.get(address).status_code == 200


def test_what_is_served_can_be_asked(client):
    client.wait_ready(timeout_s=10)
    assert client.ready()
    assert client.model()["spec"]["classes"] == 10
    assert client.model()["trajectories"] == [2, 4]
    assert client.model("vectors")["model"] == "vectors"
    assert [model["id"] for model in client.models()] == ["digits", "guided", "vectors"]


def test_refusals_name_the_field(client):
    with pytest.raises(ServiceError, match=r"labels: 10 is out of range.*HTTP 422") as caught:
        client.generate(labels=10)
    assert (caught.value.field, caught.value.code) == ("labels", "invalid_request")
    assert caught.value.request_id
    with pytest.raises(ServiceError, match=r"HTTP 404") as caught:
        client.generate(model="digit")
    assert caught.value.code == "model_not_found"


@pytest.fixture
def locked() -> httpx.ASGITransport:
    """A service for whoever has the key."""
    entry = key_file.Key(name="tests", sha256=key_file.digest_of("a-key").hex())
    return httpx.ASGITransport(Auth(JSONResponse({"data": []}), lambda: KeyRing([entry])))


async def models(transport: httpx.ASGITransport, key: str | None) -> list:
    async with httpx.AsyncClient(transport=transport) as http:
        return await AsyncClient("http://service.test", key, http=http).models()


def test_a_key_is_sent_the_way_the_service_wants_it(locked):
    assert asyncio.run(models(locked, "a-key")) == []


@pytest.mark.parametrize("key", ["another", None])
def test_without_the_right_key_one_is_asked_for(locked, key):
    with pytest.raises(ServiceError, match=r"HTTP 401") as caught:
        asyncio.run(models(locked, key))
    assert "pass Client(url, api_key=…)" in str(caught.value)


def shed(url: str) -> float:
    text = httpx.get(f"{url}/metrics").text
    found = re.findall(r'^mmf_shed_total\{.*reason="queue_full".*\} (\S+)', text, re.MULTILINE)
    return sum(map(float, found))


def test_a_crowd_that_is_refused_comes_back_when_it_is_told_to(url):
    before = shed(url)

    async def crowd():
        async with AsyncClient(url, max_retries=10_000) as client:
            calls = [client.generate(n=64, seed=100 * k) for k in range(40)]
            return await asyncio.gather(*calls)

    made = asyncio.run(crowd())
    assert [m.seeds[0] for m in made] == [100 * k for k in range(40)]
    assert shed(url) > before, "the queue was never full, so this test showed nothing"


def test_leaving_an_async_stream_lets_the_client_go_on(url):
    async def leave():
        async with AsyncClient(url) as client:
            pieces = client.stream(n=MAX_QUEUE)
            first = await anext(pieces)
            await pieces.aclose()
            return first, await client.png(seed=1)

    first, png = asyncio.run(leave())
    assert first.image.shape == (8, 8, 1)
    assert png.startswith(b"\x89PNG")


# Connections


def body_of_request(connection: socket.socket) -> bytes:
    head, body, length = b"", b"", None
    while length is None or len(body) < length:
        head += connection.recv(65536)
        top, blank, body = head.partition(b"\r\n\r\n")
        if blank:
            length = int(re.search(rb"content-length: (\d+)", top, re.IGNORECASE)[1])
    return body


@contextmanager
def hanging_up_first(times: int) -> Iterator[tuple[str, list[bytes]]]:
    """A server that hangs up on the first calls, and answers the next one."""
    heard: list[bytes] = []

    def answer() -> None:
        for k in range(times + 1):
            connection, _ = listener.accept()
            with connection:
                heard.append(body_of_request(connection))
                if k == times:
                    connection.sendall(b"HTTP/1.1 418 Teapot\r\nContent-Length: 0\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", heard
        thread.join(PATIENCE_S)


async def generate_async(url: str, **options: object) -> None:
    async with AsyncClient(url, **options) as client:
        await client.generate(n=2)


def generate(url: str, **options: object) -> None:
    with Client(url, **options) as client:
        client.generate(n=2)


ways = pytest.mark.parametrize(
    "call", [generate, lambda url, **o: asyncio.run(generate_async(url, **o))],
    ids=["blocking", "async"],
)  # fmt: skip


@ways
def test_a_connection_that_is_hung_up_is_tried_again_with_the_same_request(call):
    with hanging_up_first(2) as (url, heard), pytest.raises(ServiceError, match="3 attempts"):
        call(url)
    assert heard[0].startswith(b'{"n": 2, "seed": ')
    assert heard == [heard[0]] * 3


@ways
def test_nobody_listening_is_an_error_of_one_line(call):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(UnreachableError, match=r"\(2 attempts in .* is mmf-serve running") as e:
        call(f"http://127.0.0.1:{port}", max_retries=1)
    assert str(e.value).count("\n") == 0
    assert not Client(f"http://127.0.0.1:{port}").ready()


@ways
def test_a_service_that_does_not_answer_is_left_after_the_timeout(call):
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        pytest.raises(UnreachableError, match="no reply in time"),
    ):
        call(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout_s=0.2)


# docs/clients.md


def examples(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture
def page(url, tmp_path, monkeypatch):
    """Makes an example of the page one for the running service; it runs in an empty directory."""
    monkeypatch.chdir(tmp_path)
    return lambda code: code.replace("localhost:8000", url.removeprefix("http://"))


def test_the_page_has_examples_of_every_kind():
    assert [len(examples(language)) for language in ("python", "sh", "js")] == [5, 3, 3]


@pytest.mark.parametrize("code", examples("python"), ids=range(len(examples("python"))))
def test_python_examples_run_and_print_what_their_comments_say(code, page, capsys):
    for package in ("openai", "tritonclient"):
        if f"{package}" in code and importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    exec(compile(page(code), str(PAGE), "exec"), {"__name__": "example"})
    printed = capsys.readouterr().out
    for comment in re.findall(r"^ *print\(.*\) +# (.*)$", code, re.MULTILINE):
        assert comment.removesuffix(" …") in printed


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
@pytest.mark.parametrize("code", examples("sh"), ids=range(len(examples("sh"))))
def test_curl_examples_run(code, page, tmp_path):
    done = subprocess.run(
        ["bash", "-eu", "-o", "pipefail", "-c", page(code)],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        env={**os.environ, "MMF_API_KEY": "any"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert '"error"' not in done.stdout
    for file in re.findall(r"-o (\S+)", code):
        if file.endswith(".npy"):
            assert np.load(tmp_path / file).shape == (64, 8, 8, 1)
        else:
            with Image.open(tmp_path / file) as image:
                image.load()
    for expected in re.findall(r" # (\d+)$", code, re.MULTILINE):
        assert f"\n{expected}\n" in f"\n{done.stdout}"


BROWSER = """
const shown = [];
globalThis.Image = class {};
globalThis.document = {
  querySelector: () => shown[shown.push({}) - 1],
  body: { append: (img) => shown.push(img) },
};
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node")
@pytest.mark.parametrize(
    ("code", "shown", "logged"),
    list(zip(examples("js"), [1, 4, 0], [1, 0, 16], strict=True)),
    ids=range(3),
)
def test_javascript_examples_run(code, shown, logged, page, tmp_path):
    script = tmp_path / "example.mjs"
    script.write_text(f"{BROWSER}{page(code)}\nconsole.error(JSON.stringify(shown));")
    done = subprocess.run(
        ["node", script], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == logged
    sources = re.findall(r'"src":"(blob:|data:image/png;base64,iVBOR)', done.stderr)
    assert len(sources) == shown, done.stderr

"""POST /v1/trajectory: the whole way of one image, made beside images by the same engine."""

from __future__ import annotations

import base64
import email
import io
import re
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial

import httpx
import numpy as np
import pytest
from mmf_deploy.serve import model as serve_model
from mmf_deploy.serve.loading import sources_of
from mmf_deploy.serve.model import SICK_AFTER
from mmf_deploy.serve.service import Limits
from mmf_deploy.serve.settings import Settings
from PIL import Image

from mmf_deploy import bundle, measured
from mmf_deploy.engines.base import open_engine
from mmf_deploy.noise import MAX_SEED, gaussian_batch
from mmf_deploy.spec import SampleSpec
from tests.serve.conftest import GatedEngine, serve_sources
from tests.stepped import as_images, way, write_stepped_bundle

PATIENCE_S = 10
SPEC = SampleSpec(shape=(1, 8, 8), classes=10)
GUIDED = SampleSpec(shape=(3, 4, 6), classes=2, class_names=("cat", "dog"), guidance=(1.0, 4.0))


@pytest.fixture(scope="module")
def stepped(tiny_bundle, tmp_path_factory):
    return write_stepped_bundle(tiny_bundle, tmp_path_factory.mktemp("stepped") / "bundle")


@pytest.fixture(scope="module")
def guided(make_tiny_bundle, tmp_path_factory):
    path = tmp_path_factory.mktemp("guided") / "bundle"
    return write_stepped_bundle(make_tiny_bundle(GUIDED), path)


@pytest.fixture(scope="module")
def client(stepped, guided):
    """A client of two models through ONNX Runtime, the first of three numbers of steps."""
    settings = Settings(models={"digits": stepped, "guided": guided})
    with serve_sources(sources_of(settings)) as found:
        yield found


@pytest.fixture
def expected(tiny_formula):
    """The trajectory of a seed, by numpy."""

    def points(seed, label, steps=4, spec=SPEC, guidance=None):
        noise = gaussian_batch([seed], spec.shape)
        scale = None if guidance is None else np.array([guidance], np.float32)
        return as_images(way(noise, tiny_formula(spec, noise, np.array([label]), scale), steps))[0]

    return points


def trajectory(client, accept="*/*", **body) -> httpx.Response:
    return client.request("POST", "/v1/trajectory", json=body, headers={"Accept": accept})


def array(reply: httpx.Response) -> np.ndarray:
    assert reply.status_code == 200, reply.text
    return np.load(io.BytesIO(reply.content))


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def pixels(content: bytes) -> np.ndarray:
    found = np.asarray(opened(content))
    return found[:, :, None] if found.ndim == 2 else found


def wait_for(condition) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.001)


# Formats


def test_a_trajectory_goes_from_the_noise_to_the_image_of_its_seed(client, expected):
    reply = trajectory(client, seed=141, label=5, format="npy")
    found = array(reply)
    np.testing.assert_array_equal(found, expected(141, 5))
    assert (found.shape, found.dtype) == ((5, 8, 8, 1), np.uint8)
    alone = client.generate(seed=141, labels=5, steps=4, format="npy")
    np.testing.assert_array_equal(found[-1], array(alone)[0])
    assert len({point.tobytes() for point in found}) == 5
    raw = trajectory(client, seed=141, label=5, format="raw")
    assert (raw.headers["x-mmf-shape"], raw.content) == ("5,8,8,1", found.tobytes())
    said = {name: reply.headers[f"x-mmf-{name}"] for name in ("seeds", "labels", "variant")}
    assert said == {"seeds": "141", "labels": "5", "variant": "fp32-4step"}
    assert "infer;dur=" in reply.headers["server-timing"]


def test_it_is_a_strip_unless_something_else_is_asked_for(client, expected):
    reply = trajectory(client, seed=3, label=1)
    assert reply.headers["content-type"] == "image/png"
    assert opened(reply.content).size == (5 * 10 + 2, 12)
    strip = pixels(reply.content)
    found = np.stack([strip[2:10, left : left + 8] for left in range(2, 52, 10)])
    np.testing.assert_array_equal(found, expected(3, 1))
    large = trajectory(client, "image/jpeg", seed=3, label=1, size=32, quality=50)
    assert opened(large.content).format == "JPEG"
    assert opened(large.content).size == (5 * 34 + 2, 36)


def test_an_animation_shows_a_point_a_frame(client):
    reply = trajectory(client, "image/webp", seed=3, size=16, fps=8)
    animation = opened(reply.content)
    assert (animation.n_frames, animation.size) == (5, (16, 16))
    for frame in range(5):
        animation.seek(frame)
        animation.load()
        assert animation.info["duration"] == 125


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_json_names_every_point_and_the_address_of_the_image(client, expected, kind):
    asked = {"seed": 7, "label": 2, "image_format": kind, "quality": 100}
    body = trajectory(client, "application/json", **asked).json()
    points = body["images"]
    assert [point["step"] for point in points] == [0, 1, 2, 3, 4]
    assert {(point["seed"], point["label"]) for point in points} == {(7, 2)}
    assert ["url" in point for point in points] == [False] * 4 + [True]
    assert (body["model"], body["variant"]) == ("digits", "fp32-4step")
    files = [base64.b64decode(point[f"{kind}_base64"]) for point in points]
    assert {opened(file).format for file in files} == {kind.upper()}
    if kind == "png":
        np.testing.assert_array_equal(np.stack([pixels(file) for file in files]), expected(7, 2))
        assert client.get(points[-1]["url"]).content == files[-1]


def test_multipart_has_a_part_for_every_point(client, expected):
    reply = trajectory(client, "multipart/mixed", seed=7, label=2, steps=2)
    head = f"Content-Type: {reply.headers['content-type']}\r\n\r\n".encode()
    parts = email.message_from_bytes(head + reply.content).get_payload()
    assert {(part["X-MMF-Seed"], part["X-MMF-Label"]) for part in parts} == {("7", "2")}
    found = np.stack([pixels(part.get_payload(decode=True)) for part in parts])
    np.testing.assert_array_equal(found, expected(7, 2, steps=2))


# What is asked for


def test_the_most_steps_are_taken_unless_a_number_is_asked_for(client, expected):
    for steps in (None, 2, 4):
        asked = {} if steps is None else {"steps": steps}
        found = array(trajectory(client, seed=1, label=0, format="npy", **asked))
        np.testing.assert_array_equal(found, expected(1, 0, steps or 4))


def test_labels_and_guidance_decide_the_image_as_anywhere_else(client, expected):
    asked = {"model": "guided", "seed": 9, "label": "dog", "guidance": 2.5, "format": "npy"}
    reply = trajectory(client, **asked)
    np.testing.assert_array_equal(array(reply), expected(9, 1, 4, GUIDED, 2.5))
    assert (reply.headers["x-mmf-labels"], reply.headers["x-mmf-guidance"]) == ("1", "2.5")
    plain = trajectory(client, model="guided", seed=9, format="npy")  # class 9 mod 2, lowest scale
    np.testing.assert_array_equal(array(plain), expected(9, 1, 4, GUIDED, 1.0))


def test_without_a_seed_the_reply_says_which_was_drawn(client):
    drawn = [trajectory(client, format="npy") for _ in range(2)]
    seeds = [int(reply.headers["x-mmf-seeds"]) for reply in drawn]
    assert seeds[0] != seeds[1]
    again = trajectory(client, seed=seeds[0], format="npy")
    np.testing.assert_array_equal(array(again), array(drawn[0]))


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": MAX_SEED + 1}, "seed"),
        ({"seed": "seven"}, "seed"),
        ({"seeds": [1]}, "seeds"),
        ({"label": "ten"}, "label"),
        ({"label": 10}, "label"),
        ({"label": [1]}, "label"),
        ({"labels": 1}, "labels"),
        ({"guidance": 2.0}, "guidance"),
        ({"steps": 0}, "steps"),
        ({"steps": 1}, "steps"),
        ({"steps": 3}, "steps"),
        ({"steps": 10**30}, "steps"),
        ({"size": 9}, "size"),
        ({"size": 16, "format": "npy"}, "size"),
        ({"size": 16, "format": "raw"}, "size"),
        ({"format": "events"}, "format"),
        ({"format": "gif"}, "format"),
        ({"fps": 0}, "fps"),
        ({"quality": 101}, "quality"),
        ({"n": 2}, "n"),
    ],
)
def test_what_cannot_be_shown_is_422_and_named(client, body, field):
    reply = trajectory(client, **body)
    assert (reply.status_code, reply.json()["error"]["field"]) == (422, field)


def test_another_number_of_steps_is_refused_with_those_there_are(client):
    message = trajectory(client, steps=1).json()["error"]["message"]
    assert message == "steps: this model has no trajectory of 1 steps; it has 2, 4"


def refused(client, **body) -> dict[str, str]:
    reply = trajectory(client, **body)
    assert reply.status_code == 422
    return reply.json()["error"]


def test_a_bundle_without_any_says_how_to_export_one(tiny_bundle, serving):
    with serving(open_engine("onnxruntime", bundle.load(tiny_bundle))) as one:
        error = refused(one, seed=1)
        assert (error["code"], error["field"]) == ("no_trajectory", "model")
        assert "mmf export CHECKPOINT --steps 1,4" in error["message"]
        assert "\n" not in error["message"]
        assert refused(one, seed=1, steps=4)["code"] == "no_trajectory"
        assert one.get("/v1/model").json()["trajectories"] == []


def test_an_engine_that_cannot_is_no_failure_of_the_service(stepped, tiny_formula):
    found = bundle.load(stepped)
    engine = GatedEngine(stepped, tiny_formula)
    engine.variant = found.variant("fp32-4step")
    with serve_sources({"tiny": lambda: [engine]}) as one:
        assert refused(one, seed=1)["code"] == "no_trajectory"
        assert one.get("/v1/model").json()["trajectories"] == []


def test_vectors_have_no_strip(make_tiny_bundle, serving):
    engine = open_engine("onnxruntime", bundle.load(make_tiny_bundle(SampleSpec(shape=(2,)))))
    with serving(engine) as one:
        assert refused(one, seed=1)["message"].startswith("model: it makes vectors")


def test_a_picture_that_is_too_large_is_refused_before_it_is_made(stepped, monkeypatch):
    monkeypatch.setattr("mmf_deploy.serve.formats.MAX_PIXELS", 64 * 64 * 5)
    with serve_sources(sources_of(Settings(bundle=stepped))) as one:
        assert trajectory(one, size=64, format="webp").status_code == 200
        assert refused(one, size=64, format="png")["field"] == "size"
        assert trajectory(one, size=64, format="json").status_code == 200


# One engine for images and trajectories


class WayEngine(GatedEngine):
    """Gives trajectories as well, and notices whether two threads are inside at once."""

    def __init__(self, path, formula, variant="fp32-4step") -> None:
        super().__init__(path, formula)
        self.variant = self.bundle.variant(variant)
        self.kinds: list[str] = []
        self.ways_fail = False
        self._inside = threading.Lock()
        self.clashes = 0
        self.closed = threading.Event()

    def close(self) -> None:
        self.closed.set()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._inside.acquire(blocking=False):
            self.clashes += 1
            yield
            return
        try:
            yield
        finally:
            self._inside.release()

    def _run(self, noise, label, guidance):
        with self._alone():
            self.kinds.append("images")
            return super()._run(noise, label, guidance)

    def _trajectory(self, noise, label, guidance):
        with self._alone():
            self.kinds.append("ways")
            output = super()._run(noise, label, guidance)
            if self.ways_fail:
                raise OSError("no way")
            return way(noise, output.sample, self.variant.steps)


@pytest.fixture
def engine(stepped, tiny_formula) -> WayEngine:
    return WayEngine(stepped, tiny_formula)


def going(client, **body) -> Future[httpx.Response]:
    """A trajectory, without waiting for it."""
    post = partial(client._http.post, "/v1/trajectory", json={"format": "npy", **body})
    return client.portal.start_task_soon(partial(post, timeout=None))


def ways_of(client):
    found = client.service.model().loaded.main.trajectories
    assert found is not None
    return found


def ended(*futures: Future[httpx.Response]) -> list[httpx.Response]:
    return [future.result(PATIENCE_S) for future in futures]


@contextmanager
def with_an_image_running(client, engine) -> Iterator[Future[httpx.Response]]:
    """While inside, the engine is busy with an image; its gate is opened at the end."""
    engine.shut()
    running = client.generating(seed=0)
    assert engine.entered.acquire(timeout=PATIENCE_S)
    try:
        yield running
    finally:
        engine.gate.set()


def test_images_and_trajectories_at_once_never_meet_in_the_engine(engine, serving, expected):
    with serving(engine) as client:
        for _ in range(5):
            with with_an_image_running(client, engine) as first:
                ways = [going(client, seed=k, label=k % 10) for k in range(30)]
                some = [client.generating(seed=k, n=3, format="npy") for k in range(30)]
            assert ended(first)[0].status_code == 200
            for k, reply in enumerate(ended(*ways)):
                np.testing.assert_array_equal(array(reply), expected(k, k % 10))
            for k, reply in enumerate(ended(*some)):
                np.testing.assert_array_equal(array(reply)[0], expected(k, k % 10)[-1])
        assert engine.clashes == 0
        assert {"images", "ways"} <= set(engine.kinds)


def test_the_check_for_two_threads_in_the_engine_can_fail(engine):
    engine.shut()
    with engine:
        noise, label = gaussian_batch([1], SPEC.shape), np.array([1])
        thread = threading.Thread(target=engine.generate, args=(noise, label))
        thread.start()
        assert engine.entered.acquire(timeout=PATIENCE_S)
        engine.gate.set()
        engine.trajectory(noise, label)
        thread.join()
    assert engine.clashes == 1


def test_engines_of_one_device_share_a_turn_whatever_they_make(stepped, guided, tiny_formula):
    """Two models of two numbers of steps each: one batch at a time on their device."""
    inside, clashes = threading.Lock(), []

    class Exclusive(WayEngine):
        @contextmanager
        def _alone(self):
            if not inside.acquire(blocking=False):
                clashes.append(self.variant.name)
                yield
                return
            try:
                time.sleep(0.0005)
                yield
            finally:
                inside.release()

    def engines(path):
        return [Exclusive(path, tiny_formula, name) for name in ("fp32-2step", "fp32-4step")]

    sources = {"a": partial(engines, stepped), "b": partial(engines, guided)}
    with serve_sources(sources) as client:
        clashes.clear()  # golden images are verified before an engine has a turn to take
        asked = [
            going(client, model=model, steps=steps, seed=k)
            for k in range(10) for model in "ab" for steps in (2, 4)
        ]  # fmt: skip
        asked += [client.generating(model=model, steps=steps, seed=k)
                  for k in range(10) for model in "ab" for steps in (2, 4)]  # fmt: skip
        assert {reply.status_code for reply in ended(*asked)} == {200}
    assert clashes == []


def test_trajectories_that_wait_go_together_and_take_turns_with_images(engine, serving):
    with serving(engine) as client:
        with with_an_image_running(client, engine):
            engine.kinds.clear()
            ways = [going(client, seed=k) for k in range(3)]
            wait_for(lambda: ways_of(client).waiting == 3)
            text = client.get("/metrics").text
            assert 'mmf_queue_images{model="tiny",priority="normal"} 3.0' in text
            images = [client.generating(seed=k, n=8) for k in range(3)]
            wait_for(lambda: client.batcher.waiting == 24)
        ended(*ways, *images)
        assert engine.kinds.index("ways") <= 1, "they do not wait for all images"
        assert engine.kinds.count("ways") == 1
        assert 3 in engine.sizes


def test_a_reload_answers_the_trajectories_that_wait(tiny_bundle, tmp_path, tiny_formula, expected):
    path = write_stepped_bundle(tiny_bundle, tmp_path / "bundle")
    made: list[WayEngine] = []

    def source():
        made.append(WayEngine(path, tiny_formula))
        return [made[-1]]

    with serve_sources({"tiny": source}) as client:
        old = client.service.model().loaded
        with with_an_image_running(client, made[0]):
            ways = [going(client, seed=k, label=0) for k in range(3)]
            wait_for(lambda: old.main.trajectories.waiting == 3)
            shutil.rmtree(path)
            write_stepped_bundle(tiny_bundle, path, recipe={"changed": True})
            # the old engine holds the turn until its gate is open
            reloading = client.portal.start_task_soon(client.service.reload)
            wait_for(lambda: len(made) == 2)
        assert reloading.result(PATIENCE_S)
        for k, reply in enumerate(ended(*ways)):
            assert reply.headers["x-mmf-bundle"] == old.digest
            np.testing.assert_array_equal(array(reply), expected(k, 0))
        fresh = trajectory(client, seed=1, format="npy")
        assert fresh.headers["x-mmf-bundle"] == bundle.load(path).digest != old.digest


def test_a_drain_answers_the_trajectories_that_wait(engine, serving, expected):
    with serving(engine) as client:
        with with_an_image_running(client, engine):
            ways = [going(client, seed=k, label=0) for k in range(3)]
            wait_for(lambda: ways_of(client).waiting == 3)
            client.portal.call(client.service.drain)
            assert client.get("/readyz").status_code == 503
            closing = client.portal.start_task_soon(client.service.close)
            wait_for(lambda: trajectory(client, seed=1).status_code == 503)
        for k, reply in enumerate(ended(*ways)):
            np.testing.assert_array_equal(array(reply), expected(k, 0))
        closing.result(PATIENCE_S)


def test_an_engine_is_not_freed_while_it_makes_a_trajectory(engine, serving):
    with serving(engine) as client:
        engine.shut()
        last = going(client, seed=1)
        assert engine.entered.acquire(timeout=PATIENCE_S)
        closing = client.portal.start_task_soon(client.service.close)
        # its batcher of images has nothing to do and ends at once
        wait_for(lambda: client.generate(seed=1).status_code == 503)
        assert not engine.closed.wait(0.1)
        engine.gate.set()
        assert ended(last)[0].status_code == 200
        closing.result(PATIENCE_S)
        assert engine.closed.is_set()


# Limits and what is counted


def test_a_trajectory_counts_as_one_image_in_limits_budgets_and_metrics(engine, serving):
    taken: list[int] = []

    class Budget:
        def take(self, request, model, images):
            taken.append(images)

        def give_back(self, request, images):
            taken.append(-images)

    with serving(engine, Limits(max_queue_images=2)) as client:
        client.service.intake.limiter = Budget()
        with with_an_image_running(client, engine):
            ways = [going(client, seed=k) for k in range(2)]
            wait_for(lambda: ways_of(client).waiting == 2)
            third = trajectory(client, seed=3)
            assert third.status_code == 503
            assert third.json()["error"]["code"] == "overloaded"
            assert float(third.headers["retry-after-ms"]) > 0
        ended(*ways)
        assert taken == [1, 1, 1, 1, -1]
        value = client.service.metrics.registry.get_sample_value
        about = {"model": "tiny", "variant": "fp32-4step"}
        assert value("mmf_images_total", about) == 3
        assert value("mmf_shed_total", {"model": "tiny", "reason": "queue_full"}) == 1


def test_a_deadline_that_passed_while_waiting_is_not_computed(engine, serving):
    with serving(engine) as client:
        ended(going(client, seed=0))  # its cost is known from now on
        with with_an_image_running(client, engine):
            late = going(client, seed=1, deadline_ms=300)
            wait_for(lambda: ways_of(client).waiting == 1 or late.done())
            engine.kinds.clear()
            time.sleep(0.35)
        assert ended(late)[0].status_code == 503
        assert "ways" not in engine.kinds


def test_what_clients_left_is_not_computed(engine, serving):
    with serving(engine) as client:
        with with_an_image_running(client, engine):
            engine.kinds.clear()
            gone = going(client, seed=1)
            wait_for(lambda: ways_of(client).waiting == 1)
            gone.cancel()
            wait_for(lambda: ways_of(client).waiting == 0)
        wait_for(lambda: client.service.intake.busy == 0)
        assert "ways" not in engine.kinds


def test_trajectories_that_fail_are_500_and_leave_the_images_in_service(engine, serving, caplog):
    with serving(engine) as client:
        engine.ways_fail = True
        for _ in range(SICK_AFTER + 1):
            reply = trajectory(client, seed=1)
            assert reply.status_code == 500
            assert "no way" not in reply.text
        assert client.get("/readyz").status_code == 200
        assert client.generate(seed=1).status_code == 200
        engine.ways_fail = False
        assert trajectory(client, seed=1).status_code == 200
    assert "no way" in caplog.text


def test_a_trajectory_that_hangs_is_noticed(engine, serving, monkeypatch):
    monkeypatch.setattr(serve_model, "HUNG_AFTER_S", 0.05)
    with serving(engine) as client:
        assert client.get("/healthz").status_code == 200
        engine.shut()
        hanging = going(client, seed=1)
        assert engine.entered.acquire(timeout=PATIENCE_S)
        wait_for(lambda: client.get("/healthz").status_code == 503)
        engine.gate.set()
        ended(hanging)
        assert client.get("/healthz").status_code == 200


# GET /v1/model


def test_the_model_says_which_steps_have_one_and_what_was_measured(tiny_bundle, tmp_path):
    path = write_stepped_bundle(tiny_bundle, tmp_path / "bundle")
    content = {"latency": {"fp32": {"batch1_ms": 0.2, "on": "x"}}, "pytorch": {"1": 1.3}}
    (path / measured.NAME).write_bytes(measured.render(content))
    with serve_sources(sources_of(Settings(bundle=path))) as client:
        about = client.get("/v1/model").json()
        assert (about["steps"], about["trajectories"]) == ([1, 2, 4], [2, 4])
        assert about["measured"] == content
        assert (about["engine"], about["device"]) == ("onnxruntime", "cpu")


@pytest.mark.parametrize("damage", [None, b"{}", measured.render({"latency": {"a": float("nan")}})])
def test_measurements_that_are_missing_or_damaged_do_not_stand_in_the_way(
    tiny_bundle, tmp_path, damage
):
    path = write_stepped_bundle(tiny_bundle, tmp_path / "bundle")
    sources = sources_of(Settings(bundle=path))
    engines = next(iter(sources.values()))()
    if damage is not None:
        (path / measured.NAME).write_bytes(damage)
    with serve_sources({"tiny": lambda: engines}) as client:
        assert client.get("/v1/model").json()["measured"] == {}
        assert client.generate(seed=1).status_code == 200


def test_the_documentation_has_the_route(client):
    route = client.app.openapi()["paths"]["/v1/trajectory"]["post"]
    offered = set(route["responses"]["200"]["content"])
    assert {"image/png", "image/webp", "application/x-npy", "application/json"} <= offered
    assert "application/octet-stream" in offered
    assert "X-MMF-Shape" in route["responses"]["200"]["headers"]
    schema = route["requestBody"]["content"]["application/json"]["schema"]
    assert {"seed", "label", "steps", "fps", "deadline_ms"} <= schema["properties"].keys()
    assert not re.search(r"\$ref", str(schema))

"""Several models in one process, several numbers of steps in one model, and reloading."""

import asyncio
import shutil
import threading
import time

import pytest
from mmf_deploy.serve.loading import engines_of, sources_of
from mmf_deploy.serve.model import SICK_AFTER
from mmf_deploy.serve.service import Limits, Service, State
from mmf_deploy.serve.settings import Settings
from mmf_deploy.serve.watching import Watch

from mmf_deploy import bundle
from mmf_deploy.engines.base import open_engine
from mmf_deploy.spec import SampleSpec
from tests.serve.conftest import GatedEngine, serve_sources

PATIENCE_S = 10


def rewritten(path, **changes):
    """Write a bundle anew with changes in its manifest; gives its digest."""
    found = bundle.load(path)
    old = path.with_name(path.name + ".old")
    shutil.copytree(path, old)

    def fill(directory):
        for name in found.manifest.files:
            shutil.copy(old / name, directory)

    bundle.write(path, found.manifest.model_copy(update={"files": {}, **changes}), fill)
    shutil.rmtree(old)
    return bundle.load(path).digest


@pytest.fixture
def copy(tiny_bundle, tmp_path):
    return shutil.copytree(tiny_bundle, tmp_path / "copy")


def wait_for(condition):
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.001)


def wait_for_more(found, count=30):
    goal = len(found) + count
    wait_for(lambda: len(found) >= goal)


def reload(client):
    client.portal.call(client.service.reload)


def outcomes(client):
    value = client.service.metrics.registry.get_sample_value
    return {
        outcome: value("mmf_reloads_total", {"model": "tiny", "outcome": outcome})
        for outcome in ("replaced", "unchanged", "failed")
    }


# Several models


def test_each_model_answers_to_its_name_and_the_first_one_to_none(make_tiny_bundle, serving):
    channels_of = {"grey": 1, "colour": 3}
    engines = {
        name: open_engine("onnxruntime", bundle.load(make_tiny_bundle(SampleSpec(shape=(c, 8, 8)))))
        for name, c in channels_of.items()
    }
    with serving(engines) as client:
        assert client.get("/v1/model").json()["models"] == ["grey", "colour"]
        for name in ("grey", "colour", None):
            asked = {} if name is None else {"model": name}
            reply = client.generate(seed=1, **asked)
            assert reply.json()["model"] == reply.headers["x-mmf-model"] == (name or "grey")
            assert client.get(reply.json()["images"][0]["url"]).status_code == 200
            model = client.request("GET", "/v1/model", params=asked).json()
            assert model["spec"]["shape"] == [channels_of[name or "grey"], 8, 8]


def test_a_model_that_fails_to_open_keeps_the_service_from_ready(gated_of, serving):
    good, bad = gated_of(SampleSpec(shape=(1, 8, 8))), gated_of(SampleSpec(shape=(1, 8, 8)))
    bad.offset = 0.1
    with serving({"good": good, "bad": bad}, until=State.FAILED) as client:
        assert client.get("/readyz").status_code == 503
        assert "golden image" in str(client.service.failure)


def test_a_saturated_model_does_not_starve_another_on_its_device(gated_of, serving):
    spec = SampleSpec(shape=(1, 8, 8))
    busy, calm = gated_of(spec), gated_of(spec)
    with serving({"busy": busy, "calm": calm}, Limits(max_queue_images=100_000)) as client:
        busy.shut()
        flood = [client.generating(model="busy", n=200, seed=k) for k in range(20)]
        assert busy.entered.acquire(timeout=PATIENCE_S)
        reply = client.generating(model="calm", seed=1)
        busy.gate.set()
        assert reply.result(PATIENCE_S).status_code == 200
        # it was answered after one batch of the other, and not after all of them
        assert not all(f.done() for f in flood)
        assert all(f.result(PATIENCE_S).status_code == 200 for f in flood)


# Steps


@pytest.fixture
def stepped(copy):
    """A bundle whose file stands for variants of one and of two steps, and one of int8."""
    found = bundle.load(copy)
    variant = found.manifest.variants[0]
    golden = found.golden()
    both = [
        variant,
        variant.model_copy(update={"name": "fp32-2step", "steps": 2}),
        variant.model_copy(update={"name": "int8-4step", "steps": 4, "precision": "int8"}),
    ]
    old = copy.with_name("old")
    shutil.copytree(copy, old)

    def fill(directory):
        shutil.copy(old / variant.file, directory)
        golden.tolerance.update({"fp32-2step": 1.0, "int8-4step": 1.0})
        golden.other_steps.update({"2": golden.outputs, "4": golden.outputs})
        golden.save(directory / bundle.GOLDEN)

    bundle.write(copy, found.manifest.model_copy(update={"variants": both, "files": {}}), fill)
    return copy


def test_siblings_with_other_steps_are_served_beside_the_variant(stepped):
    assert [e.variant.name for e in engines_of(stepped, Settings())] == ["fp32", "fp32-2step"]
    settings = Settings(variant="fp32-2step")
    assert [e.variant.steps for e in engines_of(stepped, settings)] == [2, 1]


def test_a_request_can_ask_for_a_number_of_steps(stepped):
    with serve_sources(sources_of(Settings(bundle=stepped))) as client:
        assert client.get("/v1/model").json()["steps"] == [1, 2]
        assert client.generate(seed=1).json()["variant"] == "fp32"
        reply = client.generate(seed=1, steps=2).json()
        assert reply["variant"] == "fp32-2step"
        assert "variant=fp32-2step" in reply["images"][0]["url"]
        assert client.get(reply["images"][0]["url"]).headers["x-mmf-variant"] == "fp32-2step"
        wrong = client.generate(seed=1, steps=4)
        assert wrong.status_code == 422
        assert "it has 1, 2" in wrong.json()["error"]["message"]


def test_a_url_without_variant_leads_to_the_one_that_is_served(stepped):
    settings = Settings(bundle=stepped, variant="fp32-2step")
    with serve_sources(sources_of(settings)) as client:
        digest = client.service.model().loaded.digest
        reply = client.get(f"/v1/images/{digest}/3/7.png")
        assert reply.status_code == 307
        assert reply.headers["location"] == f"/v1/images/{digest}/3/7.png?variant=fp32-2step"
        assert client.get(reply.headers["location"]).status_code == 200


# Reloading


def test_a_reload_serves_the_new_bundle_and_each_answer_names_its_own(copy):
    old = bundle.load(copy).digest
    with serve_sources(sources_of(Settings(bundle=copy))) as client:
        reload(client)
        assert outcomes(client) == {"replaced": 0, "unchanged": 1, "failed": 0}
        url = client.generate(seed=1).json()["images"][0]["url"]
        new = rewritten(copy, recipe={"changed": True})
        assert new != old
        reload(client)
        assert client.generate(seed=1).json()["bundle"] == new
        assert client.get(url).status_code == 404, "what an address names never changes"
        assert outcomes(client)["replaced"] == 1


def test_a_bundle_that_cannot_be_served_leaves_the_old_one(copy, caplog):
    with serve_sources(sources_of(Settings(bundle=copy))) as client:
        old = client.generate(seed=1).json()["bundle"]
        graph = copy / "model.fp32.onnx"
        graph.write_bytes(graph.read_bytes()[:-1])
        reload(client)
        shutil.rmtree(copy)
        reload(client)
        assert client.generate(seed=1).json()["bundle"] == old
        assert client.get("/readyz").status_code == 200
        assert outcomes(client)["failed"] == 2
    assert "corrupt" in caplog.text
    assert "Traceback" not in caplog.text


def test_a_reload_under_load_drops_nothing(tiny_bundle, tmp_path, tiny_formula):
    """Requests in every state while engines are swapped: each answered by the one that took it."""
    paths = [shutil.copytree(tiny_bundle, tmp_path / str(k)) for k in range(4)]
    digests = [rewritten(path, recipe={"copy": k}) for k, path in enumerate(paths)]
    current = iter(paths)

    def source():
        return [GatedEngine(next(current), tiny_formula)]

    with serve_sources({"tiny": source}) as client:
        answers, stop = [], threading.Event()

        async def ask(k):
            seed = 0
            while not stop.is_set():
                reply = await client._http.post("/v1/generate", json={"seed": seed, "n": 1 + k})
                answers.append((reply.status_code, reply.json().get("bundle")))
                seed += 1

        asking = [client.portal.start_task_soon(ask, k) for k in range(6)]
        for _ in paths[1:]:
            wait_for_more(answers)
            reload(client)
        wait_for_more(answers)
        stop.set()
        for task in asking:
            task.result(PATIENCE_S)
    assert {status for status, _ in answers} == {200}
    seen = list(dict.fromkeys(digest for _, digest in answers))
    assert set(seen) == set(digests)


def test_a_bundle_that_is_replaced_is_noticed(copy):
    with serve_sources(sources_of(Settings(bundle=copy))) as client:
        watch = Watch(client.service, 0.01)
        task = client.portal.start_task_soon(watch.run)
        new = rewritten(copy, recipe={"changed": True})
        for _ in range(1000):
            if client.generate(seed=1).json()["bundle"] == new:
                break
            client.portal.call(asyncio.sleep, 0.01)
        assert client.generate(seed=1).json()["bundle"] == new
        task.cancel()


# An engine that only fails


def test_an_engine_that_only_fails_turns_health_red_until_it_works_again(gated, serving):
    with serving(gated) as client:
        gated.error = OSError("the device fell off")
        for _ in range(SICK_AFTER - 1):
            assert client.generate(seed=1).status_code == 500
        assert client.get("/healthz").status_code == 200
        assert client.generate(seed=1).status_code == 500
        assert client.get("/healthz").status_code == 503
        assert client.get("/readyz").json()["error"]["code"] == "not_ready_engine_fails"
        gated.error = None
        assert client.generate(seed=1).status_code == 200
        assert client.get("/readyz").status_code == 200


def test_a_service_needs_no_event_loop_before_it_starts(gated):
    assert Service({"tiny": lambda: [gated]}).model().loaded.digest == gated.bundle.digest

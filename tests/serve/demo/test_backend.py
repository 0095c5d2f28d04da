"""The demo's service: inside the process, and elsewhere."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
from mmf_deploy.serve.api_keys import KeyRing
from mmf_deploy.serve.demo.backend import families, local, remote
from mmf_deploy.serve.front import Front
from mmf_deploy.serve.key_file import write
from mmf_deploy.serve.service import Service

from mmf_deploy import bundle
from mmf_deploy.embedded import digits_bundle
from mmf_deploy.engines.base import open_engine
from mmf_deploy.errors import (
    BundleError,
    ConfigError,
    EngineError,
    ServiceError,
    UnreachableError,
)
from mmf_deploy.images import to_uint8
from mmf_deploy.noise import gaussian, gaussian_batch, spherical
from mmf_deploy.spec import SampleSpec
from tests.serve.live import live


def image_of(spec, formula, noise, label):
    """What the tiny model makes of one noise."""
    return to_uint8(formula(spec, noise[None], np.array([label])))[0]


@pytest.fixture(scope="module")
def digits():
    with local(digits_bundle()) as backend:
        yield backend


def test_every_family_of_variants_is_an_offer_with_its_steps(digits):
    about = digits.about
    assert (about.name, about.where) == ("digits", "in this process")
    assert [(o.model, o.steps, o.trajectories) for o in about.offers] == [
        ("fp32", (1, 2, 4), (2, 4)),
        ("int8", (1, 2, 4), ()),
    ]
    assert about.measured["pytorch"].keys() == {"1", "2", "4"}
    assert about.quality["class_accuracy"] > 0.98
    assert {o.digest for o in about.offers} == {bundle.load(digits_bundle()).digest}


@pytest.mark.parametrize(("model", "steps", "variant"), [
    (None, None, "fp32"), ("fp32", 4, "fp32-4step"), ("int8", 1, "int8"), ("int8", 2, "int8-2step"),
])  # fmt: skip
def test_images_are_those_of_the_engine(digits, model, steps, variant):
    made = asyncio.run(digits.generate(3, seed=40, label=5, steps=steps, model=model))
    assert made.variant == variant
    with open_engine(None, bundle.load(digits_bundle()), variant) as engine:
        expected = engine.generate(gaussian_batch([40, 41, 42], (1, 8, 8)), np.full(3, 5))
    np.testing.assert_array_equal(made.array, expected)
    assert made.timing_ms["infer"] > 0


def test_interpolations_and_trajectories_come_from_the_same_noise(digits):
    async def both():
        return (
            await digits.interpolate(7, 9, 5, label=3),
            await digits.trajectory(seed=7, label=3, steps=4),
            await digits.generate(1, seed=7, label=3, steps=4),
        )

    between, path, end = asyncio.run(both())
    with open_engine(None, bundle.load(digits_bundle())) as engine:
        middle = spherical(gaussian(7, (1, 8, 8)), gaussian(9, (1, 8, 8)), 0.5)
        expected = engine.generate(middle[None], np.array([3]))
    np.testing.assert_array_equal(between.array[2], expected[0])
    assert path.array.shape == (5, 8, 8, 1)
    np.testing.assert_array_equal(path.array[0], to_uint8(gaussian(7, (1, 8, 8))[None])[0])
    np.testing.assert_array_equal(path.array[-1], end.array[0])


def test_ten_at_once_from_other_event_loops_get_their_own_images(digits):
    found = {}

    def ask(seed):
        found[seed] = asyncio.run(digits.generate(4, seed=seed)).array

    threads = [threading.Thread(target=ask, args=(100 * k,)) for k in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, array in found.items():
        np.testing.assert_array_equal(array, asyncio.run(digits.generate(4, seed=seed)).array)
    assert len(found) == 10


def test_refusals_are_the_services(digits):
    with pytest.raises(ServiceError, match="out of range") as caught:
        asyncio.run(digits.generate(1, seed=1, label=99))
    assert caught.value.status == 422
    with pytest.raises(ServiceError, match="no variant of 3 steps"):
        asyncio.run(digits.generate(1, seed=1, steps=3))


def test_it_shows_a_service_that_runs_elsewhere(tiny_bundle, tiny_formula):
    def engines():
        return [open_engine("onnxruntime", bundle.load(tiny_bundle))]

    with live(Service({"one": engines, "two": engines})) as served:
        url = f"http://127.0.0.1:{served.port}"
        with remote(url) as backend:
            assert backend.about.where == url
            assert [o.model for o in backend.about.offers] == ["one", "two"]
            made = asyncio.run(backend.generate(2, seed=3, label=4, model="two"))
            spec = SampleSpec(shape=(1, 8, 8), classes=10)
            for seed, image in zip((3, 4), made.array, strict=True):
                expected = image_of(spec, tiny_formula, gaussian(seed, spec.shape), 4)
                np.testing.assert_array_equal(image, expected)


def test_service_that_is_down_is_said_in_one_line():
    with (
        pytest.raises(UnreachableError, match="is mmf-serve running there") as caught,
        remote("http://127.0.0.1:9"),
    ):
        pass
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="expected http"), remote("localhost"):
        pass


def test_address_with_a_password_or_an_impossible_port_is_refused():
    with (
        pytest.raises(ConfigError, match="give the service's key by --api-key") as caught,
        remote("http://alice:s3cret@127.0.0.1:9"),
    ):
        pass
    assert "s3cret" not in str(caught.value)
    with pytest.raises(ConfigError, match="expected http"), remote("http://127.0.0.1:99999"):
        pass


def test_key_that_the_service_refuses_is_said_with_its_option(tiny_bundle, tmp_path):
    key_file = tmp_path / "keys.yaml"
    write(key_file, [])
    service = Service({"one": lambda: [open_engine(None, bundle.load(tiny_bundle))]})
    with (
        live(service, Front(keys=KeyRing.read(key_file))) as served,
        pytest.raises(ConfigError, match="give one by --api-key or MMF_API_KEY"),
        remote(f"http://127.0.0.1:{served.port}", "wrong"),
    ):
        pass


def test_missing_bundle_and_vectors_are_refused_and_leave_no_thread(tmp_path, make_tiny_bundle):
    before = set(threading.enumerate())
    with pytest.raises(BundleError, match="no bundle here"), local(tmp_path):
        pass
    with (
        pytest.raises(ConfigError, match="vectors"),
        local(make_tiny_bundle(SampleSpec(shape=(2,)))),
    ):
        pass
    assert set(threading.enumerate()) <= before


def test_variants_that_do_not_run_here_are_left_out_aloud(tiny_bundle, tmp_path, caplog):
    def rewritten(name, **changes):
        found = bundle.load(tiny_bundle)
        [one] = found.manifest.variants
        other = one.model_copy(update={"name": "other", **changes})
        variants = [one, other] if name == "both" else [other]

        def fill(directory):
            for file in (one.file, bundle.GOLDEN):
                (directory / file).write_bytes((found.path / file).read_bytes())

        update = {"variants": variants, "files": {}}
        return bundle.write(tmp_path / name, found.manifest.model_copy(update=update), fill).path

    elsewhere = {"target": "onnxruntime-cuda", "device": "cuda"}
    with local(rewritten("both", **elsewhere)) as backend:
        assert [o.model for o in backend.about.offers] == ["fp32"]
    assert [r.message[:18] for r in caplog.records] == ["not shown: other: "]
    with (
        pytest.raises(EngineError, match="no variant runs here"),
        local(rewritten("none", **elsewhere)),
    ):
        pass


def test_what_is_for_browsers_is_shown_if_there_is_nothing_else():
    found = bundle.load(digits_bundle()).manifest.variants
    web = [v.model_copy(update={"target": "web", "name": f"web-{v.name}"}) for v in found]

    def named(variants):
        manifest = bundle.load(digits_bundle()).manifest.model_copy(update={"variants": variants})
        return list(families(bundle.Bundle(digits_bundle(), manifest, "")))

    assert named([*found, *web]) == ["fp32", "int8"]
    assert named(web) == ["web-fp32", "web-int8"]

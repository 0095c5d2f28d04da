"""The contract of every engine in ENGINES that this machine has."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest

from mmf_deploy import bundle, checkpoint
from mmf_deploy.engines import ENGINES
from mmf_deploy.engines.base import (
    BUCKETS,
    Engine,
    EngineOptions,
    Output,
    check_inputs,
    engine_class,
    open_engine,
)
from mmf_deploy.errors import BundleError, CheckpointError, EngineError, MMFError, ShapeError
from mmf_deploy.golden import verify_golden
from mmf_deploy.images import to_uint8
from mmf_deploy.noise import gaussian_batch
from mmf_deploy.spec import SampleSpec

SHAPE = (1, 8, 8)
CLASSES = 3


def of_variant(found, **changes):
    """The bundle's manifest with its first variant changed; the files stay as they are."""
    variant = found.variant().model_copy(update=changes)
    return found.manifest.model_copy(update={"variants": [variant]})


@pytest.fixture(scope="session")
def packaged_bundle(unet_bundle, unet_run, tmp_path_factory):
    """The same UNet as a package of compiled code."""
    from mmf_deploy.export.to_aoti import export_aoti

    from mmf_deploy.nn.build import network_from
    from mmf_deploy.nn.sampler import Sampler, time_grid

    def fill(directory):
        sampler = Sampler(network_from(checkpoint.read(unet_run)), time_grid(1)).eval()
        export_aoti(sampler, unet_bundle.spec, directory / "model.fp32.pt2")
        golden = replace(unet_bundle.golden(), samples={}, rms={}, graphs={})
        golden.save(directory / bundle.GOLDEN)

    changes = {"file": "model.fp32.pt2", "target": "aoti", "engine": "aoti", "opset": None}
    manifest = of_variant(unet_bundle, **changes).model_copy(update={"files": {}})
    return bundle.write(tmp_path_factory.mktemp("packaged") / "bundle", manifest, fill)


# compiling the UNet takes half a minute
CONTRACT = [pytest.param(n, marks=pytest.mark.slow if n == "aoti" else ()) for n in ENGINES]


@pytest.fixture(scope="module", params=CONTRACT)
def build(request, unet_bundle, unet_run):
    """``build()``: an engine for the exported UNet, not yet opened."""
    options = EngineOptions(threads=1, checkpoint=unet_run)
    packaged = request.param == "aoti"
    found = request.getfixturevalue("packaged_bundle") if packaged else unet_bundle

    def make() -> Engine:
        try:
            engine = open_engine(request.param, found, options=options)
        except EngineError as e:
            pytest.skip(str(e))
        reason = engine.unavailable(options)
        if reason is not None:
            pytest.skip(f"engine {request.param} cannot run here: {reason}")
        return engine

    return make


@pytest.fixture
def closed(build) -> Engine:
    """An engine of the test's own, not yet opened."""
    return build()


@pytest.fixture(scope="module")
def engine(build):
    """An open engine, the same for all tests: what one runs may not show in another."""
    with build() as opened:
        yield opened


def inputs(seeds, first_class=0):
    label = (np.arange(len(seeds)) + first_class) % CLASSES
    return gaussian_batch(seeds, SHAPE), label


def levels(a, b) -> int:
    return int(np.abs(a.astype(np.int16) - b.astype(np.int16)).max())


def test_golden_images_are_reproduced_alone_and_in_a_full_batch(engine):
    assert verify_golden(engine.bundle, engine, engine.variant) <= 1
    golden = engine.bundle.golden()
    x1 = gaussian_batch(golden.seeds.tolist(), SHAPE)
    assert levels(engine.generate(x1, golden.labels), golden.outputs) <= 1
    for k in range(len(x1)):
        row = slice(k, k + 1)
        assert levels(engine.generate(x1[row], golden.labels[row]), golden.outputs[row]) <= 1
    assert golden.outputs.std() > 20  # images that are all alike would prove nothing


def test_image_is_the_same_alone_and_in_a_batch_of_64(engine):
    x1, label = inputs(range(64))
    together = engine.generate(x1, label)
    assert (together.shape, together.dtype) == ((64, 8, 8, 1), np.uint8)
    for k in (0, 1, 2, 31, 63):
        alone = engine.generate(x1[k : k + 1], label[k : k + 1])
        assert levels(alone, together[k : k + 1]) <= 1
    assert levels(together[0], together[3]) > 1


@pytest.mark.parametrize("batch", [*BUCKETS, 3, 65, 130])
def test_every_batch_size_gives_as_many_finite_samples(batch, engine):
    x1, label = inputs([7] * batch)
    output = engine.run(x1, label)
    assert output.sample.shape == (batch, *SHAPE)
    assert output.sample.dtype == np.float32
    assert np.isfinite(output.sample).all()
    np.testing.assert_allclose(output.sample[::CLASSES], output.sample[:1].repeat(
        -(-batch // CLASSES), axis=0), atol=1e-4)  # fmt: skip


def test_image_is_the_bytes_of_the_sample(engine):
    output = engine.run(*inputs(range(20)))
    assert output.image is not None
    assert levels(output.image, to_uint8(output.sample)) <= 1


def test_batches_above_the_largest_bucket_are_split_and_come_back_in_order(closed):
    x1, label = inputs(range(11))
    with closed:
        whole = closed.run(x1, label)
    sizes = []
    run = closed._run

    def counted(noise, label, guidance) -> Output:
        sizes.append((len(noise), len(label)))
        return run(noise, label, guidance)

    closed._run = counted
    closed.buckets = (1, 2, 4)
    with closed:
        split = closed.run(x1, label)
    assert sizes == [(4, 4), (4, 4), (3, 3)]
    np.testing.assert_allclose(split.sample, whole.sample, atol=1e-4)
    assert levels(split.image, whole.image) <= 1


def test_label_changes_the_image_and_the_null_label_is_another(engine):
    x1 = gaussian_batch([5] * (CLASSES + 1), SHAPE)
    images = engine.generate(x1, np.arange(CLASSES + 1))
    for a in range(CLASSES + 1):
        for b in range(a):
            assert levels(images[a], images[b]) > 1


def test_inputs_may_lie_in_memory_in_any_order(engine):
    x1, label = inputs(range(6))
    forward = engine.generate(x1, label)
    backward = engine.generate(x1[::-1], label[::-1])
    assert levels(backward[::-1], forward) <= 1
    fortran = engine.generate(np.asfortranarray(x1), label.astype(np.int32))
    assert levels(fortran, forward) <= 1


def test_outputs_belong_to_the_caller(engine):
    x1, label = inputs(range(2))
    first = engine.run(x1, label)
    kept = first.sample.copy(), first.image.copy()
    engine.run(*inputs(range(2, 4)))
    np.testing.assert_array_equal(first.sample, kept[0])
    np.testing.assert_array_equal(first.image, kept[1])


NOISE = np.zeros((2, *SHAPE), np.float32)
LABEL = np.array([0, 1])
WRONG = {
    "noise-float64": (NOISE.astype(np.float64), LABEL, None, "expected float32"),
    "noise-channels": (np.zeros((2, 3, 8, 8), np.float32), LABEL, None, "expected float32"),
    "noise-one-sample": (NOISE[0], LABEL, None, "expected float32"),
    "noise-scalar": (np.zeros((), np.float32), LABEL, None, "expected float32"),
    "noise-empty": (NOISE[:0], LABEL[:0], None, "empty batch"),
    "label-absent": (NOISE, None, None, "label: expected 2 integers"),
    "label-short": (NOISE, LABEL[:1], None, "label: expected 2 integers"),
    "label-column": (NOISE, LABEL[:, None], None, "label: expected 2 integers"),
    "label-float": (NOISE, LABEL.astype(np.float32), None, "label: expected 2 integers"),
    "label-bool": (NOISE, LABEL.astype(bool), None, "label: expected 2 integers"),
    "label-negative": (NOISE, np.array([0, -1]), None, "expected 0 … 2"),
    "label-large": (NOISE, np.array([0, CLASSES + 1]), None, "expected 0 … 2"),
    "label-huge": (NOISE, np.array([0, 2**64 - 1], np.uint64), None, "expected 0 … 2"),
    "guidance": (NOISE, LABEL, np.ones(2, np.float32), "takes none"),
}


@pytest.mark.parametrize("case", WRONG)
def test_input_that_does_not_fit_is_refused_with_what_was_expected(case, engine):
    noise, label, guidance, message = WRONG[case]
    with pytest.raises(ShapeError, match=message):
        engine.generate(noise, label, guidance)


def test_engine_built_but_not_opened_refuses_to_run(closed):
    with pytest.raises(EngineError, match="outside its with-block"):
        closed.generate(*inputs([0]))


def test_engine_left_refuses_to_run_and_can_be_opened_again(closed):
    x1, label = inputs([0, 1])
    with closed:
        first = closed.generate(x1, label)
    with pytest.raises(EngineError, match="outside its with-block"):
        closed.generate(x1, label)
    with closed:
        assert levels(closed.generate(x1, label), first) <= 1


def test_loading_and_closing_twice_is_harmless(closed):
    closed.close()
    closed.load()
    closed.load()
    assert closed.generate(*inputs([0])).shape == (1, 8, 8, 1)
    closed.close()
    closed.close()


def test_error_inside_the_block_closes_the_engine(closed):
    def fail() -> None:
        with closed:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with pytest.raises(EngineError, match="outside its with-block"):
        closed.generate(*inputs([0]))


def test_engine_tells_its_name_its_precision_and_its_buckets(engine):
    assert ENGINES[engine.name].endswith(f":{type(engine).__name__}")
    assert (engine.precision, engine.device) == ("fp32", "cpu")
    assert engine.buckets == tuple(sorted(engine.buckets))


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("device", ["nonsense", "cuda:x", "meta"])
def test_unknown_device_is_refused_before_anything_is_loaded(name, device, unet_bundle, unet_run):
    options = EngineOptions(device=device, checkpoint=unet_run)
    file = "model.fp32.pt2" if name == "aoti" else "model.fp32.onnx"
    found = replace(unet_bundle, manifest=of_variant(unet_bundle, file=file))
    with (
        pytest.raises(EngineError, match=f"engine {name!r} cannot run here"),
        open_engine(name, found, options=options),
    ):
        pytest.fail("opened on a device that does not exist")


@pytest.mark.parametrize(("name", "near"), [("onnxruntme", "onnxruntime"), ("torch", "pytorch")])
def test_unknown_engine_is_refused_with_the_nearest(name, near, unet_bundle):
    with pytest.raises(EngineError, match=f"did you mean {near!r}") as caught:
        open_engine(name, unet_bundle)
    assert all(engine in str(caught.value) for engine in ENGINES)


@pytest.mark.parametrize("name", ENGINES)
def test_unknown_variant_is_refused(name, unet_bundle):
    with pytest.raises(BundleError, match="no variant 'int3'"):
        open_engine(name, unet_bundle, variant="int3")


@pytest.mark.parametrize("name", ENGINES)
def test_building_touches_no_file(name, unet_bundle, tmp_path):
    copy = bundle.load(shutil.copytree(unet_bundle.path, tmp_path / "copy"))
    shutil.rmtree(copy.path)
    try:
        built = engine_class(name)(copy, options=EngineOptions(checkpoint=tmp_path / "absent"))
    except ModuleNotFoundError as e:
        pytest.skip(f"{e.name} is not installed")
    with pytest.raises(MMFError):
        built.load()


def test_graph_that_is_garbage_is_refused_by_name(unet_bundle, tmp_path):
    copy = bundle.load(shutil.copytree(unet_bundle.path, tmp_path / "copy"))
    (copy.path / "model.fp32.onnx").write_bytes(b"garbage")
    with pytest.raises(EngineError, match=r"model\.fp32\.onnx: ONNX Runtime cannot load it"):
        open_engine("onnxruntime", copy).load()


def test_pytorch_without_a_checkpoint_says_which_flag(unet_bundle):
    with (
        pytest.raises(EngineError, match="pass --checkpoint"),
        open_engine("pytorch", unet_bundle),
    ):
        pytest.fail("opened without a checkpoint")


def test_pytorch_refuses_another_checkpoint_with_both_hashes(unet_bundle, unet_run, tmp_path):
    found = checkpoint.read(unet_run)
    weights = {name: found.tensors(name) for name in ("model", "ema-0.99")}
    weights["ema-0.99"] = {k: v + np.float32(1) for k, v in weights["ema-0.99"].items()}
    other = checkpoint.read(rewrite(found, tmp_path, weights))
    engine = open_engine("pytorch", unet_bundle, options=EngineOptions(checkpoint=other.path))
    with pytest.raises(EngineError, match="pass the checkpoint it was exported from") as caught:
        engine.load()
    assert found.weights_hash() in str(caught.value)
    assert other.weights_hash() in str(caught.value)


def test_pytorch_refuses_a_checkpoint_without_the_weights(unet_bundle, unet_run, tmp_path):
    found = checkpoint.read(unet_run)
    path = rewrite(found, tmp_path, {"model": found.tensors("model")})
    engine = open_engine("pytorch", unet_bundle, options=EngineOptions(checkpoint=path))
    with pytest.raises(CheckpointError, match=r"no weights 'ema-0\.99'; it has model"):
        engine.load()


def rewrite(found, directory, weights):
    return checkpoint.write(
        directory,
        step=found.step,
        spec=found.spec,
        network=found.network,
        weights=weights,
        config={},
        meta={},
    )


@pytest.mark.parametrize(
    "spec",
    [
        SampleSpec(shape=(5,)),
        SampleSpec(shape=(3, 4, 4)),
        SampleSpec(shape=(3, 4, 6), guidance=(1, 4)),
        SampleSpec(shape=(2,), classes=4, guidance=(1, 2)),
    ],
    ids=lambda s: f"{len(s.shape)}d-{s.classes}-{s.guided}",
)
def test_every_kind_of_sample_is_generated(spec, make_tiny_bundle, tiny_formula):
    found = bundle.load(make_tiny_bundle(spec))
    x1 = gaussian_batch(range(70), spec.shape)
    label = np.arange(70) % spec.classes if spec.conditional else None
    guidance = np.linspace(*spec.guidance, 70) if spec.guidance else None
    with open_engine("onnxruntime", found) as engine:
        assert verify_golden(found, engine, engine.variant) <= 1
        output = engine.run(x1, label, guidance)
        shown = engine.generate(x1, label, guidance)
    expected = tiny_formula(spec, x1, label, guidance)
    np.testing.assert_allclose(output.sample, expected, atol=1e-6)
    if spec.is_image:
        assert levels(shown, to_uint8(expected)) <= 1
    else:
        assert output.image is None
        np.testing.assert_array_equal(shown, output.sample)


GUIDED = SampleSpec(shape=(2,), guidance=(1, 4))


@pytest.mark.parametrize(
    "guidance",
    [None, np.ones(1), np.ones((2, 1)), np.array([1, 0.99]), np.array([1, 4.01]),
     np.array([1, np.nan]), np.array([1, np.inf])],
    ids=str,
)  # fmt: skip
def test_guidance_that_does_not_fit_is_refused(guidance):
    with pytest.raises(ShapeError, match="guidance"):
        check_inputs(GUIDED, np.zeros((2, 2), np.float32), None, guidance)


def test_label_for_a_generator_without_classes_is_refused():
    with pytest.raises(ShapeError, match="no classes; leave it out"):
        check_inputs(SampleSpec(shape=(2,)), np.zeros((2, 2), np.float32), LABEL, None)


def test_checked_inputs_have_the_dtypes_of_the_graph():
    spec = SampleSpec(shape=(2,), classes=3, guidance=(1, 4))
    noise = np.zeros((2, 2), np.float32)
    label, guidance = check_inputs(spec, noise, np.array([3, 0], np.uint8), np.array([1, 4]))
    assert (label.dtype, label.tolist()) == (np.int64, [3, 0])
    assert (guidance.dtype, guidance.tolist()) == (np.float32, [1, 4])

"""What an exported bundle is, for every kind of generator."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest
import torch
from mmf_deploy.export.assemble import Request, export_bundle, export_origin
from mmf_deploy.export.fold import plain_sampler
from mmf_deploy.export.gates import LIMITS, judge_variant
from mmf_deploy.export.graph import fixed_inputs
from mmf_deploy.export.origin import from_checkpoint
from mmf_deploy.export.parity import compare
from mmf_deploy.export.reference import reference
from mmf_deploy.export.to_web import has_page, page_files

from mmf_deploy import bundle as bundles_module
from mmf_deploy import checkpoint as checkpoints_module
from mmf_deploy.engines.base import EngineOptions, open_engine
from mmf_deploy.errors import CheckpointError, ConfigError, ParityError
from mmf_deploy.files import sha256
from mmf_deploy.golden import verify_golden


def test_the_graph_has_the_contract_inputs_and_outputs(exported, session):
    _, bundle = exported
    spec = bundle.spec
    for variant in bundle.manifest.variants:
        loaded = session(bundle.file(variant))
        inputs = {i.name: (i.type, len(i.shape)) for i in loaded.get_inputs()}
        expected = {"noise": ("tensor(float)", 1 + len(spec.shape))}
        if spec.conditional:
            expected["label"] = ("tensor(int64)", 1)
        if spec.guided:
            expected["guidance"] = ("tensor(float)", 1)
        assert inputs == expected
        outputs = {o.name: o.type for o in loaded.get_outputs()}
        image = {"image": "tensor(uint8)"} if spec.is_image else {}
        trajectory = {"trajectory": "tensor(float)"} if variant.trajectory else {}
        assert outputs == {"sample": "tensor(float)"} | image | trajectory


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 2, 7, 64])
def test_the_graph_equals_pytorch_at_every_batch_size(exported, batch):
    checkpoint, bundle = exported
    inputs = fixed_inputs(bundle.spec, batch, first_seed=1000)
    expected = plain_sampler(from_checkpoint(checkpoint.path), 1)(**inputs.tensors())
    with open_engine("onnxruntime", bundle) as engine:
        found = engine.run(inputs.noise, inputs.label, inputs.guidance)
    np.testing.assert_allclose(found.sample, expected[0].numpy(), atol=1e-4)
    if bundle.spec.is_image:
        difference = found.image.astype(int) - expected[1].numpy().astype(int)
        assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("name", ["onnxruntime", "pytorch"])
def test_golden_images_come_out_of_every_engine(exported, name):
    checkpoint, bundle = exported
    with open_engine(name, bundle, options=EngineOptions(checkpoint=checkpoint.path)) as engine:
        verify_golden(bundle, engine, bundle.variant())


def test_golden_images_of_resampling_and_attention_come_out_of_openvino(bundles):
    pytest.importorskip("openvino")
    bundle = bundles("unconditional")
    with open_engine("openvino", bundle) as engine:
        verify_golden(bundle, engine, bundle.variant())


def test_the_average_is_exported_and_not_the_model(checkpoints, tmp_path):
    found = export_bundle(
        Request(checkpoints("vector"), tmp_path / "model", weights="model", samples=16)
    )
    assert found.manifest.source.weights == "model"
    checkpoint = checkpoints_module.read(checkpoints("vector"))
    assert found.manifest.source.weights_sha256 == checkpoint.weights_hash("model")
    default = from_checkpoint(checkpoints("vector")).source
    assert default.weights == "ema-0.9"
    assert default.weights_sha256 == checkpoint.weights_hash("ema-0.9")
    noise = fixed_inputs(found.spec, 4).noise
    with open_engine(None, found) as engine:
        (average,) = plain_sampler(from_checkpoint(checkpoints("vector")), 1)(
            torch.from_numpy(noise)
        )
        difference = engine.run(noise).sample - average.numpy()
    assert np.abs(difference).max() > 1e-2
    with pytest.raises(CheckpointError, match=r"ema-0\.5"):
        from_checkpoint(checkpoints("vector"), "ema-0.5")


def test_the_graph_carries_nothing_of_the_machine_it_was_made_on(exported):
    _, bundle = exported
    for variant in bundle.manifest.variants:
        content = bundle.file(variant).read_bytes()
        for word in (b"stack_trace", b"site-packages", b"class_hierarchy", b".py", b"/tmp"):
            assert word not in content


def test_the_manifest_says_where_it_comes_from(exported):
    checkpoint, bundle = exported
    source = bundle.manifest.source
    assert (source.step, source.weights) == (checkpoint.step, "ema-0.9")
    assert source.weights_sha256 == checkpoint.weights_hash("ema-0.9")
    net = from_checkpoint(checkpoint.path).net
    assert source.parameters == sum(p.numel() for p in net.parameters())
    assert bundle.manifest.recipe == checkpoint.config
    assert {"mmf-deploy", "torch", "onnx", "python", "onnxruntime"} <= set(bundle.manifest.versions)
    card = (bundle.path / "README.md").read_text()
    assert f"step {checkpoint.step}" in card
    assert f"{source.parameters:,}" in card
    assert ("samples.png" in card) == bundle.spec.is_image
    assert (bundle.path / "samples.png").is_file() == bundle.spec.is_image


@pytest.mark.parametrize("kind", ["vector", pytest.param("guided", marks=pytest.mark.slow)])
def test_exporting_again_gives_the_same_bytes(kind, checkpoints, bundles, traced_anew, tmp_path):
    before = bundles(kind)
    traced_anew()
    again = export_bundle(Request(checkpoints(kind), tmp_path / "bundle", samples=80))
    assert again.digest == before.digest
    assert again.measured().keys() == before.measured().keys()


def test_quantising_again_gives_the_same_bytes(convolutions, traced_anew, tmp_path):
    request = {"targets": ("onnxruntime-cpu", "web"), "precisions": ("int8", "fp16"), "samples": 16}
    made = []
    for folder in "ab":
        asked = Request(tmp_path, tmp_path / folder / "bundle", **request)
        made.append(export_origin(convolutions(), asked))
        traced_anew()
    assert made[0].digest == made[1].digest
    assert made[0].manifest.files["model.int8.onnx"] == made[1].manifest.files["model.int8.onnx"]


def test_an_existing_bundle_is_replaced_only_by_force(checkpoints, bundles, tmp_path):
    source, out = checkpoints("vector"), tmp_path / "bundle"
    shutil.copytree(bundles("vector").path, out)
    with pytest.raises(ConfigError, match="--force"):
        export_bundle(Request(source, out))
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("work of years")
    with pytest.raises(ConfigError, match="is not a bundle"):
        export_bundle(Request(source, precious, force=True))
    assert (precious / "thesis.tex").read_text() == "work of years"
    found = export_bundle(Request(source, out, force=True, weights="model", samples=16))
    assert bundles_module.load(out).digest == found.digest != bundles("vector").digest


def test_a_changed_weight_is_seen_by_the_comparison(bundles, origins, tmp_path):
    bundle, origin = bundles("conditional"), origins("conditional")
    path = shutil.copytree(bundle.path, tmp_path / "copy")
    model = onnx.load(path / "model.fp32.onnx")
    largest = max(model.graph.initializer, key=lambda i: len(i.raw_data))
    values = onnx.numpy_helper.to_array(largest).copy()
    values.flat[0] += 0.5
    largest.CopyFrom(onnx.numpy_helper.from_array(values, largest.name))
    onnx.save(model, path / "model.fp32.onnx")
    spoilt = bundles_module.Bundle(path, bundle.manifest, "")
    expected = reference(plain_sampler(origin, 1), origin.spec, 16)
    with open_engine("onnxruntime", spoilt) as engine:
        parity, _ = compare(engine, expected)
    assert parity.max_abs > LIMITS["fp32"].absolute
    with pytest.raises(ParityError, match="differs from the checkpoint"):
        judge_variant("fp32", "fp32", parity, origin.spec, None, ())


def test_frozen_input_is_no_input_of_the_bundle_and_its_samples_are_the_generators(
    convolutions, tmp_path
):
    origin = convolutions(3, (1.0, 4.0))
    bundle = export_origin(origin, Request(tmp_path, tmp_path / "bundle", samples=16, label=2))
    assert (bundle.manifest.source.label, bundle.manifest.source.guidance) == (2, None)
    assert not bundle.spec.conditional
    assert bundle.spec.guidance == (1.0, 4.0)
    inputs = fixed_inputs(origin.spec, 3).tensors()
    inputs["label"] = torch.full((3,), 2)
    expected = plain_sampler(origin, 1)(**inputs)[0].numpy()
    noise, scale = inputs["noise"].numpy(), inputs["guidance"].numpy()
    with open_engine(None, bundles_module.load(bundle.path)) as engine:
        verify_golden(bundle, engine, bundle.variant())
        np.testing.assert_allclose(engine.run(noise, guidance=scale).sample, expected, atol=1e-4)
    assert "| Label | 2, frozen |" in (bundle.path / "README.md").read_text()


def test_frozen_inputs_of_a_checkpoint_are_given_to_pytorch_too(checkpoints, tmp_path):
    source = checkpoints("guided vector")
    fixed = {"label": 1, "guidance": 3.0}
    bundle = export_bundle(Request(source, tmp_path / "bundle", samples=16, **fixed))
    for name in ("onnxruntime", "pytorch"):
        with open_engine(name, bundle, options=EngineOptions(checkpoint=source)) as engine:
            verify_golden(bundle, engine, bundle.variant())
    operators = bundle.variant().graph["operators"]
    assert not operators.keys() & {"Sin", "Cos", "Gather", "GatherND"}
    # its own layers alone: the input, two of depth and the output
    assert operators["Gemm"] + operators.get("MatMul", 0) == 4


def test_progress_ends_at_the_number_of_images_announced(convolutions, tmp_path):
    from mmf_deploy.export.build import images_to_make
    from mmf_deploy.export.plan import make_plan

    origin = convolutions()
    request = Request(
        tmp_path, tmp_path / "bundle", targets=("onnxruntime-cpu", "web"),
        precisions=("fp32", "int8"), samples=20,
    )  # fmt: skip
    seen = []
    export_origin(origin, request, lambda stage, done: seen.append((stage, done)))
    planned, _ = make_plan(request, origin.spec)
    numbers = [done for _, done in seen]
    assert numbers == sorted(numbers)
    assert numbers[-1] == images_to_make(planned, 20, origin)
    stages = list(dict.fromkeys(stage for stage, _ in seen))
    assert stages == ["PyTorch's images", "tracing", "fp32: comparing", "calibrating",
                      "int8: comparing", "web-fp32: comparing"]  # fmt: skip


def test_quality_that_training_measured_is_taken_for_the_very_step_and_whole_generator(
    checkpoints, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(checkpoints("vector").parent, run / "checkpoints")
    file = run / "evaluation.json"
    measured = {"step": 1, "frechet": 9.0}
    file.write_text(json.dumps(measured))
    assert from_checkpoint(run).quality == {"frechet": 9.0}
    assert from_checkpoint(run).default_name == "run"
    for text in (json.dumps({**measured, "step": 2}), "{", ""):
        file.write_text(text)
        assert from_checkpoint(run).quality == {}
    assert from_checkpoint(run).judge is None
    (run / "judge").mkdir()
    assert from_checkpoint(run).judge == run / "judge"


def test_every_file_of_the_bundle_is_one_that_it_needs(exported):
    _, bundle = exported
    found = {f.name for f in bundle.path.iterdir()}
    needed = {v.file for v in bundle.manifest.variants}
    needed |= {"bundle.json", "golden.npz", "README.md", "measured.json"}
    if has_page(tuple(v.target for v in bundle.manifest.variants), bundle.spec):
        needed |= page_files(None).keys()
    assert found == needed | ({"samples.png"} if bundle.spec.is_image else set())
    assert bundle.golden().graphs == {
        v.name: sha256(bundle.file(v)) for v in bundle.manifest.variants
    }

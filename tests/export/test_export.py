"""What an exported bundle is, for every kind of generator."""

import shutil

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from mmf_deploy.export import assemble, parity
from mmf_deploy.export.assemble import Request, export_bundle
from mmf_deploy.export.graph import fixed_inputs, frozen_sampler
from mmf_deploy.export.parity import Parity, Tolerance, compare, judge

from mmf_deploy.engines.base import EngineOptions, open_engine
from mmf_deploy.errors import ConfigError, ParityError
from mmf_deploy.golden import verify_golden


def test_the_graph_has_the_contract_inputs_and_outputs(exported):
    _, bundle = exported
    spec = bundle.spec
    session = ort.InferenceSession(str(bundle.file(bundle.variant())))
    inputs = {i.name: (i.type, len(i.shape)) for i in session.get_inputs()}
    expected = {"noise": ("tensor(float)", 1 + len(spec.shape))}
    if spec.conditional:
        expected["label"] = ("tensor(int64)", 1)
    if spec.guided:
        expected["guidance"] = ("tensor(float)", 1)
    assert inputs == expected
    outputs = {o.name: o.type for o in session.get_outputs()}
    wanted = {"sample": "tensor(float)"} | ({"image": "tensor(uint8)"} if spec.is_image else {})
    assert outputs == wanted


@pytest.mark.parametrize("batch", [1, 2, 7, 64])
def test_the_graph_equals_pytorch_at_every_batch_size(exported, batch):
    checkpoint, bundle = exported
    inputs = fixed_inputs(bundle.spec, batch, first_seed=1000)
    with torch.inference_mode():
        expected = frozen_sampler(checkpoint, "ema-0.9")(**inputs.tensors())
    with open_engine("onnxruntime", bundle) as engine:
        found = engine.run(inputs.noise, inputs.label, inputs.guidance)
    np.testing.assert_allclose(found.sample, expected[0].numpy(), atol=1e-4)
    if bundle.spec.is_image:
        difference = found.image.astype(int) - expected[1].numpy().astype(int)
        assert np.abs(difference).max() <= 1


def test_golden_images_come_out_of_every_engine(exported):
    checkpoint, bundle = exported
    for name in ("onnxruntime", "pytorch"):
        with open_engine(name, bundle, options=EngineOptions(checkpoint=checkpoint.path)) as engine:
            verify_golden(bundle, engine, bundle.variant())


def test_frozen_times_leave_no_time_embedding_in_the_graph(exported):
    _, bundle = exported
    model = onnx.load(bundle.file(bundle.variant()))
    trigonometric = [n for n in model.graph.node if n.op_type in ("Sin", "Cos")]
    # with guidance as an input only its own embedding may remain: one sine and one cosine
    assert len(trigonometric) == (2 if bundle.spec.guided else 0)


def test_the_graph_carries_nothing_of_the_machine_it_was_made_on(exported):
    _, bundle = exported
    content = bundle.file(bundle.variant()).read_bytes()
    for word in (b"stack_trace", b"site-packages", b"class_hierarchy", b".py"):
        assert word not in content


def test_the_model_card_says_where_it_comes_from(exported):
    checkpoint, bundle = exported
    card = (bundle.path / "README.md").read_text()
    assert f"step {checkpoint.step}" in card
    assert f"{bundle.manifest.source.parameters:,}" in card
    assert ("samples.png" in card) == bundle.spec.is_image
    assert (bundle.path / "samples.png").is_file() == bundle.spec.is_image


def test_exporting_again_gives_the_same_bytes(exported, tmp_path):
    checkpoint, bundle = exported
    again, _ = export_bundle(Request(checkpoint.path, tmp_path / "bundle"))
    assert again.digest == bundle.digest


def test_an_existing_bundle_is_replaced_only_by_force(exported, tmp_path):
    checkpoint, bundle = exported
    out = tmp_path / "bundle"
    shutil.copytree(bundle.path, out)
    with pytest.raises(ConfigError, match="--force"):
        export_bundle(Request(checkpoint.path, out))
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("work of years")
    with pytest.raises(ConfigError, match="is not a bundle"):
        export_bundle(Request(checkpoint.path, precious, force=True))
    assert (precious / "thesis.tex").read_text() == "work of years"


def test_a_graph_beyond_tolerance_is_refused_and_nothing_is_written(
    exported, tmp_path, monkeypatch
):
    checkpoint, _ = exported
    strict = {"fp32": Tolerance(absolute=0.0, levels=0)}
    monkeypatch.setattr(assemble, "TOLERANCES", strict)
    # rounding alone must already be too much for a tolerance of nothing
    with pytest.raises(ParityError, match="Nothing was written"):
        export_bundle(Request(checkpoint.path, tmp_path / "bundle"))
    assert list(tmp_path.iterdir()) == []


def test_a_changed_weight_is_seen_by_the_comparison(exported, tmp_path):
    checkpoint, bundle = exported
    model = onnx.load(bundle.file(bundle.variant()))
    largest = max(model.graph.initializer, key=lambda i: len(i.raw_data))
    values = onnx.numpy_helper.to_array(largest).copy()
    values.flat[0] += 0.5
    largest.CopyFrom(onnx.numpy_helper.from_array(values, largest.name))
    onnx.save(model, tmp_path / "changed.onnx")
    found = compare(
        frozen_sampler(checkpoint, "ema-0.9"), bundle.spec, tmp_path / "changed.onnx", (2,)
    )
    with pytest.raises(ParityError, match="differs from the checkpoint"):
        judge(found, parity.TOLERANCES["fp32"], "changed.onnx")


def test_judge_accepts_what_is_within_both_tolerances():
    judge(Parity(1e-4, 1e-5, 1, 74), Tolerance(1e-3, 1), "fine")
    with pytest.raises(ParityError):
        judge(Parity(1e-4, 1e-5, 2, 74), Tolerance(1e-3, 1), "two levels")
    with pytest.raises(ParityError):
        judge(Parity(2e-3, 1e-5, 0, 74), Tolerance(1e-3, 1), "too far")

"""Every form of graph is one network: the same samples, written for different engines."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from mmf_deploy.export.checks import check_graph
from mmf_deploy.export.fold import frozen_sampler, plain_sampler
from mmf_deploy.export.graph import fixed_inputs
from mmf_deploy.export.precision import LOW, to_low_precision
from mmf_deploy.export.rewrite import in_form
from mmf_deploy.export.targets import FORMS, TARGETS, Form, candidates
from mmf_deploy.export.to_onnx import export_onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from mmf_deploy.engines.base import open_engine
from mmf_deploy.golden import verify_golden
from mmf_deploy.nn.unet import Conv2d
from mmf_deploy.spec import SampleSpec

FOLDED = list(dict.fromkeys([*FORMS, *(t.form for t in TARGETS.values() if t.form.folded)]))
# of a network without resampling the others are the same graphs
TRACED = [form for form in FOLDED if form.upsampling == Form().upsampling]
NORMALISES = {"instance": "InstanceNormalization", "group": "GroupNormalization"}


def name_of(form) -> str:
    return f"{form.normalisation}-{form.upsampling}-opset{form.opset}"


def operators(path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


@pytest.fixture(params=FOLDED, ids=name_of)
def form(request) -> Form:
    return request.param


@torch.no_grad()
@pytest.mark.parametrize("form", TRACED, ids=name_of)
@pytest.mark.parametrize("batch", [1, 3])
def test_every_form_gives_the_samples_of_pytorch(batch, form, graphs, origins, session):
    origin = origins("conditional")
    inputs = fixed_inputs(origin.spec, batch, first_seed=500)
    sample, image = plain_sampler(origin, 1)(**inputs.tensors())
    found = session(graphs("conditional", form)).run(["sample", "image"], inputs.named())
    np.testing.assert_allclose(found[0], sample.numpy(), rtol=0, atol=1e-5)
    assert np.abs(found[1].astype(int) - image.numpy().astype(int)).max() <= 1


@pytest.mark.parametrize("form", TRACED, ids=name_of)
def test_every_form_is_written_as_it_says(form, graphs):
    path = graphs("conditional", form)
    assert onnx.load(path).opset_import[0].version == form.opset
    found = operators(path) & set(NORMALISES.values())
    wanted = NORMALISES.get(form.normalisation)
    assert found == ({wanted} if wanted else set())
    # every shape but the batch is known when the graph is written
    assert "Shape" not in operators(path)


def test_form_without_folding_keeps_its_times_in_the_graph(plain_bundle):
    variant = plain_bundle.variant("plain-fp32")
    assert variant.form["time"] == "input"
    assert {"Sin", "Cos", "Shape"} <= operators(plain_bundle.file(variant))
    with open_engine(None, plain_bundle, variant.name) as engine:
        verify_golden(plain_bundle, engine, variant)


def test_batch_stays_dynamic_and_no_shape_is_asked_for(exported, session):
    _, bundle = exported
    path = bundle.file(bundle.variant("fp32"))
    assert "Shape" not in operators(path)
    graph = onnx.load(path).graph
    for value in [*graph.input, *graph.output]:
        first, *rest = value.type.tensor_type.shape.dim
        assert first.dim_param
        assert all(d.HasField("dim_value") for d in rest)
    loaded = session(path)
    for batch in (1, 2, 5):
        (found,) = loaded.run(["sample"], fixed_inputs(bundle.spec, batch).named())
        assert found.shape == (batch, *bundle.spec.shape)


def test_writing_normalisation_out_leaves_the_network_as_it_was_and_shares_its_weights(origins):
    origin = origins("conditional")
    sampler = frozen_sampler(origin, 1)
    written = in_form(sampler, Form(normalisation="reduce"))
    assert not any(type(m) is nn.GroupNorm for m in written.modules())
    assert any(isinstance(m, nn.GroupNorm) for m in sampler.modules())
    before, after = dict(sampler.named_parameters()), dict(written.named_parameters())
    convolutions = [name for name in before if ".conv" in name]
    assert convolutions
    assert all(after[name] is before[name] for name in convolutions)
    assert in_form(sampler, Form(upsampling="transposed")) is sampler


@torch.no_grad()
@pytest.mark.parametrize("kind", ["unconditional", "guided", "vector"])
def test_every_form_is_the_same_network(kind, form, origins):
    """Also where resolutions change; in PyTorch, since tracing costs seconds."""
    origin = origins(kind)
    inputs = fixed_inputs(origin.spec, 3, first_seed=500).tensors()
    expected = plain_sampler(origin, 1)(**inputs)[0]
    found = in_form(frozen_sampler(origin, 1), form)(**inputs)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


class Doubled(nn.Module):
    """Up and down again, by the UNet's own convolutions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = Conv2d(1, 8, 3, up=True), Conv2d(8, 1, 3, down=True)

    def forward(self, x, r, t, label=None, guidance=None):
        return self.down(torch.sigmoid(self.up(x)))


@torch.no_grad()
@pytest.mark.parametrize(
    ("upsampling", "operator"), [("nearest", "Resize"), ("transposed", "ConvTranspose")]
)
def test_upsampling_is_written_as_the_form_says(
    upsampling, operator, make_origin, session, tmp_path
):
    spec = SampleSpec(shape=(1, 8, 8))
    sampler = plain_sampler(make_origin(Doubled(), spec), 1)
    export_onnx(sampler, spec, tmp_path / "g.onnx", Form(upsampling=upsampling))
    assert operators(tmp_path / "g.onnx") & {"Resize", "ConvTranspose"} == {operator}
    check_graph(tmp_path / "g.onnx", "tensorrt")
    check_graph(tmp_path / "g.onnx", "web")
    for batch in (1, 3):
        inputs = fixed_inputs(spec, batch)
        (found,) = session(tmp_path / "g.onnx").run(["sample"], inputs.named())
        expected = sampler(**inputs.tensors())[0].numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


class Norms(nn.Module):
    """Group normalisation as a user may have it: of vectors, of sequences, without weights."""

    def __init__(self, shape, affine) -> None:
        super().__init__()
        self.shape, self.norm = shape, nn.GroupNorm(2, 8, affine=affine)

    def forward(self, x, r, t, label=None, guidance=None):
        return self.norm(x.reshape(len(x), *self.shape)).reshape(x.shape)


@torch.no_grad()
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(8,), (8, 1, 1)], ids=str)
def test_normalisation_of_any_rank_can_be_written_out(shape, affine, make_origin):
    origin = make_origin(Norms(shape, affine), SampleSpec(shape=(8,)))
    noise = fixed_inputs(origin.spec, 4).tensors()["noise"]
    sampler = plain_sampler(origin, 1)
    found = in_form(sampler, Form(normalisation="reduce"))(noise)[0]
    torch.testing.assert_close(found, sampler(noise)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", [f for f in FORMS if f in TRACED], ids=name_of)
def test_squares_beyond_fp16_do_not_overflow_in_a_normalisation(form, graphs, origins, session):
    model = onnx.load(graphs("conditional", form))
    # activations in the thousands, which every normalisation divides by their size
    for initializer in model.graph.initializer:
        if ".8x8_conv." in initializer.name:
            values = numpy_helper.to_array(initializer) * np.float32(2000)
            initializer.CopyFrom(numpy_helper.from_array(values, initializer.name))
    inputs = fixed_inputs(origins("conditional").spec, 2).named()
    (expected,) = session(model).run(["sample"], inputs)
    low = to_low_precision(model, "fp16")
    # not ONNX Runtime, which computes fp16 in fp32 on the CPU
    (found,) = ReferenceEvaluator(low).run(["sample"], inputs)
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-2)


@pytest.mark.parametrize(
    ("target", "precision"),
    [
        (name, precision)
        for name, target in TARGETS.items()
        for precision, kind in target.precisions.items()
        if precision in LOW and kind == "graph" and target.file_format == "onnx"
    ],
)
def test_every_form_that_may_be_chosen_is_valid_in_every_precision_of_its_target(
    target, precision, graphs, tmp_path
):
    for form in candidates(TARGETS[target]):
        if form not in TRACED:
            continue
        model = to_low_precision(onnx.load(graphs("conditional", form)), precision)
        onnx.save(model, tmp_path / "low.onnx")
        check_graph(tmp_path / "low.onnx", target)

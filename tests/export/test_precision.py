"""fp16 and bf16 graphs: what is computed in them, what stays fp32, and how close they are."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from mmf_deploy.export.checks import audit_dtypes, check_graph
from mmf_deploy.export.fold import plain_sampler
from mmf_deploy.export.graph import fixed_inputs
from mmf_deploy.export.precision import LOW, STORED_FROM, store_in_fp16, to_low_precision
from mmf_deploy.export.targets import Form
from mmf_deploy.export.to_onnx import export_onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from mmf_deploy.errors import ConfigError
from mmf_deploy.spec import SampleSpec

IMAGE = SampleSpec(shape=(1, 8, 8))
GROUP = Form(opset=22, normalisation="group")
ISLANDS = {"InstanceNormalization", "GroupNormalization", "Softmax", "Sub", "Clip", "Round"}


def types_of(model) -> dict[str, int]:
    """Element type of every tensor."""
    graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    values = [*graph.input, *graph.value_info, *graph.output]
    found = {v.name: v.type.tensor_type.elem_type for v in values}
    return found | {i.name: i.data_type for i in graph.initializer}


def contract(model) -> list:
    graph = model.graph
    return [(v.name, v.type.tensor_type.elem_type) for v in [*graph.input, *graph.output]]


@pytest.fixture
def samples(session):
    """``samples(graph, inputs)``: what it gives."""
    return lambda model, inputs: session(model).run(["sample"], inputs.named())[0]


@pytest.fixture(params=LOW)
def precision(request) -> str:
    return request.param


@pytest.fixture(params=["conditional", "guided", "unconditional"])
def low(request, precision, graphs):
    """(fp32 graph, the same in a low precision); bf16 needs opset 22."""
    form = GROUP if request.param == "conditional" else Form()
    if precision == "bf16" and form.opset < 22:
        pytest.skip("no bf16 convolution before opset 22")
    path = graphs(request.param, form)
    return onnx.load(path), to_low_precision(onnx.load(path), precision)


def test_low_precision_graph_passes_the_checks_and_the_audit(low, precision, tmp_path):
    whole, model = low
    onnx.save(model, tmp_path / "low.onnx")
    facts = check_graph(tmp_path / "low.onnx", "tensorrt")
    audit_dtypes(tmp_path / "low.onnx", precision, "graph")
    name = {"fp16": "float16", "bf16": "bfloat16"}[precision]
    assert facts.weights[name] > sum(n for k, n in facts.weights.items() if k != name)
    onnx.save(whole, tmp_path / "whole.onnx")
    assert facts.bytes < 0.75 * check_graph(tmp_path / "whole.onnx").bytes


def test_inputs_and_outputs_keep_their_types(low):
    whole, model = low
    assert contract(model) == contract(whole)


def test_convolutions_compute_low_and_statistics_softmax_and_sums_in_fp32(low, precision):
    _, model = low
    types = types_of(model)
    seen = set()
    for node in model.graph.node:
        wanted = None
        if node.op_type in ISLANDS:
            wanted = TensorProto.FLOAT
        elif node.op_type == "Conv":
            wanted = LOW[precision]
        if wanted is not None:
            seen.add(node.op_type)
            floats = [n for n in [*node.input, *node.output] if n]
            assert {types[name] for name in floats} == {wanted}, node.name
    assert {"Conv", "Softmax", "Sub", "Clip", "Round"} < seen
    assert seen & {"InstanceNormalization", "GroupNormalization"}


def test_logits_are_products_in_fp32(low):
    _, model = low
    types = types_of(model)
    made_by = {name: node for node in model.graph.node for name in node.output}
    for softmax in (n for n in model.graph.node if n.op_type == "Softmax"):
        node = made_by[softmax.input[0]]
        while node.op_type != "MatMul":
            assert {types[name] for name in node.input} == {TensorProto.FLOAT}, node.name
            node = made_by[node.input[0]]
        assert {types[name] for name in node.input} == {TensorProto.FLOAT}, node.name


def test_embedding_of_guidance_stays_in_fp32(graphs):
    model = to_low_precision(onnx.load(graphs("guided")), "fp16")
    types = types_of(model)
    found = [n for n in model.graph.node if n.op_type in ("Sin", "Cos", "Gemm", "Log")]
    assert len(found) == 7
    assert {types[name] for n in found for name in [*n.input, *n.output]} == {TensorProto.FLOAT}


def test_each_tensor_is_cast_once_and_no_cast_changes_nothing(low):
    _, model = low
    types = types_of(model)
    casts = [n for n in model.graph.node if n.op_type == "Cast"]
    made = [(n.input[0], types[n.output[0]]) for n in casts]
    assert len(set(made)) == len(made)
    assert all(types[source] != kind for source, kind in made)


def test_weights_that_nothing_reads_in_fp32_are_not_kept_twice(low):
    _, model = low
    read = {name for node in model.graph.node for name in node.input}
    assert {i.name for i in model.graph.initializer} <= read


@pytest.mark.parametrize("kind", ["conditional", "guided", "unconditional"])
def test_fp16_samples_are_close_to_the_fp32_ones(kind, graphs, bundles, samples):
    path = graphs(kind)
    inputs = fixed_inputs(bundles(kind).spec, 8)
    expected = samples(onnx.load(path), inputs)
    low = to_low_precision(onnx.load(path), "fp16")
    difference = np.abs(samples(low, inputs) - expected)
    assert 0 < difference.max() < 2e-2
    # ONNX Runtime computes some of it in fp32 on the CPU; here every node rounds
    (found,) = ReferenceEvaluator(low).run(["sample"], fixed_inputs(bundles(kind).spec, 2).named())
    assert (
        np.abs(found - samples(onnx.load(path), fixed_inputs(bundles(kind).spec, 2))).max() < 2e-2
    )


def weights_of(model, least=STORED_FROM):
    return [i for i in model.graph.initializer if np.prod(i.dims) >= least]


@pytest.mark.parametrize("convert", [lambda m: to_low_precision(m, "fp16"), store_in_fp16])
def test_weight_beyond_the_range_of_fp16_is_refused_by_name(convert, graphs):
    model = onnx.load(graphs("unconditional"))
    weight = next(i for i in weights_of(model) if i.name.endswith("conv0.weight"))
    values = numpy_helper.to_array(weight).copy()
    values.flat[7] = 7e4
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    with pytest.raises(ConfigError, match=f"'{weight.name}' does not fit"):
        convert(model)


def test_weight_beyond_the_range_of_fp16_fits_bf16(graphs):
    model = onnx.load(graphs("conditional", GROUP))
    weight = weights_of(model, 500)[0]
    values = numpy_helper.to_array(weight).copy()
    values.flat[7] = 7e4
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    to_low_precision(model, "bf16")


def test_network_of_vectors_has_nothing_to_compute_low(graphs):
    with pytest.raises(ConfigError, match="fp16: this network has no images"):
        to_low_precision(onnx.load(graphs("vector")), "fp16")


class Resizing(nn.Module):
    """Doubles and halves the resolution by operators other than convolution."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x, r, t, label=None, guidance=None):
        h = F.interpolate(F.gelu(self.first(x)), scale_factor=2.0, mode="bilinear")
        return self.last(F.pad(F.avg_pool2d(h, 2), (0, 0, 0, 0)))


@torch.no_grad()
def test_a_users_network_that_resizes_is_valid_and_close_in_fp16(make_origin, samples, tmp_path):
    origin = make_origin(Resizing(), IMAGE)
    export_onnx(plain_sampler(origin, 1), IMAGE, tmp_path / "whole.onnx")
    low = to_low_precision(onnx.load(tmp_path / "whole.onnx"), "fp16")
    onnx.save(low, tmp_path / "low.onnx")
    check_graph(tmp_path / "low.onnx", "onnxruntime-cuda")
    inputs = fixed_inputs(IMAGE, 3)
    expected = plain_sampler(origin, 1)(**inputs.tensors())[0].numpy()
    np.testing.assert_allclose(samples(low, inputs), expected, rtol=0, atol=1e-2)


def test_output_that_is_low_is_cast_back_for_whoever_reads_it(session):
    kind, shape = TensorProto.FLOAT, ["B", 1, 4, 4]
    made = helper.make_graph(
        [
            helper.make_node("Conv", ["noise", "w"], ["sample"]),
            helper.make_node("Clip", ["sample"], ["clipped"]),
            helper.make_node("Cast", ["clipped"], ["image"], to=TensorProto.UINT8),
        ],
        "g",
        [helper.make_tensor_value_info("noise", kind, shape)],
        [
            helper.make_tensor_value_info("sample", kind, shape),
            helper.make_tensor_value_info("image", TensorProto.UINT8, shape),
        ],
        [numpy_helper.from_array(np.full((1, 1, 1, 1), 0.5, np.float32), "w")],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    low = to_low_precision(model, "fp16")
    onnx.checker.check_model(low, full_check=True)
    noise = np.linspace(0, 8, 32, dtype=np.float32).reshape(2, 1, 4, 4)
    sample, image = session(low).run(None, {"noise": noise})
    assert (sample.dtype, image.dtype) == (np.float32, np.uint8)
    np.testing.assert_allclose(sample, noise / 2, atol=2e-3)


def test_weights_stored_in_fp16_halve_the_file_and_are_computed_in_fp32(
    graphs, bundles, samples, tmp_path
):
    path = graphs("unconditional")
    stored = store_in_fp16(onnx.load(path))
    onnx.save(stored, tmp_path / "stored.onnx")
    whole, half = check_graph(path), check_graph(tmp_path / "stored.onnx", "web")
    audit_dtypes(tmp_path / "stored.onnx", "fp16", "storage")
    large = sum(int(np.prod(i.dims)) for i in weights_of(onnx.load(path)))
    assert half.weights["float16"] == large > 0.75 * whole.weights["float"]
    # what the casts and the graph itself take, a large network does not notice
    assert whole.bytes - half.bytes > 2 * large - 150 * half.operators["Cast"]
    types = types_of(stored)
    for node in stored.graph.node:
        if node.op_type != "Cast":
            assert TensorProto.FLOAT16 not in {types.get(n) for n in [*node.input, *node.output]}
    assert half.nodes == whole.nodes + len(weights_of(onnx.load(path)))
    assert contract(stored) == contract(onnx.load(path))
    inputs = fixed_inputs(bundles("unconditional").spec, 8)
    difference = np.abs(samples(stored, inputs) - samples(onnx.load(path), inputs))
    assert 0 < difference.max() < 1e-2


def test_small_weights_are_not_stored_in_fp16(graphs):
    stored = store_in_fp16(onnx.load(graphs("unconditional")))
    kinds = {np.prod(i.dims) >= STORED_FROM: i.data_type for i in stored.graph.initializer}
    assert kinds[True] == TensorProto.FLOAT16
    for initializer in stored.graph.initializer:
        if np.prod(initializer.dims) < STORED_FROM:
            assert initializer.data_type != TensorProto.FLOAT16

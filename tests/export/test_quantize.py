"""int8 graphs: what is quantised, by which scheme, from which seeds, and how well."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from mmf_deploy.export import calibrate as calibration
from mmf_deploy.export import quantize
from mmf_deploy.export.calibrate import FIRST_SEED, calibrate, images_for
from mmf_deploy.export.fold import plain_sampler
from mmf_deploy.export.graph import fixed_inputs
from mmf_deploy.export.quantize import check_scheme, quantise
from mmf_deploy.export.reference import reference, samples_to_compare
from onnx import TensorProto, helper, numpy_helper

from mmf_deploy.errors import ConfigError
from mmf_deploy.spec import SampleSpec


class Quantised:
    """What is needed to know of a graph with Q/DQ pairs."""

    def __init__(self, path) -> None:
        graph = onnx.load(path).graph
        self.nodes = list(graph.node)
        self.stored = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
        self.made_by = {name: node for node in graph.node for name in node.output}

    def convolutions(self):
        return [n for n in self.nodes if n.op_type in ("Conv", "ConvTranspose")]

    def dequantised(self, name):
        """The DequantizeLinear that makes a tensor, or None."""
        node = self.made_by.get(name)
        return node if node is not None and node.op_type == "DequantizeLinear" else None

    def has_int8_weights(self, node) -> bool:
        return self.dequantised(node.input[1]) is not None

    def zero_points(self) -> list:
        return [self.stored[n.input[2]] for n in self.nodes if n.op_type == "QuantizeLinear"]


def groups(node) -> int:
    return next((a.i for a in node.attribute if a.name == "group"), 1)


@pytest.fixture(scope="module")
def unet(bundles) -> Quantised:
    """Of a UNet with two levels: fixed filters, attention and skips."""
    found = bundles("unconditional")
    return Quantised(found.file(found.variant("int8")))


@pytest.fixture(scope="module")
def conv_ranges(conv_graph, convolutions):
    return calibrate(conv_graph, convolutions().spec, ["Conv"])


@pytest.fixture(scope="module")
def symmetric(conv_graph, conv_ranges, tmp_path_factory):
    """A graph with activations as TensorRT wants them."""
    path = tmp_path_factory.mktemp("symmetric") / "s8.onnx"
    model = onnx.load(conv_graph)
    quantise(model, conv_ranges, [x.node for x in quantize.layers(model)], True, path)
    return path


def test_first_and_last_convolution_and_fixed_filters_keep_fp32(unet):
    first, *middle, last = unet.convolutions()
    assert not unet.has_int8_weights(first)
    assert not unet.has_int8_weights(last)
    depthwise = [n for n in middle if groups(n) > 1]
    assert len(depthwise) == 4
    for node in middle:
        quantised = groups(node) == 1
        assert unet.has_int8_weights(node) == quantised, node.name
        assert (unet.dequantised(node.input[0]) is not None) == quantised, node.name


def test_first_and_last_convolution_of_every_step_keep_fp32(bundles):
    bundle = bundles("conditional")
    found = Quantised(bundle.file(bundle.variant("int8-2step")))
    convolutions = found.convolutions()
    half = len(convolutions) // 2
    for step in (convolutions[:half], convolutions[half:]):
        assert not found.has_int8_weights(step[0])
        assert not found.has_int8_weights(step[-1])
        assert all(found.has_int8_weights(node) for node in step[1:-1])


def test_layers_are_named_with_their_activations_and_their_work(graphs):
    model = onnx.load(graphs("unconditional"))
    by_name = {node.name: node for node in model.graph.node}
    weights = {i.name: list(i.dims) for i in model.graph.initializer}
    found = quantize.layers(model)
    assert len({layer.node for layer in found}) == len(found)
    for layer in found:
        node = by_name[layer.node]
        assert (node.input[0], node.input[1]) == (layer.input, layer.weight)
        assert node.output[0] == layer.output
    skip = next(x for x in found if x.weight.endswith("8x8_block0.skip.weight"))
    cout, cin, *kernel = weights[skip.weight]
    assert kernel == [1, 1]
    assert skip.macs == cout * cin * 8 * 8
    down = next(x for x in found if x.weight.endswith("4x4_down.conv0.weight"))
    assert down.macs == 8 * 8 * 9 * 4 * 4


def image_graph(*nodes, **weights) -> onnx.ModelProto:
    """A graph from noise to sample of 8 × 8 images."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", 1, 8, 8])
              for name in ("noise", "sample")]  # fmt: skip
    stored = [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()]
    graph = helper.make_graph(list(nodes), "g", values[:1], values[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_network_of_a_first_and_a_last_convolution_has_nothing_to_quantise():
    model = image_graph(
        helper.make_node("Conv", ["noise", "a"], ["h"], "first"),
        helper.make_node("Conv", ["h", "b"], ["sample"], "last"),
        a=np.ones((4, 1, 1, 1)),
        b=np.ones((1, 4, 1, 1)),
    )
    with pytest.raises(ConfigError, match="no convolution to quantise; use fp32"):
        quantize.layers(model)


def test_weights_are_signed_with_one_scale_a_channel_and_no_zero_point(unet):
    seen = 0
    for node in unet.convolutions():
        weight = unet.dequantised(node.input[1])
        if weight is None:
            continue
        seen += 1
        values, scales, zeros = (unet.stored[name] for name in weight.input)
        assert values.dtype == np.int8
        assert scales.shape == zeros.shape == values.shape[:1]
        assert not zeros.any()
        (axis,) = (a.i for a in weight.attribute if a.name == "axis")
        assert axis == 0
        # each channel uses its whole range
        reach = np.abs(values.astype(int)).reshape(len(values), -1).max(axis=1)
        assert reach.min() >= 126
    assert seen > 30


def test_activations_are_unsigned_on_a_cpu_and_symmetric_for_tensorrt(unet, symmetric):
    assert {z.dtype for z in unet.zero_points()} == {np.dtype(np.uint8)}
    assert any(z.any() for z in unet.zero_points())
    zeros = Quantised(symmetric).zero_points()
    assert zeros
    assert {z.dtype for z in zeros} == {np.dtype(np.int8)}
    assert not any(z.any() for z in zeros)


def test_zero_point_is_refused_where_tensorrt_shall_read_the_file(symmetric, bundles, tmp_path):
    check_scheme(symmetric, symmetric=True)
    found = bundles("unconditional")
    unsigned = found.file(found.variant("int8"))
    check_scheme(unsigned, symmetric=False)
    with pytest.raises(ConfigError, match=r"model\.int8\.onnx: .* has a zero point; TensorRT"):
        check_scheme(unsigned, symmetric=True)
    model = onnx.load(symmetric)
    victim = next(n for n in model.graph.node if n.op_type == "QuantizeLinear").input[2]
    stored = next(i for i in model.graph.initializer if i.name == victim)
    stored.CopyFrom(numpy_helper.from_array(np.int8(1) + numpy_helper.to_array(stored), victim))
    onnx.save(model, tmp_path / "one.onnx")
    with pytest.raises(ConfigError, match="has a zero point"):
        check_scheme(tmp_path / "one.onnx", symmetric=True)


def peak_noise_ratio(loaded, origin, count=32) -> float:
    expected = reference(plain_sampler(origin, 1), origin.spec, count)
    (found,) = loaded.run(["image"], expected.inputs.named())
    noise = found.astype(float) - expected.image
    return 10 * np.log10(255**2 / (noise**2).mean())


def test_int8_samples_stay_above_the_floor_and_differ(
    origins, bundles, convolutions, symmetric, session
):
    for kind in ("conditional", "unconditional"):
        bundle = bundles(kind)
        variant = bundle.variant("int8")
        assert variant.parity["psnr"] >= 30.0
        found = peak_noise_ratio(session(bundle.file(variant)), origins(kind))
        assert 38 < found < 60
        assert found == pytest.approx(variant.parity["psnr"], abs=1.5)
    assert 35 < peak_noise_ratio(session(symmetric), convolutions()) < 60


def test_nodes_not_chosen_keep_fp32_and_none_chosen_gives_the_graph_itself(
    conv_graph, conv_ranges, tmp_path
):
    model = onnx.load(conv_graph)
    before = model.SerializeToString()
    layers = quantize.layers(model)
    quantise(model, conv_ranges, [layers[1].node], False, tmp_path / "one.onnx")
    found = Quantised(tmp_path / "one.onnx")
    assert [n.name for n in found.convolutions() if found.has_int8_weights(n)] == [layers[1].node]
    quantise(model, conv_ranges, [], False, tmp_path / "none.onnx")
    assert (tmp_path / "none.onnx").read_bytes() == before
    assert model.SerializeToString() == before


def test_quantising_twice_gives_the_same_bytes(conv_graph, convolutions, conv_ranges, tmp_path):
    model = onnx.load(conv_graph)
    nodes = [layer.node for layer in quantize.layers(model)]
    again = calibrate(conv_graph, convolutions().spec, ["Conv"])
    for name, ranges in (("a", conv_ranges), ("b", again)):
        quantise(model, ranges, nodes, False, tmp_path / f"{name}.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.fixture
def calibrated(monkeypatch):
    """Every (spec, batch, first seed) whose inputs are asked for."""
    asked = []

    def recorded(spec, batch, first_seed=0):
        asked.append((spec, batch, first_seed))
        return fixed_inputs(spec, batch, first_seed)

    monkeypatch.setattr(calibration, "fixed_inputs", recorded)
    return asked


def test_seeds_that_calibrate_are_none_that_judge_and_labels_are_balanced(
    calibrated, graphs, origins
):
    spec = origins("guided").spec
    images = []
    calibrate(graphs("guided"), spec, ["Conv"], images.append)
    seeds = [seed for _, batch, first in calibrated for seed in range(first, first + batch)]
    assert sum(images) == len(seeds) == len(set(seeds)) == images_for(spec)
    assert min(seeds) >= FIRST_SEED > samples_to_compare(spec, None)
    assert FIRST_SEED > 2**32
    labels = [spec.default_label(seed) for seed in seeds]
    counts = np.bincount(labels, minlength=spec.classes)
    assert counts.max() - counts.min() <= 1
    for given in calibrated:
        guidance = fixed_inputs(*given).guidance
        assert (guidance.min(), guidance.max()) == spec.guidance


def test_ranges_cover_what_the_network_sees(conv_graph, convolutions, conv_ranges, session):
    model = onnx.load(conv_graph)
    layer = quantize.layers(model)[0]
    low, high = conv_ranges[layer.input].range_value
    model.graph.output.append(onnx.helper.make_tensor_value_info(layer.input, 1, None))
    (seen,) = session(model).run([layer.input], fixed_inputs(convolutions().spec, 64).named())
    assert low < np.quantile(seen, 0.001)
    assert np.quantile(seen, 0.999) < high < 2 * seen.max()


def test_small_images_calibrate_with_more_than_large_ones():
    assert images_for(SampleSpec(shape=(1, 32, 32))) == 256
    assert images_for(SampleSpec(shape=(3, 32, 32))) == 64


def test_products_with_weights_are_layers_and_products_of_activations_are_not(session, tmp_path):
    rng = np.random.default_rng(0)
    model = image_graph(
        helper.make_node("Conv", ["noise", "a"], ["c"], "first"),
        helper.make_node("Transpose", ["c"], ["pixels"], "t", perm=[0, 2, 3, 1]),
        helper.make_node("MatMul", ["pixels", "w"], ["m"], "mixed"),
        helper.make_node("MatMul", ["m", "pixels"], ["p"], "product"),
        helper.make_node("Transpose", ["p"], ["channels"], "back", perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["channels", "b"], ["sample"], "last"),
        a=rng.normal(size=(8, 1, 1, 1)),
        w=rng.normal(size=(8, 8)) / 3,
        b=rng.normal(size=(1, 8, 1, 1)) / 9,
    )
    onnx.save(model, tmp_path / "g.onnx")
    (layer,) = quantize.layers(model)
    assert (layer.node, layer.weight) == ("mixed", "w")
    spec = SampleSpec(shape=(1, 8, 8))
    ranges = calibrate(tmp_path / "g.onnx", spec, ["Conv", "MatMul"])
    quantise(model, ranges, [layer.node], False, tmp_path / "q.onnx")
    stored = [list(i.dims) for i in onnx.load(tmp_path / "q.onnx").graph.initializer
              if i.data_type == TensorProto.INT8 and i.dims]  # fmt: skip
    assert [8, 8] in stored
    inputs = fixed_inputs(spec, 8).named()
    expected, found = (
        session(tmp_path / name).run(None, inputs)[0] for name in ("g.onnx", "q.onnx")
    )
    assert 0 < np.abs(found - expected).std() < 0.05 * expected.std()

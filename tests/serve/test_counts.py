"""FLOPs and bytes of ONNX graphs, against numbers known by hand."""

import math

import numpy as np
import onnx
import pytest
from mmf_deploy.serve.bench.counts import NodeCount, count
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from mmf_deploy.embedded import digits_bundle
from mmf_deploy.errors import ConfigError, EngineError

FLOAT = TensorProto.FLOAT


def save(tmp_path, nodes, inputs, outputs, constants=None, domains=()):
    """An ONNX file; inputs as name -> shape, constants as name -> array."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(k, *(v if isinstance(v, tuple) else (FLOAT, v)))
         for k, v in inputs.items()],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 20), *(helper.make_opsetid(d, 1) for d in domains)]
    path = tmp_path / "graph.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def single(tmp_path, op, x, w, **attributes):
    """One node with a constant second factor of ones."""
    node = helper.make_node(op, ["x", "w"], ["y"], **attributes)
    return save(tmp_path, [node], {"x": x}, ["y"], {"w": np.ones(w, np.float32)})


@pytest.mark.parametrize(
    ("op", "x", "w", "attributes", "flops", "needed"),
    [
        ("MatMul", [2, 3, 4], (4, 5), {}, 2 * 2 * 3 * 5 * 4, None),
        ("MatMul", [7], (7, 5), {}, 2 * 7 * 5, None),
        ("Gemm", [3, 4], (4, 5), {}, 2 * 3 * 4 * 5, None),
        ("Gemm", [4, 3], (5, 4), {"transA": 1, "transB": 1}, 2 * 3 * 4 * 5, None),
        ("Einsum", [2, 3, 4], (4, 5), {"equation": "abc,cd->abd"}, 2 * 2 * 3 * 4 * 5, None),
        ("Conv", [2, 4, 5, 5], (6, 4, 1, 1), {}, 2 * 2 * 6 * 4 * 25, None),
        # windows begin at -1, 1, 3 of 5: 2 + 3 + 2 taps along each axis lie inside
        ("Conv", [1, 4, 5, 5], (6, 2, 3, 3), {"strides": [2, 2], "pads": [1] * 4, "group": 2},
         2 * 6 * 2 * 9 * 9, 2 * 6 * 2 * 7 * 7),
        ("Conv", [1, 8, 4, 4], (8, 1, 3, 3), {"pads": [1] * 4, "group": 8},
         2 * 8 * 16 * 9, 2 * 8 * 10 * 10),
        # from 3 to 6: windows of 4 begin at -1, 1, 3, so 3 + 4 + 3 results are not cropped
        ("ConvTranspose", [1, 4, 3, 3], (4, 2, 4, 4), {"strides": [2, 2], "pads": [1] * 4},
         2 * 4 * 2 * 9 * 16, 2 * 4 * 2 * 10 * 10),
    ],
)  # fmt: skip
def test_flops_are_those_counted_by_hand(tmp_path, op, x, w, attributes, flops, needed):
    counts = count(single(tmp_path, op, x, w, **attributes))
    assert counts.flops == {"fp32": flops}
    assert counts.needed_flops == {"fp32": needed or flops}
    assert counts.weight_bytes == counts.read_bytes == 4 * math.prod(w)


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("Conv", {"auto_pad": "SAME_UPPER", "strides": [2, 3]}),
        ("Conv", {"auto_pad": "SAME_LOWER", "strides": [2, 1]}),
        ("Conv", {"auto_pad": "VALID", "dilations": [2, 1]}),
        ("Conv", {"pads": [2, 0, 1, 3], "dilations": [1, 2], "strides": [3, 1]}),
        ("ConvTranspose", {"strides": [2, 3], "output_padding": [1, 2], "pads": [1, 0, 2, 1]}),
        ("ConvTranspose", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        ("ConvTranspose", {"dilations": [2, 1], "pads": [1, 1, 1, 1]}),
    ],
)
def test_needed_products_are_what_a_convolution_of_ones_adds_up(tmp_path, op, attributes):
    path = single(tmp_path, op, [2, 3, 8, 9], (3, 3, 3, 4), **attributes)
    ones = np.ones((2, 3, 8, 9), np.float32)
    (added,) = ReferenceEvaluator(str(path)).run(None, {"x": ones})
    assert count(path).needed_flops == {"fp32": 2 * added.sum()}


def test_a_node_with_two_computed_factors_has_no_weights(tmp_path):
    node = helper.make_node("MatMul", ["q", "k"], ["y"], name="scores")
    path = save(tmp_path, [node], {"q": ["batch", 6, 4], "k": ["batch", 4, 6]}, ["y"])
    counts = count(path, 3)
    assert counts.nodes == (
        NodeCount("scores", "MatMul", "fp32", 3 * 2 * 6 * 6 * 4, 0.0, 3 * 48 * 4, 3 * 36 * 4, 0),
    )
    assert counts.weight_bytes == 0
    assert counts.io_bytes == 4 * 3 * (24 + 24 + 36)


def quantised(tmp_path, weight_only=False, moved=False):
    """Data and weight come through DequantizeLinear; or the weight alone."""
    data = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("Transpose", ["xd"], ["xt"], perm=[0, 1, 2, 3]),
    ]
    weight = helper.make_node("DequantizeLinear", ["wq", "s"], ["w"])
    source = "x" if weight_only else "xt" if moved else "xd"
    conv = helper.make_node("Conv", [source, "w"], ["y"])
    constants = {"s": np.float32(0.1), "z": np.uint8(128), "wq": np.ones((8, 4, 1, 1), np.int8)}
    return save(tmp_path, [*data, weight, conv], {"x": ["n", 4, 2, 2]}, ["y", "xt"], constants)


@pytest.mark.parametrize("moved", [False, True])
def test_arithmetic_between_quantised_data_and_weights_is_int8(tmp_path, moved):
    counts = count(quantised(tmp_path, moved=moved), 2, "bf16")
    assert counts.flops == {"int8": 2 * 2 * 8 * 4 * 4}
    assert counts.read_bytes == 8 * 4 + 4 + 1  # the weight in a byte each; scale and zero of x


def test_arithmetic_with_only_its_weights_quantised_is_not_int8(tmp_path):
    counts = count(quantised(tmp_path, weight_only=True))
    assert set(counts.flops) == {"fp32"}
    assert counts.weight_bytes == 8 * 4 + 4 + 1
    assert counts.read_bytes == 4 * 8 * 4 + 4 + 1  # multiplied, and so read, as fp32


@pytest.mark.parametrize(
    ("op", "inputs"),
    [("MatMulInteger", ["x", "w"]), ("QLinearMatMul", ["x", "s", "z", "w", "s", "z", "s", "z"])],
)
def test_integer_operators_are_int8(tmp_path, op, inputs):
    node = helper.make_node(op, inputs, ["y"])
    constants = {"w": np.ones((4, 5), np.uint8), "s": np.float32(1), "z": np.uint8(0)}
    path = save(tmp_path, [node], {"x": (TensorProto.UINT8, [3, 4])}, [], constants)
    graph = onnx.load(path)
    kind = TensorProto.INT32 if op == "MatMulInteger" else TensorProto.UINT8
    graph.graph.output.append(helper.make_tensor_value_info("y", kind, [3, 5]))
    onnx.save(graph, path)
    assert count(path).flops == {"int8": 2 * 3 * 4 * 5}


def test_half_precision_files_and_run_time_dtypes_are_told_apart(tmp_path):
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    half = {"w": np.ones((4, 5), np.float16)}
    path = save(tmp_path, [node], {"x": (TensorProto.FLOAT16, [3, 4])}, [], half)
    graph = onnx.load(path)
    graph.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT16, [3, 5]))
    onnx.save(graph, path)
    as_stored, widened = count(path), count(path, 1, "fp32")
    assert (set(as_stored.flops), set(widened.flops)) == ({"fp16"}, {"fp32"})
    assert (as_stored.weight_bytes, as_stored.read_bytes) == (40, 40)
    assert (widened.weight_bytes, widened.read_bytes) == (40, 80)
    with pytest.raises(ConfigError, match=r"compute 'bf61' \(did you mean 'bf16'\?\)"):
        count(path, 1, "bf61")


def test_what_is_made_of_constants_alone_is_computed_once(tmp_path):
    nodes = [
        helper.make_node("Constant", [], ["two"], value_float=2.0),
        helper.make_node("Mul", ["w", "two"], ["scaled"]),
        helper.make_node("MatMul", ["x", "scaled"], ["y"]),
    ]
    path = save(tmp_path, nodes, {"x": [3, 4]}, ["y"], {"w": np.ones((4, 5), np.float32)})
    counts = count(path)
    assert [n.op for n in counts.nodes] == ["MatMul"]
    assert counts.weight_bytes == 4 * 20 + 4
    assert counts.read_bytes == 4 * 20


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_embedded_bundle_costs_so_much_per_image_and_step(precision):
    one = count(digits_bundle() / f"model.{precision}.onnx")
    for steps in (2, 4):
        more = count(digits_bundle() / f"model.{precision}-{steps}step.onnx")
        assert more.flops == {k: steps * v for k, v in one.flops.items()}
    batch = count(digits_bundle() / f"model.{precision}.onnx", 8)
    assert batch.flops == {k: 8 * v for k, v in one.flops.items()}
    assert batch.weight_bytes == one.weight_bytes
    assert batch.activation_bytes > 7 * one.activation_bytes
    # 39 convolutions and the attention; the first and the last convolution are not quantised
    assert sum(one.flops.values()) == 9_457_664
    assert set(one.flops) == {"fp32", precision}
    assert one.needed_flops["fp32"] < one.flops["fp32"]


def test_a_graph_that_cannot_be_counted_is_refused_in_one_line(tmp_path):
    custom = helper.make_node("Magic", ["x"], ["y"], domain="org.example")
    path = save(tmp_path, [custom], {"x": [2, 3]}, ["y"], domains=["org.example"])
    with pytest.raises(EngineError, match=r"shape of 'y' at operator Magic of org.example") as e:
        count(path)
    assert "\n" not in str(e.value)

    free = helper.make_node("Reshape", ["x", "shape"], ["y"])
    inputs = {"x": [2, 3], "shape": (TensorProto.INT64, [2])}
    with pytest.raises(EngineError, match="shape of 'y' at operator Reshape cannot be inferred"):
        count(save(tmp_path, [free], inputs, ["y"]))

    lstm = helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=3)
    shapes = {"x": [2, 1, 3], "w": [1, 12, 3], "r": [1, 12, 3]}
    with pytest.raises(EngineError, match="operator LSTM is not counted"):
        count(save(tmp_path, [lstm], shapes, ["y"]))

    many = helper.make_node("Einsum", ["x", "x", "x"], ["y"], equation="ab,ab,ab->ab")
    with pytest.raises(EngineError, match="Einsum of 3 tensors"):
        count(save(tmp_path, [many], {"x": [2, 3]}, ["y"]))

    wrong = helper.make_node("MatMul", ["x", "x"], ["y"])
    with pytest.raises(EngineError, match="shapes cannot be inferred"):
        count(save(tmp_path, [wrong], {"x": [2, 3]}, ["y"]))

    (tmp_path / "text.onnx").write_text("no graph")
    with pytest.raises(EngineError, match="not a readable ONNX file"):
        count(tmp_path / "text.onnx")
    with pytest.raises(EngineError, match="expected an ONNX file"):
        count(tmp_path / "absent.onnx")


def test_only_the_batch_may_be_free_and_a_fixed_one_is_not_scaled(tmp_path):
    path = single(tmp_path, "Conv", ["n", 3, "height", 4], (3, 3, 1, 1))
    with pytest.raises(EngineError, match="input 'x' has no fixed size along axis 2"):
        count(path)
    path = single(tmp_path, "MatMul", [2, 4], (4, 5))
    assert count(path).flops == count(path, 2).flops == {"fp32": 80}
    with pytest.raises(EngineError, match=r"batch is fixed at \[2\]"):
        count(path, 8)

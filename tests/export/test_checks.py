"""What a graph must be before it is compared: valid, of its target's operators and its dtypes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from mmf_deploy.export.checks import ALLOWED, MAX_OPSET, audit_dtypes, check_graph
from mmf_deploy.export.precision import STORED_FROM
from mmf_deploy.export.targets import TARGETS
from onnx import TensorProto, helper, numpy_helper

from mmf_deploy.errors import ParityError

FLOAT = TensorProto.FLOAT


def constant(name, value, dtype=np.float32):
    return numpy_helper.from_array(np.asarray(value, dtype), name)


@pytest.fixture
def save(tmp_path):
    """``save(nodes, …)``: a graph of image-shaped x and y; returns its path."""

    def write(nodes, stored=(), batch="B", kinds=(FLOAT, FLOAT), opset=20, domains=()):
        shape = [batch, 1, 4, 4]
        values = [helper.make_tensor_value_info(name, kind, shape)
                  for name, kind in zip("xy", kinds, strict=True)]  # fmt: skip
        graph = helper.make_graph(nodes, "g", values[:1], values[1:], list(stored))
        imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
        onnx.save(
            helper.make_model(graph, opset_imports=imports, ir_version=10), tmp_path / "g.onnx"
        )
        return tmp_path / "g.onnx"

    return write


def node(operator, *inputs, name="n", **attributes):
    return helper.make_node(operator, ["x", *inputs], ["y"], name=name, **attributes)


def refused(path, target="onnxruntime-cpu") -> str:
    with pytest.raises(ParityError) as caught:
        check_graph(path, target)
    assert str(caught.value).startswith("g.onnx: ")
    return str(caught.value)


def test_facts_count_nodes_operators_weights_and_bytes(save):
    nodes = [
        helper.make_node("Mul", ["x", "a"], ["m"]),
        helper.make_node("Mul", ["m", "b"], ["s"]),
        helper.make_node("Reshape", ["s", "shape"], ["y"]),
    ]
    stored = [constant("a", [2.0] * 4), constant("b", 3.0),
              constant("shape", [0, 1, 4, 4], np.int64)]  # fmt: skip
    path = save(nodes, stored)
    facts = check_graph(path)
    assert facts.nodes == 3
    assert facts.operators == {"Mul": 2, "Reshape": 1}
    assert facts.weights == {"float": 5, "int64": 4}
    assert facts.bytes == path.stat().st_size
    assert facts.as_dict()["operators"] == facts.operators


def test_graph_whose_types_contradict_is_refused(save):
    assert "not a valid ONNX graph" in refused(save([node("Relu")], kinds=(FLOAT, 7)))


def test_graph_whose_shapes_contradict_is_refused(save):
    path = save([node("Conv", "w")], [constant("w", np.zeros((2, 5, 3, 3)))])
    assert "not a valid ONNX graph" in refused(path)


def test_operator_that_does_not_exist_is_refused(save):
    assert "not a valid ONNX graph" in refused(save([node("Relux")]))


def test_fixed_batch_is_refused_by_name(save):
    assert "the batch of 'x' is fixed" in refused(save([node("Relu")], batch=2))


def test_opset_that_not_every_reader_knows_is_refused(save):
    check_graph(save([node("Relu")], opset=MAX_OPSET))
    assert f"opset {MAX_OPSET + 1}" in refused(save([node("Relu")], opset=MAX_OPSET + 1))


@pytest.mark.parametrize("target", ["onnxruntime-cpu", "plain", "web", "tensorrt"])
@pytest.mark.parametrize(
    "made",
    [
        node("RandomNormalLike", name="noisy"),
        node("Bernoulli", name="noisy"),
        node("Relu", name="noisy", domain="com.microsoft"),
    ],
    ids=lambda made: made.op_type,
)
def test_randomness_and_foreign_operators_are_refused_for_every_target(made, target, save):
    message = refused(save([made], domains=[made.domain] if made.domain else ()), target)
    for part in (made.op_type, "'noisy'", target):
        assert part in message


def test_branch_is_refused(save):
    branch = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["z"])],
        "branch",
        [],
        [helper.make_tensor_value_info("z", FLOAT, None)],
    )
    made = helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)
    assert "operator If" in refused(save([made], [constant("yes", True, bool)]))


def test_operator_without_a_kernel_in_a_browser_or_in_tensorrt_is_left_to_engines_that_run_it(save):
    path = save([node("Mish")])
    check_graph(path, "onnxruntime-cpu")
    check_graph(path, "openvino")
    for target in ("web", "tensorrt"):
        assert f"operator Mish (node 'n') is not on the list of target {target}" in refused(
            path, target
        )


def test_operator_that_nobody_expects_is_refused_for_every_target(save):
    path = save([node("Shrink")])
    for target in ALLOWED:
        assert "operator Shrink" in refused(path, target)


def test_every_onnx_target_has_its_list():
    assert set(ALLOWED) == {n for n, t in TARGETS.items() if t.file_format == "onnx"}


def test_bytes_inside_a_graph_are_refused_for_tensorrt_alone(save):
    byte = TensorProto.UINT8
    inside = [
        helper.make_node("Cast", ["x"], ["b"], "to_bytes", to=byte),
        helper.make_node("Transpose", ["b"], ["y"], perm=[0, 1, 3, 2]),
    ]
    path = save(inside, kinds=(FLOAT, byte))
    check_graph(path, "web")
    assert "node 'to_bytes' makes bytes inside the graph" in refused(path, "tensorrt")
    check_graph(save([node("Cast", to=byte)], kinds=(FLOAT, byte)), "tensorrt")


def test_quantisation_is_for_tensorrt_and_not_for_the_web(save):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s"], ["y"]),
    ]
    path = save(nodes, [constant("s", 0.1)])
    check_graph(path, "tensorrt")
    assert "QuantizeLinear" in refused(path, "web")


def test_every_exported_graph_has_operators_that_every_target_knows(exported):
    _, bundle = exported
    for variant in bundle.manifest.variants:
        if variant.precision != "int8":
            check_graph(bundle.file(variant), "web")
        check_graph(bundle.file(variant), "tensorrt")


def convolution(kind=np.float32):
    return constant("w", np.ones((1, 1, 1, 1)), kind)


def test_float64_in_an_input_or_a_weight_is_refused_by_name(save):
    cast = helper.make_node("Cast", ["x"], ["y"], to=FLOAT)
    path = save([cast], kinds=(TensorProto.DOUBLE, FLOAT))
    with pytest.raises(ParityError, match="'x' is float64"):
        audit_dtypes(path, "fp32", "graph")
    path = save([node("Conv", "w")], [convolution(), constant("slip", [1.0], np.float64)])
    for precision, representation in (("fp32", "graph"), ("bf16", "hint"), ("fp16", "storage")):
        with pytest.raises(ParityError, match="'slip' is float64"):
            audit_dtypes(path, precision, representation)


@pytest.mark.parametrize("claimed", ["fp16", "bf16", "int8"])
def test_fp32_graph_that_claims_less_is_refused_with_what_it_has(claimed, save):
    path = save([node("Conv", "w")], [convolution()])
    audit_dtypes(path, "fp32", "graph")
    with pytest.raises(ParityError, match=f"no {claimed} weights; it has float 1"):
        audit_dtypes(path, claimed, "graph")
    audit_dtypes(path, claimed, "hint")


def test_fp16_graph_that_claims_fp32_is_refused(save):
    half = TensorProto.FLOAT16
    path = save([node("Conv", "w")], [convolution(np.float16)], kinds=(half, half))
    audit_dtypes(path, "fp16", "graph")
    with pytest.raises(ParityError, match="no fp32 weights; it has float16 1"):
        audit_dtypes(path, "fp32", "graph")


def test_quantised_weights_are_seen_through_their_dequantisation(bundles):
    bundle = bundles("unconditional")
    path = bundle.file(bundle.variant("int8"))
    audit_dtypes(path, "int8", "qdq-u8s8")
    with pytest.raises(ParityError, match="has int8 weights in a fp32 graph"):
        audit_dtypes(path, "fp32", "graph")


def test_one_convolution_left_in_fp32_is_found_in_a_graph_that_claims_fp16(save):
    """Two convolutions, the second of which computes in fp32 between casts."""
    half = TensorProto.FLOAT16
    nodes = [
        helper.make_node("Conv", ["x", "low"], ["a"], "first"),
        helper.make_node("Cast", ["a"], ["b"], to=FLOAT),
        helper.make_node("Conv", ["b", "w"], ["c"], "second"),
        helper.make_node("Cast", ["c"], ["y"], to=half),
    ]
    low = constant("low", np.ones((1, 1, 1, 1)), np.float16)
    path = save(nodes, [convolution(), low], kinds=(half, half))
    check_graph(path, "tensorrt")
    with pytest.raises(ParityError, match="'second' has float weights in a fp16 graph"):
        audit_dtypes(path, "fp16", "graph")


def test_large_weight_left_in_fp32_is_found_in_a_graph_that_claims_to_store_fp16(save):
    half = TensorProto.FLOAT16
    large = np.ones((STORED_FROM, 1, 1, 1))
    nodes = [
        helper.make_node("Cast", ["stored"], ["w"], to=FLOAT),
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Conv", ["a", "back"], ["y"]),
    ]
    back = constant("back", np.ones((1, STORED_FROM, 1, 1)))
    path = save(nodes, [constant("stored", large, np.float16), back])
    with pytest.raises(ParityError, match="weight 'back' is stored in fp32; expected fp16"):
        audit_dtypes(path, "fp16", "storage")
    path = save([node("Conv", "w")], [convolution()])
    with pytest.raises(ParityError, match="no weight of 1,024 elements or more"):
        audit_dtypes(path, "fp16", "storage")
    assert half not in {i.data_type for i in onnx.load(path).graph.initializer}

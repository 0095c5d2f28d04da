"""What a static graph does not need goes; what may differ at run time stays."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from mmf_deploy.export.simplify import simplify
from onnx import TensorProto, helper, numpy_helper


def graph(nodes, inputs, outputs, stored=()):
    kinds = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
              for name, shape in values] for values in (inputs, outputs)]  # fmt: skip
    made = helper.make_graph(nodes, "g", *kinds, list(stored))
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


FLAT = numpy_helper.from_array(np.array([0, 6]), "flat")


def reshape_back(**shape_attributes):
    """y is x flattened and given the shape of x again."""
    return [
        helper.make_node("Reshape", ["x", "flat"], ["f"]),
        helper.make_node("Shape", ["x"], ["s"], **shape_attributes),
        helper.make_node("Reshape", ["f", "s"], ["y"]),
    ]


@pytest.fixture
def run(session):
    """Checks a graph, and runs it."""

    def checked(model, **feeds):
        onnx.checker.check_model(model, full_check=True)
        return session(model).run(None, feeds)[0]

    return checked


def values(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize("batch", [1, 4])
def test_reshape_to_a_shape_that_is_known_but_for_the_batch_becomes_static(batch, run):
    model = graph(reshape_back(), [("x", ["B", 2, 3])], [("y", ["B", 2, 3])], [FLAT])
    simplify(model)
    assert [node.op_type for node in model.graph.node] == ["Reshape", "Reshape"]
    np.testing.assert_array_equal(run(model, x=values(batch, 2, 3)), values(batch, 2, 3))


def test_reshape_for_which_zero_is_a_size_and_not_the_batch_keeps_its_result(run):
    nodes = reshape_back()
    nodes[-1].attribute.append(helper.make_attribute("allowzero", 1))
    model = graph(nodes, [("x", ["B", 2, 3])], [("y", ["B", 2, 3])], [FLAT])
    simplify(model)
    np.testing.assert_array_equal(run(model, x=values(4, 2, 3)), values(4, 2, 3))


@pytest.mark.parametrize(
    ("like", "back"),
    [
        (["C", 2, 3], ["C", 2, 3]),  # of another batch
        (["B", "H", 3], ["B", "H", 3]),  # with a size that is not known
        ([2, 2, 3], [2, 2, 3]),  # with a fixed batch
    ],
    ids=str,
)
def test_reshape_to_a_shape_that_may_differ_is_left_alone(like, back, run):
    nodes = reshape_back()
    nodes[1].input[0] = "z"
    inputs = [("x", ["B", 2, 3]), ("z", like)]
    model = graph(nodes, inputs, [("y", back)], [FLAT])
    simplify(model)
    assert [node.op_type for node in model.graph.node] == ["Reshape", "Shape", "Reshape"]
    found = run(model, x=values(2, 2, 3), z=values(2, 2, 3))
    np.testing.assert_array_equal(found, values(2, 2, 3))


def test_part_of_a_shape_is_no_shape():
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], start=1),
        helper.make_node("Reshape", ["z", "s"], ["y"]),
    ]
    model = graph(nodes, [("x", ["B", 2, 3]), ("z", ["B", 2, 3])], [("y", [2, 3])])
    simplify(model)
    assert [node.op_type for node in model.graph.node] == ["Shape", "Reshape"]


def test_what_nothing_reads_goes_with_all_that_only_it_read(run):
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["a"]),
        helper.make_node("Add", ["a", "unused"], ["b"]),
        helper.make_node("Neg", ["b"], ["dead"]),
        helper.make_node("Mul", ["x", "two"], ["y"]),
    ]
    stored = [numpy_helper.from_array(np.float32(2), n) for n in ("two", "unused")]
    model = graph(nodes, [("x", ["B", 2])], [("y", ["B", 2])], stored)
    model.graph.value_info.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, ["B", 2]))
    simplify(model)
    assert [node.output[0] for node in model.graph.node] == ["y"]
    assert [i.name for i in model.graph.initializer] == ["two"]
    assert not model.graph.value_info
    np.testing.assert_array_equal(run(model, x=values(3, 2)), 2 * values(3, 2))

"""fp16 and bf16 graphs with islands of fp32, and weights stored in fp16.

Every node either computes in the low type or keeps fp32; a Cast stands wherever a tensor
passes from one to the other, once for each tensor. In fp32 remain: the statistics of
normalisations, softmax and the logits before it (products of C terms overflow fp16), the
embedding of labels and guidance, the sampler's own sums and the conversion to bytes.
"""

from __future__ import annotations

from collections.abc import Iterable

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mmf_deploy.errors import ConfigError

LOW = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_NUMPY = {TensorProto.FLOAT16: np.float16, TensorProto.BFLOAT16: ml_dtypes.bfloat16}
LOW_OPERATORS = {
    "Conv", "ConvTranspose", "MatMul", "Gemm", "Add", "Mul", "Sigmoid", "Tanh", "Relu", "Gelu",
    "Concat", "Split", "Reshape", "Transpose", "Slice", "Resize", "AveragePool", "MaxPool", "Pad",
}  # fmt: skip
STORED_FROM = 1024
"""Weights with at least so many elements are stored in fp16 for the web."""


def to_low_precision(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """A graph that computes images in fp16 or bf16; inputs and outputs keep their types.

    Args:
        model: fp32, with shapes as the exporter leaves them.
        precision: "fp16" or "bf16".
    Raises:
        ConfigError: nothing in the graph can be computed so.
    """
    low = LOW[precision]
    model = onnx.shape_inference.infer_shapes(model)
    graph = model.graph
    tensors = _float_tensors(model)
    chosen = _low_nodes(graph, tensors)
    if not chosen:
        raise ConfigError(f"{precision}: this network has no images to compute in it; use fp32")
    return _Rewriter(model, low, chosen, tensors).run()


def _float_tensors(model: onnx.ModelProto) -> dict[str, int]:
    """Rank by name of every float32 tensor."""
    graph = model.graph
    ranks = {i.name: len(i.dims) for i in graph.initializer if i.data_type == TensorProto.FLOAT}
    for value in [*graph.input, *graph.value_info, *graph.output]:
        kind = value.type.tensor_type
        if kind.elem_type == TensorProto.FLOAT:
            ranks[value.name] = len(kind.shape.dim)
    return ranks


def _low_nodes(graph: onnx.GraphProto, tensors: dict[str, int]) -> set[int]:
    """Indices of nodes that compute images in the low type."""
    keep = _before_softmax(graph) | _squares(graph) | _after_last_network(graph)
    return {
        k
        for k, node in enumerate(graph.node)
        if node.op_type in LOW_OPERATORS
        and k not in keep
        and all(tensors.get(name, 0) >= 3 for name in node.output)
    }


def _before_softmax(graph: onnx.GraphProto) -> set[int]:
    """The logits: everything between a softmax and the product that feeds it."""
    made_by = {name: k for k, node in enumerate(graph.node) for name in node.output}
    found: set[int] = set()
    waiting = [made_by[n.input[0]] for n in graph.node
               if n.op_type == "Softmax" and n.input[0] in made_by]  # fmt: skip
    while waiting:
        k = waiting.pop()
        node = graph.node[k]
        if k in found or node.op_type not in ("MatMul", "Mul", "Div", "Add", "Reshape"):
            continue
        found.add(k)
        if node.op_type != "MatMul":
            waiting += [made_by[name] for name in node.input if name in made_by]
    return found


def _squares(graph: onnx.GraphProto) -> set[int]:
    """What goes into a mean or a root: squares above 256 overflow fp16."""
    averaged = {
        n.input[0]
        for n in graph.node
        if n.op_type.startswith("Reduce") or n.op_type in ("Sqrt", "Reciprocal")
    }
    return {k for k, node in enumerate(graph.node) if averaged & set(node.output)}


_SAMPLER = {"Cast", "Transpose", "Round", "Clip", "Mul", "Add", "Sub", "Div", "Identity"}


def _after_last_network(graph: onnx.GraphProto) -> set[int]:
    """The end of the sampler: from the outputs back to the first operator of the network.

    x − u and the conversion to bytes; in a sampler of several steps, the last of them.
    """
    made_by = {name: k for k, node in enumerate(graph.node) for name in node.output}
    found: set[int] = set()
    waiting = [made_by[output.name] for output in graph.output if output.name in made_by]
    while waiting:
        k = waiting.pop()
        node = graph.node[k]
        if k in found or node.op_type not in _SAMPLER:
            continue
        found.add(k)
        # what enters the subtraction is the network's
        if node.op_type != "Sub":
            waiting += [made_by[name] for name in node.input if name in made_by]
    return found


class _Rewriter:
    """Rewrites the nodes of a graph in order, with a Cast wherever the type changes."""

    def __init__(
        self, model: onnx.ModelProto, low: int, chosen: set[int], tensors: dict[str, int]
    ) -> None:
        self.model, self.low, self.chosen, self.tensors = model, low, chosen, tensors
        self.stored = {i.name: i for i in model.graph.initializer}
        self.low_tensors: set[str] = set()
        self.casts: dict[tuple[str, int], str] = {}
        self.nodes: list[onnx.NodeProto] = []

    def run(self) -> onnx.ModelProto:
        graph = self.model.graph
        outputs = {o.name for o in graph.output}
        for k, node in enumerate(graph.node):
            low = k in self.chosen
            for i, name in enumerate(node.input):
                # the scales of a Resize are always float32
                if name in self.tensors and not (node.op_type == "Resize" and i > 0):
                    node.input[i] = self._as(name, self.low if low else TensorProto.FLOAT)
            self.nodes.append(node)
            for i, name in enumerate(node.output):
                if low and name in outputs:
                    node.output[i] = f"{name}_low"
                    self._cast(node.output[i], name, TensorProto.FLOAT)
                elif low:
                    self.low_tensors.add(name)
        del graph.node[:]
        graph.node.extend(self.nodes)
        del graph.value_info[:]
        read = {name for node in graph.node for name in node.input}
        for initializer in [i for i in graph.initializer if i.name not in read]:
            graph.initializer.remove(initializer)
        return self.model

    def _as(self, name: str, kind: int) -> str:
        """The name of a tensor in that type; a weight is converted, anything else cast."""
        is_low = name in self.low_tensors
        if is_low == (kind == self.low):
            return name
        key = (name, kind)
        if key not in self.casts:
            self.casts[key] = f"{name}_{TensorProto.DataType.Name(kind).lower()}"
            if name in self.stored:
                self._convert(self.stored[name], self.casts[key])
            else:
                self._cast(name, self.casts[key], kind)
        return self.casts[key]

    def _cast(self, source: str, result: str, kind: int) -> None:
        self.nodes.append(helper.make_node("Cast", [source], [result], f"cast_{result}", to=kind))

    def _convert(self, weight: onnx.TensorProto, name: str) -> None:
        with np.errstate(over="ignore"):  # said below, with the name
            values = numpy_helper.to_array(weight).astype(_NUMPY[self.low])
        if not np.isfinite(values.astype(np.float32)).all():
            raise ConfigError(
                f"weight {weight.name!r} does not fit {TensorProto.DataType.Name(self.low)} "
                f"(largest {np.abs(numpy_helper.to_array(weight)).max():.3g}); use bf16 or fp32"
            )
        self.model.graph.initializer.append(numpy_helper.from_array(values, name))


def store_in_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Large weights as fp16 with a Cast behind each: half the download, fp32 arithmetic."""
    graph = model.graph
    casts = []
    for initializer in graph.initializer:
        values = numpy_helper.to_array(initializer)
        if initializer.data_type != TensorProto.FLOAT or values.size < STORED_FROM:
            continue
        name = initializer.name
        initializer.CopyFrom(numpy_helper.from_array(_finite_half(values, name), f"{name}_fp16"))
        casts.append(helper.make_node("Cast", [f"{name}_fp16"], [name], f"load_{name}",
                                      to=TensorProto.FLOAT))  # fmt: skip
    _put_first(graph, casts)
    return model


def _finite_half(values: np.ndarray, name: str) -> np.ndarray:
    with np.errstate(over="ignore"):  # said below, with the name
        half = values.astype(np.float16)
    if not np.isfinite(half).all():
        raise ConfigError(f"weight {name!r} does not fit fp16; use fp32")
    return half


def _put_first(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])

"""An ONNX graph with every shape known, at one batch size."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmf_deploy.errors import EngineError, require

SMALL = 1024
"""Constants of at most so many values take part in shape inference: they may be shapes."""


@dataclass(frozen=True)
class Graph:
    """What can be asked of a graph.

    Attributes:
        nodes: in order; those that only have constants as inputs are left out.
        producers: by tensor, the node that makes it, constants included.
        shapes, dtypes: of every tensor.
        weights: by tensor that is constant or made of constants only, those constants.
        inputs, outputs: of the graph.
    """

    nodes: list[Any]
    producers: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    weights: dict[str, tuple[str, ...]]
    inputs: list[str]
    outputs: list[str]

    def elements(self, name: str) -> int:
        """How many values a tensor has."""
        return math.prod(self.shapes[name])

    def item_bytes(self, name: str) -> float:
        """Bytes of one value of a tensor."""
        return _item_bytes(self.dtypes[name])

    def nbytes(self, name: str) -> int:
        """Bytes of a tensor."""
        return math.ceil(self.elements(name) * self.item_bytes(name))

    @staticmethod
    def attributes(node: Any) -> dict[str, Any]:
        """Of a node, with text as str."""
        helper = require("onnx.helper", "bench")
        found = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        return {k: v.decode() if isinstance(v, bytes) else v for k, v in found.items()}


def _item_bytes(dtype: str) -> float:
    known = {"float": 4.0, "double": 8.0, "bool": 1.0}
    bits = re.match(r"(?:uint|int|float|bfloat)(\d+)", dtype)
    if dtype not in known and bits is None:
        raise EngineError(f"a tensor of {dtype}: expected numbers")
    return known[dtype] if bits is None else int(bits[1]) / 8


def read_graph(path: Path, batch: int) -> Graph:
    """A file's graph with its symbolic batch set to a number.

    Raises:
        EngineError: not an ONNX graph, another symbolic size than the batch, a fixed batch of
            another size, or a shape that cannot be inferred.
        DependencyError: the package onnx is missing.
    """
    onnx = require("onnx", "bench")
    try:
        model = onnx.load(str(path))
    except Exception as e:  # protobuf's errors have no public base
        raise EngineError(f"{path}: not a readable ONNX file ({_line(e)})") from None
    if model.functions:
        model = require("onnx.inliner", "bench").inline_local_functions(model)
    graph = model.graph
    for node in graph.node:
        if any(a.HasField("g") or a.graphs for a in node.attribute):
            raise EngineError(f"{path}: operator {node.op_type} runs a graph of its own; "
                              "expected a plain graph")  # fmt: skip
    weights: dict[str, tuple[str, ...]] = {t.name: (t.name,) for t in graph.initializer}
    inputs = [v.name for v in graph.input if v.name not in weights]
    _set_batch(path, [v for v in graph.input if v.name in inputs], batch)
    shapes, dtypes = _infer(onnx, path, model)
    nodes = []
    for node in graph.node:
        _complete(path, node, shapes)
        given = [name for name in node.input if name]
        if node.op_type == "Constant":
            weights[node.output[0]] = (node.output[0],)
        elif given and all(name in weights for name in given):
            roots = tuple(sorted({root for name in given for root in weights[name]}))
            weights.update(dict.fromkeys(node.output, roots))
        else:
            nodes.append(node)
    return Graph(
        nodes=nodes,
        producers={name: node for node in graph.node for name in node.output},
        shapes=shapes,
        dtypes=dtypes,
        weights=weights,
        inputs=inputs,
        outputs=[v.name for v in graph.output],
    )


def _set_batch(path: Path, inputs: list[Any], batch: int) -> None:
    """Every symbolic first dimension becomes a number."""
    symbolic = False
    for value in inputs:
        for axis, size in enumerate(value.type.tensor_type.shape.dim):
            if size.HasField("dim_value"):
                continue
            if axis:
                raise EngineError(
                    f"{path}: input {value.name!r} has no fixed size along axis {axis}; "
                    "expected only the batch, its first, to be free"
                )
            symbolic = True
            size.dim_value = batch
    fixed = {v.type.tensor_type.shape.dim[0].dim_value for v in inputs
             if v.type.tensor_type.shape.dim}  # fmt: skip
    if not symbolic and batch != 1 and fixed != {batch}:
        raise EngineError(
            f"{path}: its batch is fixed at {sorted(fixed)}, so it cannot be counted at {batch}"
        )


def _infer(onnx: Any, path: Path, model: Any) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Shapes and dtypes of all tensors; large weights only lend their shape."""
    try:
        inferred = onnx.shape_inference.infer_shapes(
            _without_weights(onnx, model), strict_mode=True, data_prop=True
        )
    except Exception as e:  # raised by C++ code, without a common base
        raise EngineError(f"{path}: shapes cannot be inferred: {_line(e)}") from None
    graph = inferred.graph
    shapes = {t.name: tuple(t.dims) for t in graph.initializer}
    dtypes = {t.name: onnx.TensorProto.DataType.Name(t.data_type).lower()
              for t in graph.initializer}  # fmt: skip
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        dtypes[value.name] = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
        if tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim):
            shapes[value.name] = tuple(d.dim_value for d in tensor.shape.dim)
    return shapes, dtypes


def _without_weights(onnx: Any, model: Any) -> Any:
    """The model with large constants as inputs, and no shapes but those of its inputs."""
    bare = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph = bare.graph
    graph.name = model.graph.name or "graph"
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    have = {v.name for v in model.graph.input}
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= SMALL:
            graph.initializer.append(tensor)
        elif tensor.name not in have:
            make = onnx.helper.make_tensor_value_info
            graph.input.append(make(tensor.name, tensor.data_type, list(tensor.dims)))
    for value in model.graph.output:
        kind = value.type.tensor_type.elem_type
        graph.output.append(onnx.helper.make_tensor_value_info(value.name, kind, None))
    return bare


def _complete(path: Path, node: Any, shapes: dict[str, tuple[int, ...]]) -> None:
    for name in (*node.input, *node.output):
        if name and name not in shapes:
            domain = f" of {node.domain}" if node.domain else ""
            raise EngineError(
                f"{path}: the shape of {name!r} at operator {node.op_type}{domain} cannot be "
                "inferred, so its work cannot be counted"
            )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__

"""What a graph consists of, and whether its target takes it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from mmf_deploy.errors import ParityError

from .precision import STORED_FROM

MAX_OPSET = 25
"""Of ONNX-TensorRT 11, the oldest reader among the targets."""

_CONTROL = {"If", "Loop", "Scan"}
_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
           "Multinomial", "Bernoulli"}  # fmt: skip
# what a network of this package or a usual one of a user's may contain, and both
# ONNX-TensorRT and ONNX Runtime's WebGPU and WebAssembly back ends have kernels for
_PORTABLE = """
    Abs Add AveragePool BatchNormalization Cast Clip Concat Constant Conv ConvTranspose Cos Div
    Equal Erf Exp Expand Flatten Gather GatherND Gelu Gemm GlobalAveragePool GroupNormalization
    Identity InstanceNormalization LayerNormalization LeakyRelu Log MatMul Max MaxPool Min Mul Neg
    Not Pad Pow Range Reciprocal ReduceMax ReduceMean ReduceSum Relu Reshape Resize Round Shape
    Sigmoid Sin Slice Softmax Softplus Split Sqrt Squeeze Sub Tanh Tile Transpose Unsqueeze Where
"""
_NATIVE = """
    ArgMax Ceil CumSum DepthToSpace Einsum Elu Floor Greater GreaterOrEqual HardSigmoid HardSwish
    Less LessOrEqual LogSoftmax LpNormalization Mean Mish Mod OneHot Or And PRelu QuantizeLinear
    DequantizeLinear ReduceL1 ReduceL2 ReduceMin ReduceProd ReduceSumSquare RMSNormalization
    RotaryEmbedding ScatterElements ScatterND Selu Sign Softsign SpaceToDepth Sum Swish Tan TopK
    Trilu Xor
"""
_EXECUTED = frozenset([*_PORTABLE.split(), *_NATIVE.split()])
ALLOWED: dict[str, frozenset[str]] = {
    "onnxruntime-cpu": _EXECUTED,
    "onnxruntime-cuda": _EXECUTED,
    "openvino": _EXECUTED,
    "plain": _EXECUTED,
    "tensorrt": frozenset([*_PORTABLE.split(), "QuantizeLinear", "DequantizeLinear"]),
    "web": frozenset(_PORTABLE.split()),
}
"""Operators by target. Where the engine runs at export, it has the last word."""


@dataclass(frozen=True)
class GraphFacts:
    """What a graph consists of.

    Attributes:
        nodes: number of nodes.
        operators: count by operator.
        weights: number of weight elements by dtype.
        bytes: size of the file.
    """

    nodes: int
    operators: dict[str, int]
    weights: dict[str, int]
    bytes: int

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)


def check_graph(path: Path, target: str = "onnxruntime-cpu") -> GraphFacts:
    """Full check with strict shape inference, dynamic batch, operators of the target.

    Raises:
        ParityError: the graph is not valid ONNX, its batch is fixed, or its target lacks an
            operator of it.
    """
    model = onnx.load(path)
    try:
        onnx.checker.check_model(str(path), full_check=True)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as e:
        raise ParityError(f"{path.name}: not a valid ONNX graph: {e}") from e
    for value in [*model.graph.input, *model.graph.output]:
        dims = value.type.tensor_type.shape.dim
        if not dims or not dims[0].dim_param:
            raise ParityError(f"{path.name}: the batch of {value.name!r} is fixed, not dynamic")
    _check_operators(model, path.name, target)
    if target == "tensorrt":
        _check_bytes(model, path.name)
    operators = Counter(node.op_type for node in model.graph.node)
    weights: Counter[str] = Counter()
    for initializer in model.graph.initializer:
        weights[_dtype(initializer.data_type)] += int(np.prod(initializer.dims))
    return GraphFacts(
        len(model.graph.node), _ordered(operators), _ordered(weights), path.stat().st_size
    )


def _check_operators(model: onnx.ModelProto, name: str, target: str) -> None:
    opset = next(i.version for i in model.opset_import if i.domain in ("", "ai.onnx"))
    if opset > MAX_OPSET:
        raise ParityError(f"{name}: opset {opset}; at most {MAX_OPSET} is read everywhere")
    allowed = ALLOWED.get(target)
    for node in model.graph.node:
        foreign = node.domain not in ("", "ai.onnx")
        forbidden = node.op_type in _CONTROL | _RANDOM
        if foreign or forbidden or (allowed is not None and node.op_type not in allowed):
            operator = f"{node.domain}::{node.op_type}" if foreign else node.op_type
            raise ParityError(
                f"{name}: operator {operator} (node {node.name!r}) is not on the list of "
                f"target {target}; write the network without it"
            )


def _check_bytes(model: onnx.ModelProto, name: str) -> None:
    """TensorRT has uint8 at the edge of a network only: made by a Cast, read by nothing."""
    outputs = {value.name for value in model.graph.output}
    for node in model.graph.node:
        to_bytes = any(a.name == "to" and a.i == TensorProto.UINT8 for a in node.attribute)
        if node.op_type == "Cast" and to_bytes and node.output[0] not in outputs:
            raise ParityError(
                f"{name}: node {node.name!r} makes bytes inside the graph; TensorRT takes them as "
                "an output only"
            )


def audit_dtypes(path: Path, precision: str, representation: str) -> None:
    """Every convolution and matrix product with weights computes in the precision it claims.

    Args:
        representation: as in ``Target.precisions``.
    Raises:
        ParityError: names the first that does not, or a float64 that slipped in.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    graph = model.graph
    stored = {i.name: i.data_type for i in graph.initializer}
    _no_float64(model, path.name)
    if representation == "hint":
        return
    if representation == "storage":
        _check_storage(graph, path.name)
        return
    expected = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16,
                "bf16": TensorProto.BFLOAT16, "int8": TensorProto.INT8}[precision]  # fmt: skip
    made_by = {output: node for node in graph.node for output in node.output}
    weighted = {
        node.name: _weight_dtype(node, stored, made_by)
        for node in graph.node
        if node.op_type in ("Conv", "ConvTranspose", "MatMul", "Gemm")
    }
    found = Counter(kind for kind in weighted.values() if kind is not None)
    if not found[expected]:
        have = ", ".join(f"{_dtype(kind)} {n}" for kind, n in found.items()) or "none"
        raise ParityError(f"{path.name}: no {precision} weights; it has {have}")
    convolutions = {n.name for n in graph.node if n.op_type in ("Conv", "ConvTranspose")}
    # int8 leaves layers out by choice, and the embedding of a half-precision graph stays fp32
    must = set() if precision == "int8" else convolutions if precision != "fp32" else set(weighted)
    for name in sorted(must):
        if weighted[name] not in (None, expected):
            raise ParityError(
                f"{path.name}: node {name!r} has {_dtype(weighted[name] or 0)} weights in a "
                f"{precision} graph"
            )


def _no_float64(model: onnx.ModelProto, name: str) -> None:
    graph = model.graph
    values = {v.name: v.type.tensor_type.elem_type
              for v in [*graph.value_info, *graph.input, *graph.output]}  # fmt: skip
    values |= {i.name: i.data_type for i in graph.initializer}
    for tensor, kind in values.items():
        if kind == TensorProto.DOUBLE:
            raise ParityError(f"{name}: {tensor!r} is float64; expected none")


def _check_storage(graph: onnx.GraphProto, name: str) -> None:
    """Every large weight is stored in fp16, and there is one."""
    kinds = Counter(i.data_type for i in graph.initializer)
    for i in graph.initializer:
        if i.data_type == TensorProto.FLOAT and np.prod(i.dims) >= STORED_FROM:
            raise ParityError(f"{name}: weight {i.name!r} is stored in fp32; expected fp16")
    if not kinds[TensorProto.FLOAT16]:
        raise ParityError(
            f"{name}: no weight of {STORED_FROM:,} elements or more, so none is stored in fp16; "
            "use fp32"
        )


def _weight_dtype(
    node: onnx.NodeProto, stored: dict[str, int], made_by: dict[str, onnx.NodeProto]
) -> int | None:
    """The dtype of a node's weights, looked at through a DequantizeLinear; None without any."""
    name = node.input[1]
    producer = made_by.get(name)
    if producer is not None and producer.op_type == "DequantizeLinear":
        name = producer.input[0]
    return stored.get(name)


def _dtype(kind: int) -> str:
    return str(TensorProto.DataType.Name(kind)).lower()


def _ordered(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

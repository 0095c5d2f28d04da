"""Plain ONNX graphs whose FLOPs are known by hand: one matrix product, one convolution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmf_deploy.errors import require

OPSET, IR = 17, 8
SCALE = 1 / 64
"""Of quantised values: data of ±2 around 128, weights of ±1 in 7 bits, since processors that add
up pairs of products in 16 bits would saturate with 8."""


def matmul(m: int, weight: NDArray[np.float32], dtype: str = "fp32") -> bytes:
    """``c = a @ weight``.

    Args:
        m: rows of a.
        weight: [k, n], in [-1, 1).
        dtype: "fp32"; "int8" takes a and gives c as uint8; "integer" takes a as uint8 and gives
            the whole sums as int32.
    """
    k, n = weight.shape
    if dtype == "integer":
        return _integer_matmul(m, weight)
    return _graph("MatMul", [m, k], [m, n], weight, dtype, axis=1)


def conv(channels: int, size: int, weight: NDArray[np.float32], dtype: str = "fp32") -> bytes:
    """A 3×3 convolution of one image, padded so that its size stays.

    Args:
        channels, size: of the image [1, channels, size, size].
        weight: [out, channels, 3, 3].
    """
    out = len(weight)
    return _graph("Conv", [1, channels, size, size], [1, out, size, size], weight, dtype,
                  axis=0, pads=[1, 1, 1, 1])  # fmt: skip


def quantised(data: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Data in [-2, 2) as a quantised graph takes it."""
    steps: NDArray[np.uint8] = np.clip(np.round(data / SCALE) + 128, 0, 255).astype(np.uint8)
    return steps


def quantised_weight(weight: NDArray[np.float32]) -> NDArray[np.int8]:
    """Weights in [-1, 1) as a quantised graph holds them."""
    steps: NDArray[np.int8] = np.clip(np.round(weight / SCALE), -64, 63).astype(np.int8)
    return steps


def _integer_matmul(m: int, weight: NDArray[np.float32]) -> bytes:
    proto = require("onnx", "bench").TensorProto
    k, n = weight.shape
    node = ("MatMulInteger", ["a", "w", "half"], ["c"])
    constants = {"w": quantised_weight(weight), "half": np.uint8(128)}
    return _model([node], (proto.UINT8, [m, k]), (proto.INT32, [m, n]), constants)


def _graph(
    op: str, x: list[int], y: list[int], weight: NDArray[np.float32], dtype: str, axis: int,
    **attributes: Any,
) -> bytes:  # fmt: skip
    proto = require("onnx", "bench").TensorProto
    if dtype != "int8":
        node = (op, ["a", "w"], ["c"], attributes)
        return _model([node], (proto.FLOAT, x), (proto.FLOAT, y), {"w": weight})
    outs = weight.shape[axis]
    constants = {
        "scale": np.float32(SCALE), "half": np.uint8(128), "coarse": np.float32(0.5),
        "stored": quantised_weight(weight),
        "scales": np.full(outs, SCALE, np.float32), "zeros": np.zeros(outs, np.int8),
    }  # fmt: skip
    nodes = [
        ("DequantizeLinear", ["a", "scale", "half"], ["x"]),
        ("DequantizeLinear", ["stored", "scales", "zeros"], ["w"], {"axis": axis}),
        (op, ["x", "w"], ["y"], attributes),
        ("QuantizeLinear", ["y", "coarse", "half"], ["c"]),
    ]
    return _model(nodes, (proto.UINT8, x), (proto.UINT8, y), constants)


def _model(
    nodes: Sequence[tuple[Any, ...]],
    a: tuple[int, list[int]],
    c: tuple[int, list[int]],
    constants: Mapping[str, Any],
) -> bytes:
    """From a to c, each with its kind of number and its shape."""
    helper = require("onnx.helper", "bench")
    array = require("onnx.numpy_helper", "bench").from_array
    graph = helper.make_graph(
        [helper.make_node(*node[:3], **(node[3] if len(node) > 3 else {})) for node in nodes],
        "plain",
        [helper.make_tensor_value_info("a", *a)],
        [helper.make_tensor_value_info("c", *c)],
        [array(np.asarray(value), name) for name, value in constants.items()],
    )
    opset = [helper.make_opsetid("", OPSET)]
    data: bytes = helper.make_model(graph, opset_imports=opset, ir_version=IR).SerializeToString()
    return data

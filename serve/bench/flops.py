"""FLOPs of one ONNX node, from the shapes of its tensors: two per multiply-add.

Only sums of products are counted (convolutions and matrix products): everything else is a few
operations a value, and the time it takes is that of moving the values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmf_deploy.errors import EngineError

Shape = tuple[int, ...]


class Flops(NamedTuple):
    """Operations of one node.

    Attributes:
        total: as papers and profilers count them.
        padding: those of them whose factor is a padding zero, or whose result is cropped away:
            a kernel need not compute them, and good ones do not.
    """

    total: float
    padding: float = 0.0


class Operands(NamedTuple):
    """What the number depends on.

    Attributes:
        x, w: shapes of the two factors; for a convolution, of the data and the kernel.
        y: shape of the result.
        attributes: of the node.
    """

    x: Shape
    w: Shape
    y: Shape
    attributes: Mapping[str, Any]


def conv(of: Operands) -> Flops:
    """x [N, C, …], w [O, C/group, …], y [N, O, …]."""
    return _windows(of, of.y[0], of.y[2:], of.x[2:])


def conv_transpose(of: Operands) -> Flops:
    """x [N, C, …], w [C, O/group, …], y [N, O, …]; no zeros between the data are multiplied."""
    return _windows(of, of.x[0], of.x[2:], of.y[2:])


def _windows(of: Operands, batch: int, places: Shape, field: Shape) -> Flops:
    """A window of taps at each place of one side slides over the field on the other side."""
    taps = of.w[2:]
    inside = 1.0
    for axis, (first, stride, dilation) in enumerate(_geometry(of, places, field)):
        start = np.arange(places[axis]) * stride - first
        at = start[:, None] + np.arange(taps[axis]) * dilation
        inside *= int(np.count_nonzero((at >= 0) & (at < field[axis])))
    per_pair = 2.0 * batch * of.w[0] * of.w[1]
    total = per_pair * math.prod(places) * math.prod(taps)
    return Flops(total, total - per_pair * inside)


def _geometry(of: Operands, places: Shape, field: Shape) -> list[tuple[int, int, int]]:
    """Padding before the field, stride and dilation along each axis."""
    taps, given = of.w[2:], of.attributes
    strides = given.get("strides") or [1] * len(taps)
    dilations = given.get("dilations") or [1] * len(taps)
    extra = given.get("output_padding") or [0] * len(taps)
    mode = given.get("auto_pad", "NOTSET")
    if mode == "VALID":
        first = [0] * len(taps)
    elif mode == "NOTSET" and "output_shape" not in given:
        first = list(given.get("pads") or [0] * len(taps))[: len(taps)]
    else:
        covered = [
            (n - 1) * s + (t - 1) * d + 1 + e
            for n, s, t, d, e in zip(places, strides, taps, dilations, extra, strict=True)
        ]
        both = [max(0, c - size) for c, size in zip(covered, field, strict=True)]
        first = [b // 2 if mode == "SAME_UPPER" else b - b // 2 for b in both]
    return list(zip(first, strides, dilations, strict=True))


def matmul(of: Operands) -> Flops:
    """x [..., m, k], w [..., k, n]; either may be a vector."""
    return Flops(2.0 * math.prod(of.y) * of.x[-1])


def gemm(of: Operands) -> Flops:
    """x [m, k] or, with transA, [k, m]; y [m, n]."""
    inner = of.x[0] if of.attributes.get("transA", 0) else of.x[1]
    return Flops(2.0 * math.prod(of.y) * inner)


def einsum(of: Operands) -> Flops:
    """Two factors without an ellipsis: one multiply-add for each value of every index."""
    equation = str(of.attributes["equation"]).replace(" ", "")
    left = equation.partition("->")[0].split(",")
    if len(left) != 2 or "." in equation:
        raise EngineError(f"Einsum {equation!r}: expected two factors without an ellipsis")
    sizes = dict(zip("".join(left), (*of.x, *of.w), strict=True))
    return Flops(2.0 * math.prod(sizes.values()))


Rule = Callable[[Operands], Flops]
RULES: dict[str, tuple[Rule, int]] = {
    "Conv": (conv, 1), "ConvInteger": (conv, 1), "QLinearConv": (conv, 3),
    "ConvTranspose": (conv_transpose, 1), "Gemm": (gemm, 1), "Einsum": (einsum, 1),
    "MatMul": (matmul, 1), "MatMulInteger": (matmul, 1), "QLinearMatMul": (matmul, 3),
}  # fmt: skip
"""By operator: how it is counted, and which of its inputs is the second factor."""

UNKNOWN = ("Attention", "DeformConv", "GRU", "LSTM", "RNN")
"""They multiply, and nothing here knows how often: refused rather than counted as nothing."""


def flops(op: str, shapes: Sequence[Shape], y: Shape, attributes: Mapping[str, Any]) -> Flops:
    """Operations of one node.

    Args:
        shapes: of its inputs.
        y: of its first output.
    Raises:
        EngineError: it multiplies in a way that is not known here.
    """
    if op in UNKNOWN:
        raise EngineError(f"operator {op} is not counted; expected products as {', '.join(RULES)}")
    if op not in RULES:
        return Flops(0.0)
    rule, second = RULES[op]
    if op == "Einsum" and len(shapes) != 2:
        raise EngineError(f"Einsum of {len(shapes)} tensors: expected two factors")
    return rule(Operands(shapes[0], shapes[second], y, attributes))

"""Kinds of operators, and the arithmetic of those that have some, from their shapes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

CONVOLUTION, PRODUCT = "convolution", "matrix product"
NORMALISATION, ACTIVATION, ELEMENTWISE = "normalisation", "activation", "elementwise"
LAYOUT, QUANTISATION = "layout", "quantisation"
ATTENTION, UPSAMPLING, OTHER = "attention/softmax", "upsampling", "other"

ARITHMETIC = (CONVOLUTION, PRODUCT)
"""The kinds whose multiply-adds are counted; all others could vanish in a perfect fusion."""

_NAMES: Mapping[str, str] = {
    CONVOLUTION: """Conv FusedConv NhwcFusedConv ConvTranspose ConvInteger QLinearConv
        Convolution GroupConvolution Deconvolution GroupDeconvolution BinaryConvolution
        conv1d conv2d conv3d conv_transpose2d convolution""",
    PRODUCT: """MatMul Gemm FusedMatMul FusedGemm QLinearMatMul QGemm MatMulInteger
        MatMulIntegerToFloat DynamicQuantizeMatMul FullyConnected
        matmul mm addmm bmm baddbmm linear einsum""",
    NORMALISATION: """InstanceNormalization GroupNormalization GroupNorm LayerNormalization
        SkipLayerNormalization SimplifiedLayerNormalization BatchNormalization MVN NormalizeL2 RMS
        ReduceMean ReduceL2 ReduceSum ReduceSumSquare
        group_norm layer_norm batch_norm instance_norm""",
    ACTIVATION: """QuickGelu Sigmoid Relu Tanh Erf Gelu FastGelu BiasGelu LeakyRelu HardSigmoid
        QLinearSigmoid Swish HSwish Mish silu silu_ sigmoid relu relu_ gelu tanh""",
    ELEMENTWISE: """Add Sub Subtract Mul Multiply Div Divide Sum Neg Abs Pow Power PowerStatic Sqrt
        Exp Log Reciprocal Clip Clamp Round Min Max Minimum Maximum Where Select QLinearAdd
        QLinearMul Sin Cos Eltwise MulAdd Math
        add add_ sub sub_ rsub mul mul_ div div_ neg clamp clamp_ round round_ exp log sqrt rsqrt
        sin cos pow""",
    LAYOUT: """ReorderInput ReorderOutput Reorder Transpose Reshape Flatten Squeeze Unsqueeze Cast
        Convert Concat Concatenation QLinearConcat Split VariadicSplit Slice StridedSlice Expand
        Broadcast Tile Identity DepthToSpace SpaceToDepth
        to copy_ _to_copy clone contiguous cat concat stack reshape view transpose permute flatten
        expand repeat unsqueeze squeeze chunk split slice select""",
    QUANTISATION: "QuantizeLinear DequantizeLinear DynamicQuantizeLinear FakeQuantize",
    ATTENTION: """Softmax SoftMax LogSoftmax QLinearSoftmax Attention MultiHeadAttention MHA
        ScaledDotProductAttention softmax scaled_dot_product_attention""",
    UPSAMPLING: "Resize Upsample Interpolate upsample_nearest2d upsample_bilinear2d",
}  # fmt: skip
_KIND_OF = {name: kind for kind, names in _NAMES.items() for name in names.split()}


def kind_of(op: str) -> str:
    """The kind of an operator by its type's name in ONNX Runtime, OpenVINO or PyTorch."""
    return _KIND_OF.get(op, OTHER)


def kind_of_fused(ops: Iterable[str]) -> str:
    """The kind of several operators that run as one: of the one that takes most arithmetic."""
    kinds = {kind_of(op) for op in ops}
    order = (CONVOLUTION, PRODUCT, ATTENTION, NORMALISATION, ACTIVATION, UPSAMPLING, QUANTISATION,
             ELEMENTWISE, LAYOUT)  # fmt: skip
    return next((kind for kind in order if kind in kinds), OTHER)


class Work(NamedTuple):
    """Operations of one operator, two per multiply-add.

    Attributes:
        flops: as papers and profilers count them.
        padding: those of them whose factor is a padding zero, which a kernel may leave out.
    """

    flops: float = 0.0
    padding: float = 0.0


def convolution(weight: Sequence[int], image: Sequence[float], channels: int) -> Work:
    """The work of a convolution; its padding as that of a square image that keeps its size.

    Args:
        weight: [out channels, in channels of a group, *kernel].
        image: shape of the output, or of the input of a transposed convolution, in any layout;
            its first dimension is the batch.
        channels: how many elements of the image are one pixel; more than the weight says where
            an engine pads them.
    """
    pixels = math.prod(image) / channels
    flops = 2.0 * pixels * math.prod(weight)
    kernel = weight[2:]
    side = (pixels / image[0]) ** (1 / max(1, len(kernel)))
    inside = 1.0
    for taps in kernel:
        before = (taps - 1) // 2
        inside *= max(0.0, 1 - before * (before + 1) / (taps * side))
    return Work(flops, flops * (1 - inside))


def product(a: Sequence[int], b: Sequence[int], output: Sequence[int]) -> Work:
    """The work of a product of (stacks of) matrices, whichever are transposed."""
    if min(len(a), len(b), len(output)) < 2:
        return Work()
    inner = math.prod(a[-2:]) * math.prod(b[-2:]) / max(1, math.prod(output[-2:]))
    return Work(2.0 * math.prod(output) * math.sqrt(inner))


def shape_text(inputs: Iterable[Sequence[int]], output: Sequence[int] | None = None) -> str:
    """For people: 1×3×32×32 · 128×3×3×3 → 1×128×32×32."""
    text = " · ".join(map(_times, inputs))
    return text if output is None else f"{text} → {_times(output)}"


def _times(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "scalar"

"""INT8 graphs: convolutions (and products with weights) between Q/DQ pairs.

Signed weights with one scale a channel. Activations are unsigned where a CPU runs them (its
VNNI instruction multiplies u8 by s8; s8 by s8 is much slower) and symmetric for TensorRT, which
takes no zero points. The first and the last convolution, a negligible share of the work, and
the fixed resampling filters keep fp32.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from mmf_deploy.errors import ConfigError, require

OPERATORS = ("Conv", "MatMul", "Gemm")


@dataclass(frozen=True)
class Layer:
    """A node that can be quantised.

    Attributes:
        node: its name.
        weight: the name of its weight in the graph.
        input, output: the names of its activations.
        macs: multiply-accumulates of one image.
    """

    node: str
    weight: str
    input: str
    output: str
    macs: int


def layers(model: onnx.ModelProto) -> list[Layer]:
    """Every node worth quantising, in the order of the graph.

    Raises:
        ConfigError: there is none.
    """
    graph = model.graph
    inferred = onnx.shape_inference.infer_shapes(model).graph
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
              for v in [*inferred.value_info, *inferred.input, *inferred.output]}  # fmt: skip
    weights = {i.name: tuple(i.dims) for i in graph.initializer}
    found = []
    for node in graph.node:
        if node.op_type not in OPERATORS or node.input[1] not in weights:
            continue
        dims = weights[node.input[1]]
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        if groups > 1 or len(shapes.get(node.output[0], [])) < 3:
            continue
        made = shapes[node.output[0]]
        # pixels of a convolution, tokens of a matrix product; an unknown number counts once
        places = made[2:] if node.op_type == "Conv" else made[1:-1]
        macs = int(np.prod(dims)) * int(np.prod([max(1, n) for n in places]))
        found.append(Layer(node.name, node.input[1], node.input[0], node.output[0], macs))
    # by weight: a sampler of several steps has both of them in each
    ends = {layer.weight for layer in (found[0], found[-1])} if found else set()
    kept = [layer for layer in found if layer.weight not in ends]
    if not kept:
        raise ConfigError("int8: this network has no convolution to quantise; use fp32")
    return kept


def quantise(
    model: onnx.ModelProto,
    ranges: Any,
    chosen: Collection[str],
    symmetric: bool,
    path: Path,
) -> None:
    """Write the graph with Q/DQ around the chosen nodes.

    Args:
        model: fp32; not changed.
        ranges: of ``calibrate``.
        chosen: names of nodes.
        symmetric: activations signed with zero point 0, not unsigned.
    """
    require("onnxruntime", "cpu")
    if not chosen:
        # the quantiser takes an empty list for all
        onnx.save(model, path)
        return
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    quantizer = QDQQuantizer(
        copied,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8 if symmetric else QuantType.QUInt8,
        tensors_range=ranges,
        nodes_to_quantize=list(chosen),
        nodes_to_exclude=[],
        op_types_to_quantize=list(OPERATORS),
        extra_options={"ActivationSymmetric": symmetric, "WeightSymmetric": True,
                       "QDQKeepRemovableActivations": False},
    )  # fmt: skip
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    made = quantizer.model.model
    for node in made.graph.node:
        # the zero point says it already, and ONNX Runtime, which may change that, forgets this
        for attribute in [a for a in node.attribute if a.name == "output_dtype"]:
            node.attribute.remove(attribute)
    made.producer_name, made.producer_version = model.producer_name, model.producer_version
    onnx.save(made, path)


def check_scheme(path: Path, symmetric: bool) -> None:
    """Zero points as the target wants them.

    Raises:
        ConfigError: TensorRT would refuse the file.
    """
    model = onnx.load(path)
    stored = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    for node in model.graph.node:
        if not symmetric or node.op_type != "QuantizeLinear" or len(node.input) < 3:
            continue
        if np.any(stored[node.input[2]] != 0):
            raise ConfigError(f"{path.name}: {node.name} has a zero point; TensorRT takes none")

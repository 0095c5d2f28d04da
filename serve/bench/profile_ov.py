"""OpenVINO: the counters of the compiled model, and its graph as it was compiled."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmf_deploy.bundle import Bundle, Variant
from mmf_deploy.engines.base import EngineOptions
from mmf_deploy.engines.ov import OpenVinoEngine
from mmf_deploy.errors import require

from .profile import Call, Recording, timed_ms, turns
from .profile_kinds import (
    ARITHMETIC,
    CONVOLUTION,
    ELEMENTWISE,
    PRODUCT,
    Work,
    convolution,
    kind_of,
    kind_of_fused,
    product,
    shape_text,
)
from .profile_times import OpTime

SETTINGS = (
    "INFERENCE_PRECISION_HINT",
    "PERFORMANCE_HINT",
    "INFERENCE_NUM_THREADS",
)
"""What the engine sets."""
DTYPES = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i8": "int8", "u8": "int8", "I8": "int8"}
Shape = list[int]
RESOLUTION = "OpenVINO counts whole microseconds: what an operator takes less is not in its time"


class _Profiled(OpenVinoEngine):
    """The engine with the counters of the compiled model switched on.

    Args:
        single: whether batch 1 is what will be run; only that model, or the other, counts.
    """

    def __init__(self, *given: Any, single: bool) -> None:
        super().__init__(*given)
        self._is_single = single

    def load(self) -> None:
        """Compile once more what the engine has compiled, with its settings and the counters."""
        super().load()
        ov = require("openvino", "openvino")
        made = (self._single if self._is_single else self._dynamic).get_compiled_model()
        settings = {name: made.get_property(name) for name in SETTINGS}
        core = ov.Core()
        model = core.read_model(str(self.bundle.file(self.variant)))
        self._types = _types(model)
        if self._is_single:
            model.reshape({i.any_name: [1, *list(i.partial_shape)[1:]] for i in model.inputs})
        self._compiled = core.compile_model(model, "CPU", {**settings, "PERF_COUNT": True})
        self._single = self._dynamic = self._compiled.create_infer_request()

    def counters(self) -> dict[str, float]:
        """Milliseconds of every node, the mean over all calls so far in whole microseconds."""
        return {
            p.node_name: 1e3 * p.real_time.total_seconds()
            for p in self._single.get_profiling_info()
        }

    def nodes(self) -> list[Node]:
        """The graph as it was compiled, in the order in which it runs."""
        made = self._compiled.get_runtime_model().get_ordered_ops()
        types = {p.node_name: p.node_type for p in self._single.get_profiling_info()}
        return [_node(op, types[op.get_friendly_name()], self._types)
                for op in made if op.get_friendly_name() in types]  # fmt: skip


def record(
    bundle: Bundle, variant: Variant, options: EngineOptions, call: Call,
    batch: int, calls: int | None,
) -> Recording:  # fmt: skip
    """As of ``profile.Profiler``."""
    plain_ms, profiled_ms = [], []
    with OpenVinoEngine(bundle, variant, options) as plain:
        each = turns(lambda: call(plain), calls)
        with _Profiled(bundle, variant, options, single=batch == 1) as profiled:
            call(profiled)
            call(profiled)
            before, done = profiled.counters(), 2
            for count in each:
                call(plain)
                plain_ms += [timed_ms(lambda: call(plain)) for _ in range(count)]
                profiled_ms += [timed_ms(lambda: call(profiled)) for _ in range(count)]
            after, nodes = profiled.counters(), profiled.nodes()
    total = done + len(profiled_ms)
    # the counters are means over all calls, the first ones included
    means = {
        name: max(0.0, ms * total - before[name] * done) / len(profiled_ms)
        for name, ms in after.items()
    }
    # what interrupts a call is shared by its operators
    scale = float(np.median(profiled_ms) / np.mean(profiled_ms))
    ops = [
        node.op_time(means[node.name] * scale)
        for node in nodes
        if means[node.name] or node.kind in ARITHMETIC
    ]
    # it only adds to a counter
    return Recording(ops, profiled_ms, plain_ms, RESOLUTION, clock_ms=0.0)


@dataclass(frozen=True)
class Node:
    """A node of the compiled graph.

    Attributes:
        op: its type.
        kind: one of ``profile_kinds``.
        inputs, output: types and shapes.
        constant: which of the inputs are.
    """

    name: str
    op: str
    kind: str
    dtype: str
    inputs: Sequence[tuple[str, Shape]]
    constant: Sequence[bool]
    output: tuple[str, Shape]

    def op_time(self, ms: float) -> OpTime:
        """With the time it takes."""
        weight = self._weight()
        work = self._work(weight)
        moved = sum(map(_bytes, [*self.inputs, self.output]))
        return OpTime(
            name=self.name,
            op=self.op,
            kind=self.kind,
            ms=ms,
            flops=work.flops,
            dtype=self.dtype,
            bytes=moved,
            padding_flops=work.padding,
            weight_bytes=_bytes(weight) if weight else 0.0,
            shape=self._text(weight),
        )

    def _weight(self) -> tuple[str, Shape] | None:
        has = self.kind in ARITHMETIC and len(self.inputs) > 1
        return self.inputs[1] if has and (self.constant[1] or self.kind == CONVOLUTION) else None

    def _work(self, weight: tuple[str, Shape] | None) -> Work:
        if self.kind == CONVOLUTION and weight:
            back = "Deconv" in self.op
            image = self.inputs[0][1] if back else self.output[1]
            shape = weight[1]
            if self.op.startswith("Group"):  # the groups are a dimension of their own
                shape = [shape[0] * shape[1], *shape[2:]]
            return convolution(shape, image, image[1])
        if self.kind == PRODUCT and len(self.inputs) > 1:
            return product(self.inputs[0][1], self.inputs[1][1], self.output[1])
        return Work()

    def _text(self, weight: tuple[str, Shape] | None) -> str:
        shown = [self.inputs[0]] if self.inputs else []
        shown += [weight] if weight else [
            tensor for tensor, constant in zip(self.inputs[1:2], self.constant[1:2], strict=True)
            if not constant
        ]  # fmt: skip
        return shape_text([shape for _, shape in shown], self.output[1])


def _node(op: Any, made: str, types: Mapping[str, str]) -> Node:
    """
    Args:
        made: what the compiler made of it.
        types: of the operators in the file.
    """
    facts = {name: str(value.astype(str)) for name, value in op.get_rt_info().items()}
    output = op.output(0) if op.get_output_size() else None
    sources = [i.get_source_output() for i in op.inputs()]
    kind = kind_of(made)
    if made == "Subgraph" or kind == ELEMENTWISE:
        kind = kind_of_fused(_fused(facts["originalLayersNames"].split(","), types))
    return Node(
        name=op.get_friendly_name(),
        op=made,
        kind=kind,
        dtype=DTYPES.get(facts["runtimePrecision"], facts["runtimePrecision"]),
        inputs=[(s.get_element_type().to_string(), _shape(s)) for s in sources],
        constant=[str(s.get_node().get_rt_info()["layerType"].astype(str)) == "Const"
                  for s in sources],
        output=(output.get_element_type().to_string(), _shape(output)) if output else ("", []),
    )  # fmt: skip


def _shape(tensor: Any) -> Shape:
    """Its shape; the compiled graph has that of the last call, and -1 where it has none."""
    return [int(d.get_length()) if d.is_static else -1 for d in tensor.get_partial_shape()]


def _types(model: Any) -> dict[str, str]:
    """Types of the operators in the file by name, with x · sigmoid(x) as what it is."""
    found = {}
    for op in model.get_ops():
        sources = [i.get_source_output().get_node().get_type_name() for i in op.inputs()]
        swish = op.get_type_name() == "Multiply" and "Sigmoid" in sources
        found[op.get_friendly_name()] = "Swish" if swish else op.get_type_name()
    return found


def _fused(names: Iterable[str], types: Mapping[str, str]) -> list[str]:
    """Types of operators that run as one; the compiler's own ones have it in their names."""
    found = []
    for name in names:
        quantises = re.search(r"(Dequantize|Quantize)Linear", name)
        found.append(quantises.group() if quantises else
                     types.get(name) or re.sub(r"_\d+$", "", name))  # fmt: skip
    return found


def _bytes(tensor: tuple[str, Shape]) -> float:
    dtype, shape = tensor
    bits = re.search(r"\d+$", dtype)
    return float(math.prod(shape) * int(bits.group()) / 8) if bits else 0.0

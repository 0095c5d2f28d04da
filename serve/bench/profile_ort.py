"""ONNX Runtime: the JSON trace that a session writes of every node it runs."""

from __future__ import annotations

import contextlib
import json
import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmf_deploy.bundle import Bundle, Variant
from mmf_deploy.engines.base import EngineOptions
from mmf_deploy.engines.ort import OnnxRuntimeEngine
from mmf_deploy.errors import EngineError

from .profile import Call, Recording, timed_ms, turns, typical
from .profile_kinds import (
    ARITHMETIC,
    CONVOLUTION,
    NORMALISATION,
    PRODUCT,
    Work,
    convolution,
    kind_of,
    product,
    shape_text,
)
from .profile_times import OpTime

BYTES = {"float": 4, "float16": 2, "bfloat16": 2, "double": 8, "int64": 8, "int32": 4, "uint8": 1,
         "int8": 1, "bool": 1}  # fmt: skip
DTYPES = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16", "uint8": "int8", "int8": "int8"}
WEIGHTS = {"uint8": "int8"}
"""Types of weights where they are not those of the activations."""
Event = dict[str, Any]
Shape = list[int]
Tensor = tuple[str, Shape]
"""Type and shape."""


class _Profiled(OnnxRuntimeEngine):
    """The engine with the session's profiler switched on."""

    def __init__(self, *given: Any, trace: Path) -> None:
        super().__init__(*given)
        self._trace = trace

    def _load_on_cpu(self, ort: Any, path: Path, settings: Any) -> None:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(self._trace / "trace")
        super()._load_on_cpu(ort, path, settings)

    def events(self) -> list[Event]:
        """Ends the profile; one entry a node that ran, and one a run."""
        found: list[Event] = json.loads(Path(self._session.end_profiling()).read_text())
        return found


def record(
    bundle: Bundle, variant: Variant, options: EngineOptions, call: Call,
    batch: int, calls: int | None,
) -> Recording:  # fmt: skip
    """As of ``profile.Profiler``."""
    plain = OnnxRuntimeEngine(bundle, variant, options)
    if plain.device != "cpu":
        raise EngineError(
            f"engine 'onnxruntime' on {plain.device!r}: its profiler sees launches and not what "
            "the GPU does; --profile is for the CPU there"
        )
    counted: list[int] = []
    plain_ms, profiled_ms = [], []
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="mmf-profile-"))
        stack.enter_context(plain)
        profiled = _Profiled(bundle, variant, options, trace=Path(directory))
        stack.enter_context(profiled)
        call(profiled)
        done = 1
        for count in turns(lambda: call(plain), calls):
            call(plain)
            plain_ms += [timed_ms(lambda: call(plain)) for _ in range(count)]
            call(profiled)
            profiled_ms += [timed_ms(lambda: call(profiled)) for _ in range(count)]
            counted += range(done + 1, done + 1 + count)
            done += 1 + count
        events = profiled.events()
    return Recording(op_times(events, counted, weights(bundle.file(variant))), profiled_ms,
                     plain_ms)  # fmt: skip


def op_times(
    events: Sequence[Event], counted: Sequence[int], known: Mapping[str, Shape]
) -> list[OpTime]:
    """The nodes of a run with their median times.

    Args:
        counted: which runs count, by their number.
        known: shapes of weights, as of ``weights``.
    """
    runs = sorted((e for e in events if e["name"] == "model_run"), key=lambda e: e["ts"])
    nodes = sorted((e for e in events if e["cat"] == "Node"), key=lambda e: e["ts"])
    durations: dict[tuple[str, str], dict[int, float]] = {}
    first: dict[tuple[str, str], Event] = {}
    k = 0
    for event in nodes:
        while k + 1 < len(runs) and event["ts"] >= runs[k + 1]["ts"]:
            k += 1
        key = event["args"]["node_index"], event["name"]
        first.setdefault(key, event)
        taken = durations.setdefault(key, {})
        taken[k] = taken.get(k, 0.0) + event["dur"] / 1e3  # a loop runs a node more than once
    times = typical([[taken.get(n, 0.0) for taken in durations.values()] for n in counted])
    executed = list(first.values())
    normalising = _normalisation([e["args"]["op_name"] for e in executed])
    return [
        _op_time(event, ms, k in normalising, known)
        for k, (event, ms) in enumerate(zip(executed, times, strict=True))
    ]


def _normalisation(ops: Sequence[str]) -> set[int]:
    """Places of what a group normalisation is written as: reshaped into groups and back, then
    scaled and shifted. The scale and the shift are elementwise operators, told by their place."""
    found = set()
    for k, op in enumerate(ops):
        if op != "InstanceNormalization":
            continue
        found.add(k)
        if k and ops[k - 1] == "Reshape":
            found.add(k - 1)
        expected = ["Reshape", "Mul", "Add"]
        for place, follower in enumerate(ops[k + 1 : k + 4], k + 1):
            if expected and follower == expected.pop(0):
                found.add(place)
            else:
                break
    return found


def _op_time(event: Event, ms: float, normalises: bool, known: Mapping[str, Shape]) -> OpTime:
    args = event["args"]
    op: str = args["op_name"]
    name: str = event["name"].removesuffix("_kernel_time")
    inputs: list[Tensor] = [next(iter(i.items())) for i in args["input_type_shape"]]
    outputs: list[Tensor] = [next(iter(o.items())) for o in args["output_type_shape"]]
    kind = NORMALISATION if normalises else kind_of(op)
    dtype = next((found for found, _ in [*inputs, *outputs]), "")
    shapes = [shape for _, shape in inputs]
    output = outputs[0][1] if outputs else []
    weight, traced = _weight(kind, name, shapes, known)
    work = _work(kind, op, shapes, output, weight, traced)
    size = _bytes((WEIGHTS.get(dtype, dtype), weight)) if weight else 0.0
    return OpTime(
        name=name,
        op=op,
        kind=kind,
        ms=ms,
        flops=work.flops,
        dtype=DTYPES.get(dtype, dtype),
        bytes=sum(map(_bytes, [*inputs, *outputs])) + (0.0 if traced else size),
        padding_flops=work.padding,
        weight_bytes=size,
        shape=_text(shapes, output, weight),
    )


def _weight(
    kind: str, name: str, shapes: Sequence[Shape], known: Mapping[str, Shape]
) -> tuple[Shape, Shape]:
    """The shape of a node's weights as the file has it, and as the trace has it; [] for none.

    The trace leaves out what a kernel keeps in an order of its own, and where it has blocks of
    channels it counts those that only fill them.
    """
    if kind not in ARITHMETIC or not shapes:
        return [], []
    in_file = known.get(re.sub(r"_token_\d+$", "", name), [])
    if kind == PRODUCT and not in_file:
        return [], []  # both factors are activations
    alike = [shape for shape in shapes[1:] if len(shape) == len(in_file or shapes[0])]
    traced = alike[0] if alike else []
    return in_file or traced, traced


def _work(
    kind: str, op: str, shapes: Sequence[Shape], output: Shape, weight: Shape, traced: Shape
) -> Work:
    if kind == CONVOLUTION and weight:
        image = shapes[0] if op == "ConvTranspose" else output
        return convolution(weight, image, (traced or weight)[0])
    if kind == PRODUCT and (weight or len(shapes) > 1):
        return product(shapes[0], weight or shapes[1], output)
    return Work()


def _text(shapes: Sequence[Shape], output: Shape, weight: Shape) -> str:
    if weight:
        return shape_text([shapes[0], weight], output)
    large = [shape for shape in shapes if math.prod(shape) > 1 and len(shape) > 1]
    return shape_text(large[:2] or shapes[:1], output)


def _bytes(tensor: Tensor) -> float:
    dtype, shape = tensor
    return float(math.prod(shape) * BYTES.get(dtype, 0))


def weights(file: Path) -> dict[str, Shape]:
    """Shapes of the weights in an ONNX file, by the names that ONNX Runtime gives their nodes.

    Empty without the package onnx: then only what the trace has is counted.
    """
    try:
        import onnx
    except ModuleNotFoundError:
        return {}
    graph = onnx.load(str(file), load_external_data=False).graph
    stored = {i.name: list(i.dims) for i in graph.initializer}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in stored:
            stored[node.output[0]] = stored[node.input[0]]
    found: dict[str, Shape] = {}
    for node in graph.node:
        if kind_of(node.op_type) in ARITHMETIC and node.input[1] in stored:
            # a convolution in a blocked layout is named after what it computes
            found[node.name] = found[f"{node.output[0]}_nchwc"] = stored[node.input[1]]
    return found

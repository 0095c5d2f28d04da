"""PyTorch: its profiler, on a sampler that runs operator by operator."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

from mmf_deploy.bundle import Bundle, Variant
from mmf_deploy.engines.base import EngineOptions, engine_class
from mmf_deploy.errors import EngineError, require

from .profile import FEWEST, Call, Recording, timed_ms, turns, typical
from .profile_kinds import ARITHMETIC, Work, convolution, kind_of, shape_text
from .profile_times import OpTime

CALL = "mmf call"
"""What a call is labelled with in the trace."""
BYTES = {"float": 4, "c10::BFloat16": 2, "c10::Half": 2, "double": 8, "long int": 8, "int": 4,
         "unsigned char": 1, "bool": 1}  # fmt: skip
DTYPES = {"float": "fp32", "c10::BFloat16": "bf16", "c10::Half": "fp16"}
NOTE = "an operator's time includes those it calls, and what PyTorch does before and after them"


def record(
    bundle: Bundle, variant: Variant, options: EngineOptions, call: Call,
    batch: int, calls: int | None,
) -> Recording:  # fmt: skip
    """As of ``profile.Profiler``."""
    modes = importlib.import_module("mmf_deploy.engines.torch_modes").MODES
    eager = [name for name, mode in modes.items() if mode.way == "eager"]
    if options.mode is not None and options.mode not in eager:
        raise EngineError(
            f"mode {options.mode!r} of engine 'pytorch' hides its operators from the profiler; "
            f"--profile knows {', '.join(eager)}"
        )
    # read when the profiler starts; it would report every start, and that there is no GPU
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    plain_ms, profiled_ms = [], []
    rows: list[list[float]] = []
    ops: list[Any] = []
    with engine_class("pytorch")(bundle, variant, options) as engine:
        on_gpu = engine.device.startswith("cuda")
        # thousands of events a call: they take long to read
        each = turns(lambda: call(engine), calls or FEWEST)

        def labelled() -> None:
            with _torch_profiler().record_function(CALL):
                call(engine)

        for count in each:
            call(engine)
            plain_ms += [timed_ms(lambda: call(engine)) for _ in range(count)]
            with _profiler(on_gpu) as trace:
                call(engine)
                profiled_ms += [timed_ms(labelled) for _ in range(count)]
            for found in _operators(trace.function_events or []):
                ops = found
                rows.append([_ms(event, on_gpu) for event in found])
        precision = engine.precision
    times = typical(rows)
    made = [_op_time(event, ms, precision) for event, ms in zip(ops, times, strict=True)]
    return Recording(made, profiled_ms, plain_ms, NOTE, [_events(event) for event in ops])


def _torch_profiler() -> Any:
    """The plain one: ``torch.profiler``'s loads the compiler when it starts, for seconds."""
    return require("torch.autograd.profiler", "train")


def _profiler(on_gpu: bool) -> Any:
    return _torch_profiler().profile(
        use_device="cuda" if on_gpu else None, record_shapes=True, with_flops=True
    )


def _operators(events: Sequence[Any]) -> Iterator[list[Any]]:
    """Of each call, the operators that the sampler called, in order."""
    for event in sorted(events, key=lambda e: e.time_range.start):
        if event.name == CALL and event.cpu_children:
            yield sorted(event.cpu_children, key=lambda e: e.time_range.start)


def _events(event: Any) -> int:
    """It and those that it calls, each of which is timed."""
    return 1 + sum(map(_events, event.cpu_children))


def _ms(event: Any, on_gpu: bool) -> float:
    microseconds = event.device_time_total if on_gpu else event.time_range.elapsed_us()
    return float(microseconds) / 1e3


def _op_time(event: Any, ms: float, precision: str) -> OpTime:
    op = event.name.removeprefix("aten::")
    tensors = [(t, s) for t, s in zip(event.input_dtypes, event.input_shapes, strict=True)
               if t in BYTES]  # fmt: skip
    shapes = [list(shape) for _, shape in tensors]
    dtype = tensors[0][0] if tensors else ""
    weight = shapes[1] if op in ("conv2d", "conv_transpose2d", "linear") else []
    work = _work(event, op, shapes)
    return OpTime(
        name=event.name,
        op=op,
        kind=kind_of(op),
        ms=ms,
        flops=work.flops,
        # rounded to TF32 inside the kernel, which the tensors do not show
        dtype="tf32" if (dtype, precision) == ("float", "tf32") else DTYPES.get(dtype, dtype),
        bytes=float(sum(math.prod(shape) * BYTES[t] for t, shape in tensors)),
        padding_flops=work.padding,
        weight_bytes=float(math.prod(weight) * BYTES[dtype]) if weight else 0.0,
        shape=shape_text([shape for shape in shapes if math.prod(shape) > 1][:2]),
    )


def _work(event: Any, op: str, shapes: Sequence[list[int]]) -> Work:
    if op == "conv_transpose2d":  # which PyTorch does not count
        return convolution(shapes[1], shapes[0], shapes[0][1])
    flops = _counted(event) if kind_of(op) in ARITHMETIC else 0.0
    if op == "conv2d" and flops:
        data, weight = shapes[:2]
        pixels = flops / 2 / math.prod(weight)  # of the output, whose shape is not recorded
        return convolution(weight, [data[0], pixels / data[0]], 1)
    return Work(flops)


def _counted(event: Any) -> float:
    """As PyTorch counts, of the operator or of those that it calls."""
    called = [e for e in event.cpu_children if kind_of(e.name.removeprefix("aten::")) in ARITHMETIC]
    return float(event.flops or sum(map(_counted, called)))

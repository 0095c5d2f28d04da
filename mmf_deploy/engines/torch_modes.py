"""The ways in which the PyTorch engine runs a sampler, each in several precisions."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from mmf_deploy.errors import EngineError, nearest
from mmf_deploy.nn.half_precision import HalfPrecision
from mmf_deploy.nn.sampler import Sampler

Inputs = tuple[Tensor | None, ...]
Run = Callable[[Inputs], tuple[Tensor, ...]]
"""A function of (noise, label, guidance)."""

WAYS = ("eager", "compile", "cudagraph")
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
TF32_CAPABILITY = (8, 0)
"""Of the first GPUs with TF32; older ones would compute fp32 under its name."""


@dataclass(frozen=True)
class Mode:
    """One way of running.

    Attributes:
        way: "eager", "compile" (Inductor) or "cudagraph" (eager kernels, captured).
        precision: of products: fp32, bf16, fp16, or tf32 (on a GPU: fp32 whose factors are
            rounded to 10 bits).
        channels_last: whether convolution weights lie in that order.
    """

    way: str
    precision: str
    channels_last: bool

    @property
    def fixed_batch(self) -> bool:
        """Whether every batch size costs a compilation or a capture, so that batches are padded."""
        return self.way != "eager"

    @property
    def cuda_only(self) -> bool:
        """Whether a CPU has nothing of the kind."""
        return self.way == "cudagraph" or self.precision == "tf32"


def _name(way: str, precision: str) -> str:
    """For example "eager", "bf16", "compile", "compile-bf16"."""
    left_out = ("eager", "fp32")
    return "-".join(part for part in (way, precision) if part not in left_out) or "eager"


# Convolutions measure fastest in channels-last order, compiled and in bf16 above all
# (docs/engines.md), and a GPU's tensor cores take it without a copy; eager and cudagraph in
# fp32 stay as PyTorch gives them
MODES = {
    _name(way, precision): Mode(way, precision, way == "compile" or precision != "fp32")
    for way, precision in product(WAYS, PRECISIONS)
} | {"channels_last": Mode("eager", "fp32", channels_last=True)}


def arranged(sampler: Sampler, mode: str) -> nn.Module:
    """The sampler's weights in the precision and the memory layout of a mode, in place."""
    found = MODES[mode]
    dtype = HALF.get(found.precision)
    module: nn.Module = sampler if dtype is None else HalfPrecision(sampler, dtype)
    return module.to(memory_format=torch.channels_last) if found.channels_last else module


def take_the_gpu(mode: str, device: torch.device) -> None:
    """Settings of the process that a mode needs on a GPU: two engines may take turns."""
    torch.cuda.set_device(device)
    tf32 = MODES[mode].precision == "tf32"
    # fp32 means fp32; PyTorch by itself lets convolutions round to TF32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    # the search for the fastest algorithm is paid once a shape: shapes must be few
    torch.backends.cudnn.benchmark = MODES[mode].fixed_batch


def problem(mode: str, device: torch.device) -> str | None:
    """Why a mode cannot run on a device that is there; None if it can."""
    found = MODES.get(mode)
    if found is None:
        return f"no mode {mode!r}{nearest(mode, MODES)}; there are {', '.join(MODES)}"
    if device.type == "cpu":
        if found.cuda_only:
            return f"mode {mode!r} is for device 'cuda'"
        return compiler_problem() if found.way == "compile" else None
    if found.precision == "tf32":
        capability = torch.cuda.get_device_capability(device)
        if capability < TF32_CAPABILITY:
            has, needs = (".".join(map(str, c)) for c in (capability, TF32_CAPABILITY))
            return f"mode {mode!r} needs a GPU of compute capability {needs}, this one has {has}"
    return None


def compiler_problem() -> str | None:
    """Why Inductor cannot compile for the CPU here; None if it can."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return f"it needs a C++ compiler, and {compiler!r} is not installed: apt-get install g++"
    return None


def prepared(module: nn.Module, mode: str, inputs: Inputs) -> Run:
    """A function for inputs of these shapes.

    Raises:
        EngineError: PyTorch cannot compile the sampler.
    """
    way = MODES[mode].way
    if way == "compile":
        return _compiled(module, inputs)
    if way == "cudagraph":
        return _captured(module, inputs)
    return lambda given: module(*given)


def _compiled(module: nn.Module, inputs: Inputs) -> Run:
    def step(*given: Tensor | None) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = module(*given)
        return outputs

    # what is compiled is kept with the code object, and of each only a few: one object a shape
    own = FunctionType(step.__code__.replace(), step.__globals__, "step", None, step.__closure__)
    on_gpu = inputs[0] is not None and inputs[0].is_cuda
    run = torch.compile(
        own,
        # otherwise what does not compile would run eagerly without a word
        fullgraph=True,
        dynamic=False,
        mode="max-autotune" if on_gpu else None,
    )
    try:
        with quiet():
            run(*inputs)
    except Exception as e:  # Dynamo and Inductor have no common base
        reason = (str(e).strip() or type(e).__name__).splitlines()[0]
        raise EngineError(f"PyTorch cannot compile the sampler: {reason}") from e
    return lambda given: run(*given)


def _captured(module: nn.Module, inputs: Inputs) -> Run:
    """A CUDA graph with inputs and outputs at fixed addresses."""
    static = tuple(None if a is None else a.clone() for a in inputs)
    current = torch.cuda.current_stream()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        for _ in range(3):  # cuDNN chooses, the allocator settles
            module(*static)
    current.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # thread-local: another thread may talk to the GPU meanwhile
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        outputs: tuple[Tensor, ...] = module(*static)

    def replay(given: Inputs) -> tuple[Tensor, ...]:
        for place, value in zip(static, given, strict=True):
            if place is not None and value is not None:
                place.copy_(value)
        graph.replay()
        return outputs

    return replay


def timed(run: Run, inputs: Inputs) -> tuple[tuple[Tensor, ...], Callable[[], float]]:
    """Run on a GPU between two events.

    Returns:
        the outputs, and a function that waits for the second event and gives milliseconds
        between both: gaps in which the GPU waits for the next kernel count, copies from and to
        the host do not.
    """
    event: Callable[..., Any] = torch.cuda.Event
    begin, end = (event(enable_timing=True) for _ in range(2))
    begin.record()
    outputs = run(inputs)
    end.record()

    def elapsed_ms() -> float:
        end.synchronize()
        return float(begin.elapsed_time(end))

    return outputs, elapsed_ms


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The compiler warns of what it does not use; none of that helps a user."""
    logger = logging.getLogger("torch")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)

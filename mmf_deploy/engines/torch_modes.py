"""The ways in which the PyTorch engine runs a sampler: eager, compiled, as a CUDA graph."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from types import FunctionType

import torch
from torch import Tensor, nn

from mmf_deploy.errors import EngineError
from mmf_deploy.nn.bf16 import Bfloat16
from mmf_deploy.nn.sampler import Sampler

MODES = ("eager", "compile", "channels_last", "bf16", "compile-bf16", "cudagraph")
Inputs = tuple[Tensor | None, ...]
Run = Callable[[Inputs], tuple[Tensor, ...]]
"""A function of (noise, label, guidance)."""


def fixed_batch(mode: str) -> bool:
    """True where every batch size costs a compilation or a capture, so batches are padded."""
    return mode.startswith("compile") or mode == "cudagraph"


def arranged(sampler: Sampler, mode: str) -> nn.Module:
    """The sampler's weights in the precision and the memory layout of a mode, in place.

    Convolutions measure fastest in channels-last order, compiled and in bf16 above all
    (docs/engines.md); eager and cudagraph stay as PyTorch gives them.
    """
    module: nn.Module = Bfloat16(sampler) if mode.endswith("bf16") else sampler
    if mode not in ("eager", "cudagraph"):
        module.to(memory_format=torch.channels_last)
    return module


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
    if mode.startswith("compile"):
        return _compiled(module, inputs)
    if mode == "cudagraph":
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

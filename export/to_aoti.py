"""PyTorch sampler to an AOTInductor package: machine code and weights in one .pt2 file."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn
from torch._inductor import aoti_compile_and_package

from mmf_deploy.engines.aoti import FLAGS_KEY, cpu_flags
from mmf_deploy.engines.base import BUCKETS
from mmf_deploy.engines.torch_modes import arranged, compiler_problem, quiet
from mmf_deploy.errors import ConfigError, DependencyError, EngineError
from mmf_deploy.nn.sampler import Sampler
from mmf_deploy.spec import SampleSpec

from .graph import fixed_inputs

MODES = {"fp32": "channels_last", "bf16": "bf16"}
"""How the PyTorch engine would arrange the weights for a precision."""


def export_aoti(
    sampler: Sampler, spec: SampleSpec, path: Path, precision: str = "fp32", device: str = "cpu"
) -> None:
    """Compile a sampler for this machine, for any batch up to the largest bucket.

    Inputs and outputs are those of the ONNX graphs, by name and type.

    Args:
        sampler: left as it is.
        path: ends in .pt2.
        precision: fp32 or bf16.
        device: "cpu" or "cuda".
    Raises:
        ConfigError: there is no such precision.
        DependencyError: no C++ compiler.
        EngineError: PyTorch cannot compile it.
    """
    if precision not in MODES:
        raise ConfigError(f"precision {precision!r}: an aoti package has {', '.join(MODES)}")
    problem = compiler_problem()
    if problem is not None:
        raise DependencyError(f"an aoti package is compiled: {problem}")
    module = arranged(copy.deepcopy(sampler).to(device), MODES[precision]).eval()
    # without Inductor's "freezing", which gains nothing here, and with channels-last weights
    # compiled a small UNet to code that gave other samples (torch 2.15)
    settings = {
        # else the number of threads of this moment would be compiled in
        "cpp.dynamic_threads": True,
        "aot_inductor.enable_line_tables": False,
        "aot_inductor.metadata": {FLAGS_KEY: " ".join(sorted(cpu_flags()))},
    }
    try:
        with quiet(), torch.no_grad():
            program = _traced(module, spec, device)
            aoti_compile_and_package(program, package_path=str(path), inductor_configs=settings)
    except Exception as e:  # torch.export and Inductor have no common base
        reason = (str(e).strip() or type(e).__name__).splitlines()[0]
        raise EngineError(f"PyTorch cannot compile the sampler: {reason}") from e


def _traced(module: nn.Module, spec: SampleSpec, device: str) -> torch.export.ExportedProgram:
    # batch 2: the exporter would take a batch of 1 for a constant
    inputs = {name: a.to(device) for name, a in fixed_inputs(spec, 2).tensors().items()}
    batch = torch.export.Dim("batch", min=1, max=BUCKETS[-1])
    shapes = {name: {0: batch} for name in inputs}
    return torch.export.export(module, (), kwargs=inputs, dynamic_shapes=shapes)

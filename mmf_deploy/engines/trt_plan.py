"""What a TensorRT plan is made for: tensors, build options, machine, and the key of all that."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from mmf_deploy.errors import ConfigError
from mmf_deploy.spec import SampleSpec

REVISION = 1
"""Counts up when this package builds plans differently from the same options."""

MAX_OPSET = 25

NEEDS = (
    f"TensorRT 11 needs an ONNX graph in fp32, fp16 or bf16, or in int8 with symmetric Q/DQ "
    f"(zero point 0), of opset {MAX_OPSET} or lower: mmf-export CHECKPOINT --target tensorrt"
)


@dataclass(frozen=True)
class BuildOptions:
    """How a plan is built.

    Attributes:
        optimization_level: 0 … 5; higher builds longer and may run faster.
        workspace_mib: most scratch memory that a layer may take.
        tf32: let fp32 products round their factors to 10 bits; off where fp32 was asked for.
        hardware: "none": this GPU model alone; "same": its compute capability; "ampere": Ampere
            and later. The last two run slower.
        version_compatible: later TensorRT versions can load the plan; runs slower.
        refit: weights of the plan can be replaced.
    Raises:
        ConfigError: a value out of range.
    """

    optimization_level: int = 3
    workspace_mib: int = 2048
    tf32: bool = False
    hardware: Literal["none", "same", "ampere"] = "none"
    version_compatible: bool = False
    refit: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.optimization_level <= 5:
            raise ConfigError(f"optimization_level {self.optimization_level}: expected 0 … 5")
        if self.workspace_mib < 1:
            raise ConfigError(f"workspace_mib {self.workspace_mib}: expected 1 or more")
        if self.hardware not in ("none", "same", "ampere"):
            raise ConfigError(f"hardware {self.hardware!r}: expected none, same or ampere")


@dataclass(frozen=True)
class Machine:
    """What a plan depends on besides its graph.

    Attributes:
        gpu: name of the GPU.
        compute_capability: for example "9.0".
        tensorrt: its version.
        driver: highest CUDA version that the driver supports.
        runtime: version of the CUDA runtime.
    """

    gpu: str
    compute_capability: str
    tensorrt: str
    driver: str
    runtime: str

    def as_dict(self) -> dict[str, str]:
        """For a file or a table."""
        return asdict(self)


@dataclass(frozen=True)
class Tensor:
    """One input or output of a graph.

    Attributes:
        shape: of one sample; the batch comes first.
        dtype: float32, int64 or uint8.
        padding: what fills the rows that pad a batch: a value in the input's range.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Literal["float32", "int64", "uint8"]
    is_input: bool
    padding: float = 0

    def batched(self, batch: int) -> tuple[int, ...]:
        """Shape of a whole batch."""
        return (batch, *self.shape)


@dataclass(frozen=True)
class BuildRequest:
    """Everything that decides what a plan is, except the machine.

    Attributes:
        graph: the ONNX file.
        buckets: batch sizes, ascending; profile k of the plan is for ``buckets[k]``.
        timing_cache: file of kernel timings, read if it is there and written after the build.
    """

    graph: Path
    tensors: tuple[Tensor, ...]
    buckets: tuple[int, ...]
    options: BuildOptions
    timing_cache: Path | None = None


def tensors_of(spec: SampleSpec) -> tuple[Tensor, ...]:
    """Inputs and outputs of the graph of a generator, in the order of the bundle's contract."""
    found = [Tensor("noise", spec.shape, "float32", is_input=True)]
    if spec.conditional:
        found.append(Tensor("label", (), "int64", is_input=True))
    if spec.guidance is not None:
        low = spec.guidance[0]
        found.append(Tensor("guidance", (), "float32", is_input=True, padding=low))
    found.append(Tensor("sample", spec.shape, "float32", is_input=False))
    if spec.is_image:
        c, h, w = spec.shape
        found.append(Tensor("image", (h, w, c), "uint8", is_input=False))
    return tuple(found)


def plan_key(
    machine: Machine, graph_sha256: str, options: BuildOptions, buckets: Sequence[int]
) -> str:
    """SHA-256 of everything that a plan depends on; another value of any of it gives another key.

    Args:
        graph_sha256: of the ONNX file.
    """
    return _digest({
        "revision": REVISION,
        "machine": machine.as_dict(),
        "graph": graph_sha256,
        "options": asdict(options),
        "buckets": list(buckets),
    })  # fmt: skip


def timing_key(machine: Machine) -> str:
    """Key of the kernel timings of a machine, which every graph shares."""
    return _digest(machine.as_dict())


def _digest(content: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

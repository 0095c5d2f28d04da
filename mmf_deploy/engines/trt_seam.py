"""What the TensorRT engine needs of CUDA and TensorRT: the seam that tests put a fake behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from mmf_deploy.engines.trt_plan import BuildRequest, Machine, Tensor


class Cuda(Protocol):
    """What the engine needs of CUDA (cuda_runtime.py)."""

    @property
    def stream(self) -> int: ...
    def allocate(self, size: int) -> int: ...
    def pinned(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]: ...
    def upload(self, address: int, array: NDArray[Any]) -> None: ...
    def download(self, array: NDArray[Any], address: int) -> None: ...
    def synchronize(self) -> None: ...
    def capture(self, work: Callable[[], None]) -> Callable[[], None]: ...
    def drop_graphs(self) -> None: ...


class Plan(Protocol):
    """A plan in GPU memory (trt_runtime.py)."""

    def bind(
        self,
        profile: int,
        batch: int,
        tensors: tuple[Tensor, ...],
        addresses: Mapping[str, int],
        stream: int,
    ) -> Callable[[], None]: ...
    def close(self) -> None: ...


class TensorRT(Protocol):
    """What the engine needs of TensorRT (trt_runtime.py)."""

    def machine(self) -> Machine: ...
    def build(self, request: BuildRequest) -> bytes: ...
    def open(self, plan: bytes, request: BuildRequest) -> Plan: ...

"""The part of the CUDA runtime that an engine without torch needs; every return code checked.

A ``CudaRuntime`` notes everything that was taken through it and gives it back on ``close``,
last first.
"""

from __future__ import annotations

import ctypes
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, Self, TypeVar

import numpy as np
from cuda.bindings import runtime as cudart
from numpy.typing import NDArray

from mmf_deploy.errors import EngineError

log = logging.getLogger(__name__)
T = TypeVar("T")
_Free = Callable[[], "tuple[cudart.cudaError_t]"]


class CudaRuntime:
    """A stream of the current device and the memory and graphs that go with it."""

    def __init__(self) -> None:
        self._stream: Any = None
        self._events: tuple[Any, Any] | None = None
        self._capturing = False
        self._taken: list[tuple[str, _Free]] = []
        self._graphs: list[tuple[str, _Free]] = []

    def __enter__(self) -> Self:
        flags = cudart.cudaStreamNonBlocking
        self._stream = _value("create a stream", cudart.cudaStreamCreateWithFlags(flags))
        stream = self._stream
        self._taken.append(("destroy the stream", lambda: cudart.cudaStreamDestroy(stream)))
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def stream(self) -> int:
        """The stream's handle, as TensorRT takes it; never the default stream."""
        return int(self._stream)

    def allocate(self, size: int) -> int:
        """Address of ``size`` bytes of device memory."""
        address = int(_value(f"allocate {size} bytes on the device", cudart.cudaMalloc(size)))
        self._taken.append(("free device memory", lambda: cudart.cudaFree(address)))
        return address

    def pinned(self, shape: Sequence[int], dtype: str) -> NDArray[Any]:
        """A page-locked host array, which copies faster and inside a graph; gone after close."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        found = cudart.cudaMallocHost(size)
        address = int(_value(f"allocate {size} bytes of page-locked memory", found))
        self._taken.append(("free page-locked memory", lambda: cudart.cudaFreeHost(address)))
        memory = (ctypes.c_uint8 * size).from_address(address)
        flat: NDArray[Any] = np.frombuffer(memoryview(memory), dtype)
        return flat.reshape(tuple(shape))

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """Enqueue a copy from a contiguous page-locked array to the device."""
        kind = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        source = array.ctypes.data
        _done(
            "copy to the device",
            cudart.cudaMemcpyAsync(address, source, array.nbytes, kind, self._stream),
        )

    def download(self, array: NDArray[Any], address: int) -> None:
        """Enqueue a copy from the device to a contiguous page-locked array."""
        kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        target = array.ctypes.data
        _done(
            "copy from the device",
            cudart.cudaMemcpyAsync(target, address, array.nbytes, kind, self._stream),
        )

    def synchronize(self) -> None:
        """Wait until everything enqueued is done."""
        _done("wait for the stream", cudart.cudaStreamSynchronize(self._stream))

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what ``work`` enqueues as a graph; returns a function that launches it.

        Other threads go on using CUDA meanwhile: the capture mode is thread-local.
        """
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        _done("begin a capture", cudart.cudaStreamBeginCapture(self._stream, mode))
        self._capturing = True
        try:
            work()
        except BaseException:
            self._abandon_capture()
            raise
        finally:
            self._capturing = False
        graph = _value("end a capture", cudart.cudaStreamEndCapture(self._stream))
        try:
            found = _value("instantiate a graph", cudart.cudaGraphInstantiate(graph, 0))
            self._graphs.append(("destroy a graph", lambda: cudart.cudaGraphExecDestroy(found)))
        finally:
            _done("destroy a captured graph", cudart.cudaGraphDestroy(graph))
        return lambda: _done("launch a graph", cudart.cudaGraphLaunch(found, self._stream))

    def timed(self, work: Callable[[], None]) -> None:
        """Enqueue ``work`` between two events; inside a capture they become part of the graph."""
        if self._events is None:
            self._events = self._event(), self._event()
        begin, end = self._events
        self._record(begin)
        work()
        self._record(end)

    def elapsed_ms(self) -> float:
        """Milliseconds between the events when they were last passed; after ``synchronize``."""
        if self._events is None:
            raise EngineError("there are no events: nothing was timed")
        begin, end = self._events
        found = cudart.cudaEventElapsedTime(begin, end)
        return float(_value("tell the time between events", found))

    def _record(self, event: Any) -> None:
        # otherwise a capture takes it for a dependency, and its launches record nothing
        flags = cudart.cudaEventRecordExternal if self._capturing else cudart.cudaEventRecordDefault
        _done("record an event", cudart.cudaEventRecordWithFlags(event, self._stream, flags))

    def _event(self) -> Any:
        event = _value("create an event", cudart.cudaEventCreate())
        self._taken.append(("destroy an event", lambda: cudart.cudaEventDestroy(event)))
        return event

    def _abandon_capture(self) -> None:
        status, graph = cudart.cudaStreamEndCapture(self._stream)
        # an invalidated capture gives an error and no graph
        if status == cudart.cudaError_t.cudaSuccess:
            _done("destroy a captured graph", cudart.cudaGraphDestroy(graph))

    def close(self) -> None:
        """Give everything back, last first."""
        self.drop_graphs()
        _free(self._taken)
        self._stream = self._events = None

    def drop_graphs(self) -> None:
        """Destroy the graphs; before the kernels go that they launch."""
        _free(self._graphs)


def device_count() -> int:
    """Number of GPUs.

    Raises:
        EngineError: there is no driver, or it is too old.
    """
    return int(_value("find a GPU", cudart.cudaGetDeviceCount()))


def device_facts() -> dict[str, str]:
    """gpu, compute_capability, driver and runtime of the current device, as ``Machine`` has."""
    index = _value("find the current device", cudart.cudaGetDevice())
    found = _value("describe the device", cudart.cudaGetDeviceProperties(index))
    return {
        "gpu": found.name.decode(errors="replace").rstrip("\0"),
        "compute_capability": f"{found.major}.{found.minor}",
        "driver": _version(_value("ask the driver", cudart.cudaDriverGetVersion())),
        "runtime": _version(_value("ask the runtime", cudart.cudaRuntimeGetVersion())),
    }


def _version(number: int) -> str:
    """13020 is CUDA 13.2."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _free(taken: list[tuple[str, _Free]]) -> None:
    """Empty the list from its end; what fails is logged, for the rest must be freed too."""
    while taken:
        what, free = taken.pop()
        try:
            _done(what, free())
        except EngineError as e:
            log.warning("%s", e)


def _done(what: str, result: tuple[cudart.cudaError_t]) -> None:
    _check(what, result[0])


def _value(what: str, result: tuple[cudart.cudaError_t, T]) -> T:
    _check(what, result[0])
    return result[1]


def _check(what: str, status: cudart.cudaError_t) -> None:
    if status == cudart.cudaError_t.cudaSuccess:
        return
    _, text = cudart.cudaGetErrorString(status)
    raise EngineError(f"CUDA cannot {what}: {text.decode()} ({status.name})")

"""The CUDA wrapper: every return code is checked, everything taken is given back.

Without a GPU the functions of CUDA are stand-ins with the real enums and result tuples; the
tests marked ``gpu`` run the real ones.
"""

from __future__ import annotations

import ctypes
import logging
from importlib.util import find_spec

import numpy as np
import pytest

from mmf_deploy.errors import EngineError

if find_spec("cuda") is None or find_spec("cuda.bindings") is None:
    pytest.skip("cuda-bindings is not installed", allow_module_level=True)

from cuda.bindings import runtime as real

from mmf_deploy.engines import cuda_runtime
from mmf_deploy.engines.cuda_runtime import CudaRuntime

RESULTS = {
    "cudaStreamCreateWithFlags": 7,
    "cudaGetDeviceCount": 1,
    "cudaGetDevice": 0,
    "cudaStreamEndCapture": "graph",
    "cudaGraphInstantiate": "executable",
    "cudaEventCreate": "event",
    "cudaEventElapsedTime": 1.25,
    "cudaDriverGetVersion": 13020,
    "cudaRuntimeGetVersion": 13050,
}


class Stand:
    """Stands for cuda.bindings.runtime; the call of number ``broken`` fails."""

    def __init__(self, broken: int | None = None) -> None:
        self.broken, self.calls, self.blocks = broken, [], []

    def __getattr__(self, name):
        value = getattr(real, name)
        if not name.startswith("cuda") or isinstance(value, int | type):
            return value
        if name == "cudaGetErrorString":
            return value

        def function(*args):
            self.calls.append(name)
            failed = len(self.calls) - 1 == self.broken
            code = real.cudaError_t.cudaErrorUnknown if failed else real.cudaError_t.cudaSuccess
            if name in ("cudaMalloc", "cudaMallocHost"):
                return code, None if failed else self.memory(*args)
            if name == "cudaGetDeviceProperties":
                return code, None if failed else properties()
            return (code, None if failed else RESULTS[name]) if name in RESULTS else (code,)

        return function

    def memory(self, size):
        block = ctypes.create_string_buffer(size)
        self.blocks.append(block)
        return ctypes.addressof(block)


def properties():
    found = real.cudaDeviceProp()
    found.name, found.major, found.minor = b"NVIDIA Stand".ljust(256, b"\0"), 9, 0
    return found


def use_everything():
    """Every call that the wrapper makes, once."""
    assert cuda_runtime.device_count() == 1
    cuda_runtime.device_facts()
    with CudaRuntime() as cuda:
        assert cuda.stream == 7
        array = cuda.pinned((2, 3), "float32")
        array[:] = 1
        address = cuda.allocate(array.nbytes)

        def work():
            cuda.upload(address, array)
            cuda.download(array, address)

        cuda.capture(lambda: cuda.timed(work))()
        cuda.synchronize()
        assert cuda.elapsed_ms() == 1.25


FREES = ["cudaGraphExecDestroy", "cudaEventDestroy", "cudaEventDestroy", "cudaFree",
         "cudaFreeHost", "cudaStreamDestroy"]  # fmt: skip


def test_everything_taken_is_given_back_last_first(monkeypatch):
    stand = Stand()
    monkeypatch.setattr(cuda_runtime, "cudart", stand)
    use_everything()
    assert [c for c in stand.calls if "Free" in c or "Destroy" in c] == ["cudaGraphDestroy", *FREES]


def every_call() -> list[str]:
    stand = Stand()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_runtime, "cudart", stand)
        use_everything()
    return stand.calls


@pytest.mark.parametrize(("number", "name"), list(enumerate(every_call())))
def test_no_return_code_is_ignored(number, name, monkeypatch, caplog):
    stand = Stand(broken=number)
    monkeypatch.setattr(cuda_runtime, "cudart", stand)
    if name in FREES:
        with caplog.at_level(logging.WARNING):
            use_everything()  # the rest is freed all the same
        assert "cudaErrorUnknown" in caplog.text
    else:
        with pytest.raises(EngineError, match=r"^CUDA cannot .*: unknown error \(cudaErrorUnk"):
            use_everything()
    taken = {"cudaMalloc": "cudaFree", "cudaMallocHost": "cudaFreeHost",
             "cudaStreamCreateWithFlags": "cudaStreamDestroy",
             "cudaEventCreate": "cudaEventDestroy",
             "cudaGraphInstantiate": "cudaGraphExecDestroy"}  # fmt: skip
    for take, free in taken.items():
        if take in stand.calls and name != take:
            assert free in stand.calls, free


def test_a_failure_during_a_capture_ends_the_capture_and_is_what_is_raised(monkeypatch):
    stand = Stand()
    monkeypatch.setattr(cuda_runtime, "cudart", stand)

    def work():
        raise ValueError("refused")

    with CudaRuntime() as cuda, pytest.raises(ValueError, match="refused"):
        cuda.capture(work)
    assert stand.calls[1:4] == [
        "cudaStreamBeginCapture",
        "cudaStreamEndCapture",
        "cudaGraphDestroy",
    ]
    stand.calls.clear()
    stand.broken = 2  # the end of the capture: an invalidated one has no graph
    with CudaRuntime() as cuda, pytest.raises(ValueError, match="refused"):
        cuda.capture(work)
    assert "cudaGraphDestroy" not in stand.calls


def test_events_stand_before_and_after_the_work_also_in_the_launches_of_a_graph(monkeypatch):
    stand, events = Stand(), iter(("begin", "end"))
    monkeypatch.setattr(cuda_runtime, "cudart", stand)
    journal = []
    stand.cudaEventCreate = lambda: (0, next(events))
    stand.cudaEventRecordWithFlags = lambda *given: (journal.append(given), (0,))[1]
    stand.cudaEventElapsedTime = lambda *between: (journal.append(between), (0, 0.5))[1]
    now, in_graph = real.cudaEventRecordDefault, real.cudaEventRecordExternal

    def work():
        journal.append("work")

    def fails():
        raise ValueError("refused")

    with CudaRuntime() as cuda:
        with pytest.raises(EngineError, match="nothing was timed"):
            cuda.elapsed_ms()
        with pytest.raises(ValueError, match="refused"):
            cuda.capture(fails)
        cuda.timed(work)
        assert journal == [("begin", 7, now), "work", ("end", 7, now)]
        journal.clear()
        cuda.capture(lambda: cuda.timed(work))
        assert journal == [("begin", 7, in_graph), "work", ("end", 7, in_graph)]
        assert cuda.elapsed_ms() == 0.5
        assert journal[-1] == ("begin", "end")


def test_capture_is_thread_local_and_the_stream_is_not_the_default_one(monkeypatch):
    stand, seen = Stand(), {}
    monkeypatch.setattr(cuda_runtime, "cudart", stand)
    stand.cudaStreamCreateWithFlags = lambda flags: (seen.update(flags=flags), (0, 7))[1]
    stand.cudaStreamBeginCapture = lambda stream, mode: (seen.update(mode=mode), (0,))[1]
    use_everything()
    assert seen["flags"] == real.cudaStreamNonBlocking
    assert seen["mode"] == real.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal


def test_facts_of_the_device_are_texts(monkeypatch):
    monkeypatch.setattr(cuda_runtime, "cudart", Stand())
    assert cuda_runtime.device_facts() == {
        "gpu": "NVIDIA Stand", "compute_capability": "9.0", "driver": "13.2", "runtime": "13.5",
    }  # fmt: skip


def test_without_a_driver_the_error_says_so():
    if real.cudaGetDeviceCount()[0] == real.cudaError_t.cudaSuccess:
        pytest.skip("this machine has a GPU")
    with pytest.raises(EngineError, match=r"CUDA cannot find a GPU: .* \(cudaError"):
        cuda_runtime.device_count()
    with pytest.raises(EngineError, match="CUDA cannot create a stream"), CudaRuntime():
        pass


@pytest.mark.gpu
def test_a_captured_graph_copies_what_lies_in_page_locked_memory_at_its_launch():
    with CudaRuntime() as cuda:
        source, target = cuda.pinned((4, 5), "float32"), cuda.pinned((4, 5), "float32")
        address = cuda.allocate(source.nbytes)

        def work():
            cuda.upload(address, source[:3])
            cuda.download(target[:3], address)

        work()
        cuda.synchronize()
        launch = cuda.capture(lambda: cuda.timed(work))
        for value in (1.0, 2.0):
            source[:], target[:] = value, 0
            launch()
            cuda.synchronize()
            assert 0 < cuda.elapsed_ms() < 1000
            np.testing.assert_array_equal(target[:3], value)
            np.testing.assert_array_equal(target[3:], 0)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["cudagraph", "eager"])
def test_the_real_engine_passes_its_selftest(mode, tmp_path):
    from mmf_deploy import bundle
    from mmf_deploy.embedded import digits_bundle
    from mmf_deploy.engines.base import EngineOptions, open_engine
    from mmf_deploy.selftest import run_selftest

    options = EngineOptions(mode=mode, cache=tmp_path)
    engine = open_engine("tensorrt", bundle.load(digits_bundle()), options=options)
    if reason := engine.unavailable(engine.options):
        pytest.skip(reason)
    with engine:
        found = run_selftest(engine)
    assert found.golden <= 1
    timed = [row for row in found.rows if row.median_ms is not None]
    assert all(0 < row.device_ms < row.median_ms for row in timed)

"""Why ONNX Runtime cannot use an NVIDIA GPU here, in one line, without creating a session."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import io
from pathlib import Path
from typing import Any

from mmf_deploy.engines.ort_cuda import CUDA, TENSORRT

INSTALL = 'pip install "mmf-deploy[gpu]"'
NVINFER = "libnvinfer.so.10"


def gpu_problem(index: int, tensorrt: bool) -> str | None:
    """What is missing; None if nothing is.

    Args:
        index: of the GPU.
        tensorrt: ask for the TensorRT provider as well.
    """
    try:
        ort: Any = importlib.import_module("onnxruntime")
    except ModuleNotFoundError:
        return f"ONNX Runtime is not installed: {INSTALL}"
    if CUDA not in ort.get_available_providers():
        return (
            "the onnxruntime installed is the one for CPUs only; replace it: "
            f"pip uninstall onnxruntime, then {INSTALL}"
        )
    return (
        _driver_problem(index)
        or _library_problem(ort, "libonnxruntime_providers_cuda.so")
        or (_tensorrt_problem(ort) if tensorrt else None)
    )


def _driver_problem(index: int) -> str | None:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        count = ctypes.c_int()
        code = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    except (OSError, AttributeError) as e:
        return f"no NVIDIA driver ({e})"
    if code or not count.value:
        return f"the NVIDIA driver finds no GPU (code {code})"
    if index >= count.value:
        return f"device 'cuda:{index}', but the last GPU is 'cuda:{count.value - 1}'"
    return None


def _library_problem(ort: Any, name: str) -> str | None:
    """The shared library that a provider misses, CUDA's own preloaded from Python packages."""
    said = io.StringIO()  # preload_dlls prints what it misses
    with contextlib.redirect_stdout(said):
        ort.preload_dlls()
    folder = Path(ort.__file__).parent / "capi"
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / name))
    except OSError as e:
        library, _, reason = str(e).partition(": ")
        return f"a library that ONNX Runtime needs does not load: {library} ({reason}); {INSTALL}"
    return None


def _tensorrt_problem(ort: Any) -> str | None:
    if TENSORRT not in ort.get_available_providers():
        return "this build of ONNX Runtime has no TensorRT provider"
    package = importlib.util.find_spec("tensorrt_libs")
    where = Path(package.origin).parent if package and package.origin else None
    for library in (NVINFER, "libnvonnxparser.so.10"):
        with contextlib.suppress(OSError):  # the linker's own places are tried below
            ctypes.CDLL(str(where / library) if where else library, ctypes.RTLD_GLOBAL)
    problem = _library_problem(ort, "libonnxruntime_providers_tensorrt.so")
    if problem and NVINFER in problem:
        return f"mode 'tensorrt' needs TensorRT 10 ({NVINFER}); TensorRT 11 is --engine tensorrt"
    return problem

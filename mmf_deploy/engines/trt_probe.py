"""Why TensorRT cannot run here, in one line, without ever raising."""

from __future__ import annotations

import importlib

INSTALL = 'pip install "mmf-deploy[tensorrt]"'
OLDEST = 11


def cuda_problem() -> str | None:
    """What is missing of the CUDA runtime, the driver or the GPU; None if nothing is."""
    try:
        runtime = importlib.import_module("mmf_deploy.engines.cuda_runtime")
    except ModuleNotFoundError:
        return f"the package cuda-bindings is not installed: {INSTALL}"
    except Exception as e:
        return f"the CUDA runtime cannot be loaded: {_line(e)}"
    try:
        count = int(runtime.device_count())
    except Exception as e:
        return _line(e)
    return None if count > 0 else "the driver finds no NVIDIA GPU"


def tensorrt_problem() -> str | None:
    """What is missing of TensorRT; None if nothing is."""
    try:
        version = str(importlib.import_module("tensorrt").__version__)
    except ModuleNotFoundError:
        return f"the package tensorrt-cu13 is not installed: {INSTALL}"
    except Exception as e:  # a library that is missing, or of another version
        return f"TensorRT's libraries cannot be loaded ({_line(e)}): {INSTALL}"
    major = version.partition(".")[0]
    if not major.isdecimal() or int(major) < OLDEST:
        return f"TensorRT {version} is installed, {OLDEST} or later is needed: {INSTALL}"
    return None


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__

"""What a result says of the GPU it was measured on: asked of the driver, without torch."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

DRIVER = Path("/proc/driver/nvidia/version")
MAJOR, MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and …_MINOR."""
LONGEST_NAME = 256


def gpu_facts(index: int) -> dict[str, str]:
    """gpu, compute_capability and driver, as far as they are known; none of it ever raises.

    Args:
        index: of the GPU.
    """
    facts = {} if (version := driver_version()) is None else {"driver": version}
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
        device, name = ctypes.c_int(), ctypes.create_string_buffer(LONGEST_NAME)
        code = (
            cuda.cuInit(0)
            or cuda.cuDeviceGet(ctypes.byref(device), index)
            or cuda.cuDeviceGetName(name, LONGEST_NAME, device)
        )
        numbers = [ctypes.c_int(), ctypes.c_int()]
        for number, attribute in zip(numbers, (MAJOR, MINOR), strict=True):
            code = code or cuda.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
    except (OSError, AttributeError):
        return facts
    if code:
        return facts
    capability = ".".join(str(number.value) for number in numbers)
    return {
        "gpu": name.value.decode(errors="replace"),
        "compute_capability": capability,
        **facts,
    }


def driver_version() -> str | None:
    """Of the NVIDIA driver, for example 570.86.10; None where there is none."""
    try:
        found = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", DRIVER.read_text())
    except OSError:
        return None
    return found.group(1) if found else None

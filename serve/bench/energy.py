"""Energy, where the platform tells: joules that the processor or the GPU has taken so far.

The processor's counter (RAPL, through Linux' powercap) is of whole sockets: everything that runs
beside the benchmark counts. It is often readable by root alone, and absent in virtual machines.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
Meter = Callable[[], float]
"""Joules since some moment; differences count."""


def meter(device: str, root: Path = POWERCAP) -> Meter | None:
    """The meter of "cpu" or "cuda", or None where nothing tells."""
    return _nvml(int(device.partition(":")[2] or 0)) if device.startswith("cuda") else _rapl(root)


def _rapl(root: Path) -> Meter | None:
    counters = [Counter(zone) for zone in sorted(root.glob("*-rapl:*")) if zone.name.count(":") < 2]
    try:
        for counter in counters:
            counter.joules()
    except (OSError, ValueError):
        return None
    return (lambda: sum(c.joules() for c in counters)) if counters else None


class Counter:
    """One socket's counter, which starts again at zero now and then."""

    def __init__(self, zone: Path) -> None:
        self._file = zone / "energy_uj"
        self._range_file = zone / "max_energy_range_uj"
        self._last: int | None = None
        self._base = 0

    def joules(self) -> float:
        """Monotonic, if it is read more often than it overflows."""
        now = int(self._file.read_text())
        if self._last is not None and now < self._last:
            self._base += int(self._range_file.read_text())
        self._last = now
        return (self._base + now) / 1e6


def _nvml(index: int) -> Meter | None:
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # absent, or a GPU without a counter: nothing tells
        return None
    return lambda: float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3

"""The rate at which memory is read, and how much of it the caches keep."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mmf_deploy.errors import require

STREAM_BYTES = 256 << 20
CPUS = Path("/sys/devices/system/cpu")


class Stream:
    """Reads memory much larger than the caches; on a GPU copies it from one place to another.

    Args:
        size: of the array in bytes; if None, four times the last-level cache or 256 MB.

    Attributes:
        bytes: of one run; on a GPU those read and those written.
        library: what runs it.
    """

    def __init__(self, threads: int, device: str = "cpu", size: int | None = None) -> None:
        self.threads, self.device = threads, device
        size = size or max(STREAM_BYTES, 4 * (cache_bytes(device) or 0))
        self._part = math.ceil(size / (4 * threads))
        self.bytes = 4 * threads * self._part if device == "cpu" else 2 * size
        self.library = "numpy" if device == "cpu" else "torch"
        self.largest: int | None = None

    def open(self) -> None:
        """Allocate and fill the memory, each part by the thread that will read it."""
        if self.device != "cpu":
            torch = require("torch", "train")
            self._from = torch.zeros(self.bytes // 2, dtype=torch.uint8, device=self.device)
            self._to, self._wait = torch.empty_like(self._from), torch.cuda.synchronize
            return
        self._pool = ThreadPoolExecutor(self.threads)
        begins = range(0, self.threads * self._part, self._part)
        self._arrays = list(self._pool.map(self._filled, begins))

    def _filled(self, begin: int) -> np.ndarray[Any, np.dtype[np.int32]]:
        return np.arange(begin, begin + self._part, dtype=np.int32)

    def run(self) -> None:
        """Read it all once: the largest value, since comparing takes less time than fetching."""
        if self.device != "cpu":
            self._to.copy_(self._from)
            self._wait()
            return
        self.largest = max(self._pool.map(lambda part: int(part.max()), self._arrays))

    def close(self) -> None:
        """Free it."""
        if self.device == "cpu":
            self._pool.shutdown()
        self._arrays = []
        self._from = self._to = None


def cache_bytes(device: str = "cpu", cpus: Path = CPUS) -> int | None:
    """What the last-level caches of the processor hold together; None if it does not say.

    Caches that cores share count once; on a GPU it is the second level.
    """
    if device != "cpu":
        properties = require("torch", "train").cuda.get_device_properties(device)
        return int(properties.L2_cache_size)
    last: dict[str, tuple[int, int]] = {}
    for index in cpus.glob("cpu[0-9]*/cache/index*"):
        try:
            level = int((index / "level").read_text())
            text = (index / "size").read_text().strip()
            shared = (index / "shared_cpu_list").read_text().strip()
        except (OSError, ValueError):
            continue
        size = int(text.rstrip("KMG")) << {"K": 10, "M": 20, "G": 30}.get(text[-1:], 0)
        last[shared] = max(last.get(shared, (0, 0)), (level, size))
    deepest = max((level for level, _ in last.values()), default=0)
    return sum(size for level, size in last.values() if level == deepest) or None

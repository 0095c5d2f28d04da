"""What a run says while it goes on: a status line, log.jsonl and TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .run_directory import RunDirectory

TIME_BINS = 4


def by_time(squared_error: Tensor, t: Tensor) -> dict[str, float]:
    """Mean unweighted loss of the samples in each quarter of t; bins without samples are absent.

    Args:
        squared_error, t: [B].
    """
    found = {}
    bins = (t * TIME_BINS).long().clamp(max=TIME_BINS - 1)
    for k in range(TIME_BINS):
        inside = squared_error[bins == k]
        if len(inside):
            low, high = k / TIME_BINS, (k + 1) / TIME_BINS
            found[f"t {low:.2f}-{high:.2f}"] = float(inside.mean())
    return found


class Telemetry:
    """Writes records; only the first process of a run has one.

    Args:
        tensorboard: also write event files into the run's ``tensorboard`` folder.
    """

    def __init__(self, directory: RunDirectory, tensorboard: bool, start: int) -> None:
        self._directory = directory
        self._writer: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            # what a killed run wrote after its last checkpoint will come again
            self._writer = SummaryWriter(str(directory.tensorboard), purge_step=start + 1)

    def record(self, step: int, scalars: Mapping[str, float], bins: Mapping[str, float]) -> None:
        """One line of the log, one point of every curve."""
        self._directory.log({"step": step, **scalars, "by_time": dict(bins)})
        if self._writer is None:
            return
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
        for name, value in bins.items():
            self._writer.add_scalar(f"squared_error/{name}", value, step)

    def grid(self, step: int, path: Path) -> None:
        """A grid of samples that was drawn."""
        if self._writer is None:
            return
        from PIL import Image

        with Image.open(path) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB")))
        self._writer.add_image("samples", pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Flush."""
        if self._writer is not None:
            self._writer.close()

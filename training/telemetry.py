"""What a run says while it goes on: a status line, log.jsonl, TensorBoard and sample grids."""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from mmf_deploy.progress import TaskProgress

from .config import TrainConfig
from .learner import Gradients, Learner
from .previews import draw_grid
from .recovery import Recovery
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
    """The reports of a run; only its first process has one.

    Args:
        start: the step that this session begins with.
    """

    def __init__(self, config: TrainConfig, directory: RunDirectory, start: int) -> None:
        self._config, self._directory = config, directory
        self._progress = TaskProgress("steps", config.loop.steps, start)
        self._writer: Any = None
        self._open_writer(start)

    def __enter__(self) -> Self:
        self._progress.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.__exit__(kind, value, trace)
        if self._writer is not None:
            self._writer.close()

    def _open_writer(self, start: int) -> None:
        if self._writer is not None:
            self._writer.close()
        if not self._config.loop.tensorboard:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError:
            print("note: tensorboard is not installed; log.jsonl has the same numbers")
            return
        # what was written after the checkpoint that a run goes on from will come again
        self._writer = SummaryWriter(str(self._directory.tensorboard), purge_step=start + 1)

    def rewind(self, step: int) -> None:
        """The run goes back to a step: what was reported after it is taken back."""
        self._directory.rewind_log(step)
        self._open_writer(step)

    def report(
        self, done: int, found: Gradients, loss: float, squared_error: float, lr: float,
        recovery: Recovery,
    ) -> None:  # fmt: skip
        """The numbers of a step.

        Args:
            done: steps done.
            loss, squared_error: means over all processes.
        """
        lam = self._config.objective.lam_at(done - 1)
        speed = self._progress.per_second(done) * self._config.loop.batch_size
        skipped = f"  {recovery.skipped} skipped" if recovery.skipped else ""
        status = f"loss {loss:.4f}  λ {lam:.2f}  {speed:,.0f} images/s{skipped}"
        self._progress.show("training", done, status)
        scalars = {
            "loss": loss,
            "squared_error": squared_error,
            "lam": lam,
            "gradient_norm": found.norm,
            "lr": lr,
            "skipped": recovery.skipped,
            "images_per_s": round(speed, 1),
            "peak_memory_gb": round(_peak_memory_gb(), 2),
        }
        bins = by_time(found.squared_error, found.t)
        self._directory.log({"step": done, **_finite(scalars), "by_time": _finite(bins)})
        for name, value in {
            **scalars,
            **{f"squared_error/{k}": v for k, v in bins.items()},
        }.items():
            if self._writer is not None and math.isfinite(value):
                self._writer.add_scalar(name, value, done)

    def draw(self, done: int, learner: Learner) -> None:
        """A grid of samples, where samples are images."""
        if not learner.spec.is_image:
            return
        path = self._directory.path / "samples" / f"step-{done:08d}.png"
        draw_grid(path, learner.net, learner.emas, learner.spec)
        if self._writer is not None:
            self._writer.add_image("samples", _pixels(path), done, dataformats="HWC")


def _peak_memory_gb() -> float:
    """Of the GPU where there is one in use, else of this process."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return torch.cuda.max_memory_allocated() / 1e9
    # kibibytes on Linux, bytes on macOS
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def _finite(numbers: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no word for what is not a number."""
    return {k: v if math.isfinite(v) else None for k, v in numbers.items()}


def _pixels(path: Path) -> Tensor:
    from PIL import Image

    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB")))

"""Everything random in one step, drawn for the whole batch at once.

Every process and every part of an accumulated batch draws all of it and takes its own
rows, so how a batch is split changes nothing but the order of a sum. Dropout is the
exception: each part draws its own masks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .data.augment import AugmentConfig, AugmentParameters
from .data.augment import draw as draw_augmentation
from .objective_config import Objective
from .time_pairs import TimePairs


@dataclass(frozen=True)
class Draws:
    """Random numbers of the samples of a step.

    Attributes:
        x1: noise, float32 [B, …].
        times: r, t [B]; those with r ≠ t first.
        dropped: whose label is replaced by the null label, bool [B], or None.
        omega: guidance scale, float32 [B], or None.
        augment: parameters of the augmentation, or None.
    """

    x1: Tensor
    times: TimePairs
    dropped: Tensor | None = None
    omega: Tensor | None = None
    augment: AugmentParameters | None = None

    def part(self, index: int, count: int) -> Draws:
        """The draws of every ``count``-th sample from ``index`` on."""
        rows = slice(index, None, count)
        return Draws(
            x1=self.x1[rows],
            times=self.times.part(index, count),
            dropped=None if self.dropped is None else self.dropped[rows],
            omega=None if self.omega is None else self.omega[rows],
            augment=None if self.augment is None else self.augment[rows],
        )


def draw_step(
    objective: Objective,
    augment: AugmentConfig | None,
    shape: tuple[int, ...],
    step: int,
    device: torch.device,
) -> Draws:
    """Draw a step from the global random generator.

    Args:
        shape: (B, …) of the whole batch.
    """
    x1 = torch.randn(shape, device=device)
    times = objective.draw_times(shape[0], device, step)
    dropped, omega = objective.guidance.draw(shape[0], device)
    parameters = draw_augmentation(augment, shape[0]) if augment else None
    return Draws(x1, times, dropped, omega, parameters)

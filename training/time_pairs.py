"""How the times r <= t of a batch are drawn.

The samples with r ≠ t come first and their number is fixed, so that the derivative of
u, which only they need, runs on a sub-batch of constant size.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor


class TimePairs(NamedTuple):
    """Times of one batch.

    Attributes:
        r, t: float32 [B], 0 <= r <= t <= 1.
        gaps: the first ``gaps`` samples may have r < t; all others have r = t.
    """

    r: Tensor
    t: Tensor
    gaps: int

    def part(self, index: int, count: int) -> TimePairs:
        """Every ``count``-th sample from ``index`` on; those with r ≠ t still come first."""
        gaps = len(range(index, self.gaps, count))
        return TimePairs(self.r[index::count], self.t[index::count], gaps)


class TimePairsConfig(BaseModel):
    """``objective.time_pairs`` of a recipe.

    Attributes:
        type: ``logit_normal``: t and r independent, r := min(r, t);
            ``sorted_logit_normal``: two draws of t's law, the smaller one is r;
            ``uniform``: two uniform draws, sorted.
        gap_fraction: share of samples with r ≠ t.
        t_mean, t_std, r_mean, r_std: of the normal before the sigmoid.
        min_gap: smallest t − r of a sample with r ≠ t; r is moved down (and t up, at 0).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["logit_normal", "sorted_logit_normal", "uniform"] = "logit_normal"
    gap_fraction: float = Field(0.75, ge=0.0, le=1.0)
    t_mean: float = -0.6
    t_std: float = Field(1.6, gt=0.0)
    r_mean: float = -4.0
    r_std: float = Field(1.6, gt=0.0)
    min_gap: float = Field(0.0, ge=0.0, lt=1.0)


def draw(config: TimePairsConfig, batch: int, device: torch.device | str = "cpu") -> TimePairs:
    """Draw the times of one batch from the global random generator."""
    gaps = round(config.gap_fraction * batch)
    a, b = torch.randn(2, batch, device=device)
    if config.type == "uniform":
        first, second = torch.special.ndtr(a), torch.special.ndtr(b)
        t, r = torch.maximum(first, second), torch.minimum(first, second)
    elif config.type == "sorted_logit_normal":
        first = torch.sigmoid(a * config.t_std + config.t_mean)
        second = torch.sigmoid(b * config.t_std + config.t_mean)
        t, r = torch.maximum(first, second), torch.minimum(first, second)
    else:
        t = torch.sigmoid(a * config.t_std + config.t_mean)
        r = torch.minimum(torch.sigmoid(b * config.r_std + config.r_mean), t)
    if config.min_gap:
        t = torch.cat([t[:gaps].clamp(min=config.min_gap), t[gaps:]])
        r = torch.minimum(r, (t - config.min_gap).clamp(min=0.0))
    r = torch.cat([r[:gaps], t[gaps:]])
    return TimePairs(r, t, gaps)

"""Time levels of the discrete consistency model, the baseline with r = 0 throughout."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from .schedules import curriculum


class ConsistencyConfig(BaseModel):
    """``objective.consistency``: the number of uniform time levels.

    It grows geometrically from ``first_levels`` to ``last_levels`` over the objective's
    ``warmup_steps``: few levels give a low variance early, many a small bias late.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    first_levels: int = Field(10, ge=2)
    last_levels: int = Field(160, ge=2)

    def levels_at(self, step: int, warmup_steps: int) -> int:
        """Number of levels of a step."""
        growth = (self.last_levels / self.first_levels) ** curriculum(step, warmup_steps)
        return round(self.first_levels * float(growth))


def snap(t: Tensor, levels: int) -> Tensor:
    """The level at or after t, in {1/N, 2/N, …, 1}; any shape."""
    return (t * levels).ceil().clamp(1, levels) / levels


def previous_time(t: Tensor, levels: float | Tensor) -> Tensor:
    """The level before a level t."""
    return (t - 1.0 / levels).clamp(min=0.0)

"""``objective:`` of a recipe: the parts by name, and the named objectives."""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from mmf_deploy.errors import ConfigError, nearest

from .consistency import ConsistencyConfig, snap
from .guidance import GuidanceConfig
from .schedules import curriculum
from .time_pairs import TimePairs, TimePairsConfig, draw

# What each named objective changes in the default parts.
OBJECTIVES: dict[str, dict[str, Any]] = {
    "mmf": {},
    "mmf-lambda0": {"lam": 0.0},
    "mmf-lambda0.5": {"lam": 0.5},
    "mmf-lambda1": {"lam": 1.0},
    "meanflow": {"tangent": "conditional", "lam": 0.0},
    "meanflow-full": {"tangent": "conditional", "lam": 1.0},
    "consistency": {
        "identity": "consistency",
        "lam": 0.0,
        "guidance": {"mode": "off"},
    },
    "flow-matching": {"lam": 0.0, "time_pairs": {"gap_fraction": 0.0}},
    "paper-literal": {
        "path": "interval",
        "target": "displacement",
        "tangent": "conditional",
        "weighting": {"power": 0.0},
        "time_pairs": {"type": "uniform", "gap_fraction": 1.0, "min_gap": 0.05},
    },
}

_DISPLACEMENT = (
    "objective.target 'displacement' regresses (x1 − x0)/(t − r), as Eq. 11 prints it: not the "
    "velocity of any path, and of unbounded variance as t → r"
)
_COLLAPSE = (
    "objective.tangent 'conditional' with λ > 0 rewards a map that shrinks towards the mean; "
    "samples collapse. The tangent 'model' does not"
)
_INTERVAL = (
    "objective.path 'interval' makes another flow of every r: Eq. 6 and sampling in several "
    "steps do not hold"
)

_NOT_FLOW_MATCHING = (
    "objective.name 'flow-matching' with objective.time_pairs.gap_fraction above 0 is not flow "
    "matching: there r ≠ t"
)


class Weighting(BaseModel):
    """Per-sample weight 1/(‖·‖² + eps)^power, with stopped gradient; power 0 is none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    power: float = Field(0.75, ge=0.0)
    eps: float = Field(1e-3, gt=0.0)

    def __call__(self, squared_error: Tensor) -> Tensor:
        """Weights [B] of squared errors [B]."""
        return (squared_error.detach() + self.eps).pow(-self.power)


class Objective(BaseModel):
    """``objective:`` of a recipe: the parts, by name.

    Attributes:
        name: an entry of ``OBJECTIVES``; gives every part that is not set beside it.
        identity: ``meanflow`` (Eq. 4), or ``consistency``: the discrete baseline.
        lam: "curriculum" (Eq. 12) or a constant in [0, 1].
        warmup_steps: T_warmup of the curriculum, in optimiser steps.
        derivative: ``auto`` is the fastest that passes a gradient check when a run starts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "mmf"
    identity: Literal["meanflow", "consistency"] = "meanflow"
    path: Literal["linear", "interval"] = "linear"
    target: Literal["velocity", "displacement"] = "velocity"
    tangent: Literal["model", "conditional", "average", "ema"] = "model"
    lam: Literal["curriculum"] | float = "curriculum"
    warmup_steps: int = Field(100_000, ge=0)
    derivative: Literal["auto", "jvp", "finite_difference"] = "auto"
    time_pairs: TimePairsConfig = TimePairsConfig()
    weighting: Weighting = Weighting()
    guidance: GuidanceConfig = GuidanceConfig()
    consistency: ConsistencyConfig = ConsistencyConfig()

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, given: Any) -> Any:
        """What is written wins over what the name presets, and that over the defaults."""
        if isinstance(given, cls):
            return given
        given = given if isinstance(given, dict) else {"name": given}
        name = given.get("name", "mmf")
        if not isinstance(name, str) or name not in OBJECTIVES:
            raise ConfigError(
                f"objective.name {name!r}{nearest(str(name), OBJECTIVES)}; "
                f"there are {', '.join(OBJECTIVES)}"
            )
        merged = {**OBJECTIVES[name], **given}
        for section in merged.keys() & OBJECTIVES[name].keys():
            preset, written = OBJECTIVES[name][section], merged[section]
            if isinstance(preset, dict) and isinstance(written, dict):
                merged[section] = {**preset, **written}
        return merged

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.lam != "curriculum" and not 0.0 <= self.lam <= 1.0:
            raise ConfigError(f"objective.lam = {self.lam}: expected 'curriculum' or 0 … 1")
        if self.target == "displacement" and self.time_pairs.min_gap <= 0:
            raise ConfigError(
                "objective.target 'displacement' has infinite variance as t → r; "
                "set objective.time_pairs.min_gap above 0, or use target 'velocity'"
            )
        if self.identity == "consistency" and self.guidance.on:
            raise ConfigError(
                "objective.guidance moves the instantaneous velocity, which the consistency "
                "objective does not train; use another objective, or guidance.mode=off"
            )
        return self

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is known to go wrong with these parts, a line each."""
        found = []
        if self.target == "displacement":
            found.append(_DISPLACEMENT)
        if self.identity == "meanflow" and self.tangent == "conditional" and self.lam != 0.0:
            found.append(_COLLAPSE)
        if self.path == "interval":
            found.append(_INTERVAL)
        if self.name == "flow-matching" and self.time_pairs.gap_fraction > 0:
            found.append(_NOT_FLOW_MATCHING)
        return tuple(found)

    @property
    def differentiates(self) -> bool:
        """True when a step computes du/dt."""
        return self.identity == "meanflow" and self.time_pairs.gap_fraction > 0

    def lam_at(self, step: int) -> float:
        """λ of a step."""
        if self.lam == "curriculum":
            return curriculum(step, self.warmup_steps)
        return float(self.lam)

    def levels_at(self, step: int) -> int:
        """Time levels of a step; 0 where the identity has none."""
        if self.identity != "consistency":
            return 0
        return self.consistency.levels_at(step, self.warmup_steps)

    def draw_times(self, batch: int, device: torch.device | str, step: int) -> TimePairs:
        """The times of one batch, from the global random generator."""
        times = draw(self.time_pairs, batch, device)
        if self.identity != "consistency":
            return times
        t = snap(times.t, self.levels_at(step))
        return TimePairs(torch.zeros_like(t), t, batch)

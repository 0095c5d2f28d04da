"""The modular MeanFlow objective.

A network u(x, r, t) is the average velocity of a flow when u + (t − r) du/dt equals its
instantaneous velocity v (Eq. 4). The loss is the squared residual of that identity with
gradient modulation SG_λ on the derivative (Eq. 10, 11):

    L_λ = E ‖u + (t − r) SG_λ[du/dt] − v‖²,   du/dt = ∂_t u + ∇_x u · w,
    SG_λ[z] = λ z + (1 − λ) stopgrad(z).

Everything in it is a named part: the path, the target v, the tangent w, λ, the
derivative, the time pairs, the weighting. The default is what trains a generator;
printed variants of the paper are other values of the same parts (docs/objective.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from mmf_deploy.errors import ConfigError, ShapeError, nearest
from mmf_deploy.nn.dropout import Rows, SharedMasks, shared_masks

from .derivative import DERIVATIVES
from .derivative import Field as VelocityField
from .paths import PATHS, per_sample
from .schedules import curriculum
from .time_pairs import TimePairs, TimePairsConfig, draw

Net = Callable[..., Tensor]
Condition = Mapping[str, Tensor]
"""Further inputs of the network by name (label, augment, …), [B, …] each."""


@dataclass(frozen=True)
class LossTerms:
    """What a step needs to know of its loss.

    Attributes:
        loss: weighted loss per sample, [B]; the loop takes the mean.
        squared_error: the unweighted ‖·‖² per sample, summed over elements, [B], detached.
        lam: λ of this step.
    """

    loss: Tensor
    squared_error: Tensor
    lam: float


class Weighting(BaseModel):
    """Per-sample weight 1/(‖·‖² + eps)^power, with stopped gradient; power 0 is none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    power: float = Field(0.75, ge=0.0)
    eps: float = Field(1e-3, gt=0.0)

    def __call__(self, squared_error: Tensor) -> Tensor:
        """Weights [B] of squared errors [B]."""
        return (squared_error.detach() + self.eps).pow(-self.power)


# The target v (Eq. 4); "displacement" is the paper's (x1 − x0)/(t − r), whose variance is
# infinite as t → r, so it is allowed only with a minimal gap.
def velocity_target(path: str, x0: Tensor, x1: Tensor, r: Tensor, t: Tensor) -> Tensor:
    """dx_t/dt of the chosen path."""
    return PATHS[path].velocity(x0, x1, r, t)


def displacement_target(path: str, x0: Tensor, x1: Tensor, r: Tensor, t: Tensor) -> Tensor:
    """(x1 − x0)/(t − r), as Eq. 9 and 11 print it; x1 − x0 where r = t."""
    gap = torch.where(t > r, t - r, torch.ones_like(t))
    return (x1 - x0) / per_sample(gap, x0)


TARGETS = {"velocity": velocity_target, "displacement": displacement_target}


# The tangent w: the direction in x of the total derivative, never differentiated.
def model_tangent(
    u: VelocityField, x: Tensor, r: Tensor, t: Tensor, target: Tensor, rows: Rows
) -> Tensor:
    """u(x_t, t, t): the model's own instantaneous velocity (Eq. 5 with Eq. 7).

    It depends on x_t alone. That is what keeps λ > 0 from rewarding a shrunken map.
    """
    return u(x, t, t, rows)


def conditional_tangent(
    u: VelocityField, x: Tensor, r: Tensor, t: Tensor, target: Tensor, rows: Rows
) -> Tensor:
    """The velocity of this very pair (x0, x1): the original MeanFlow. Collapses for λ > 0."""
    return target


def average_tangent(
    u: VelocityField, x: Tensor, r: Tensor, t: Tensor, target: Tensor, rows: Rows
) -> Tensor:
    """u(x_t, r, t), as Eq. 9 prints it."""
    return u(x, r, t, rows)


TANGENTS = {
    "model": model_tangent,
    "conditional": conditional_tangent,
    "average": average_tangent,
}


def stop_gradient(z: Tensor, lam: float) -> Tensor:
    """SG_λ[z] of Eq. 10: the value of z, λ times its gradient."""
    return z.detach() + lam * (z - z.detach()) if lam else z.detach()


# The named objectives: what each changes in the default parts.
OBJECTIVES: dict[str, dict[str, Any]] = {
    "mmf": {},
    "mmf-lambda0": {"lam": 0.0},
    "mmf-lambda0.5": {"lam": 0.5},
    "mmf-lambda1": {"lam": 1.0},
    "meanflow": {"tangent": "conditional", "lam": 0.0},
    "meanflow-full": {"tangent": "conditional", "lam": 1.0},
    "flow-matching": {"lam": 0.0, "time_pairs": {"gap_fraction": 0.0}},
}


class Objective(BaseModel):
    """``objective:`` of a recipe: the parts, by name.

    Attributes:
        name: an entry of ``OBJECTIVES``; gives every part that is not set beside it.
        lam: "curriculum" (Eq. 12) or a constant in [0, 1].
        warmup_steps: T_warmup of the curriculum, in optimiser steps.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "mmf"
    path: Literal["linear", "interval"] = "linear"
    target: Literal["velocity", "displacement"] = "velocity"
    tangent: Literal["model", "conditional", "average"] = "model"
    lam: Literal["curriculum"] | float = "curriculum"
    warmup_steps: int = Field(100_000, ge=0)
    derivative: Literal["jvp", "finite_difference"] = "finite_difference"
    time_pairs: TimePairsConfig = TimePairsConfig()
    weighting: Weighting = Weighting()

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
        return self

    def lam_at(self, step: int) -> float:
        """λ of a step."""
        if self.lam == "curriculum":
            return curriculum(step, self.warmup_steps)
        return float(self.lam)

    def __call__(self, net: Net, x0: Tensor, condition: Condition, step: int) -> LossTerms:
        """The loss of one batch, with noise and times from the global random generator.

        Args:
            net: u(x, r, t, **condition).
            x0: data, float32 [B, …].
            condition: further inputs of the network.
            step: the optimiser step, for λ.
        """
        x1 = torch.randn_like(x0)
        times = draw(self.time_pairs, len(x0), x0.device)
        return modular_meanflow(net, x0, x1, times, self.lam_at(step), self, condition)


def modular_meanflow(
    net: Net,
    x0: Tensor,
    x1: Tensor,
    times: TimePairs,
    lam: float,
    parts: Objective,
    condition: Condition | None = None,
) -> LossTerms:
    """Modular MeanFlow loss, Eq. 11 with the target of Eq. 4 (docs/objective.md).

    Args:
        net: u(x, r, t, **condition).
        x0: data; x1: noise; float32 [B, …].
        times: r, t float32 [B], those with r ≠ t first.
        lam: gradient modulation in [0, 1] (Eq. 10).
        parts: path, target, tangent, derivative and weighting.
        condition: further inputs of the network, [B, …] each.
    Raises:
        ShapeError: the batch sizes differ.
    """
    if x0.shape != x1.shape or times.t.shape != x0.shape[:1] or times.r.shape != x0.shape[:1]:
        raise ShapeError(
            f"x0 {list(x0.shape)}, x1 {list(x1.shape)}, r {list(times.r.shape)}, "
            f"t {list(times.t.shape)}: expected x0 and x1 alike and one r and t a sample"
        )
    r, t, _ = times
    x = PATHS[parts.path].point(x0, x1, r, t)
    target = TARGETS[parts.target](parts.path, x0, x1, r, t)
    with shared_masks(len(x)) as masks:
        u = _bind(net, condition or {}, masks)
        predicted = _velocity(u, x, times, target, lam, parts)
    squared_error = (predicted - target).square().flatten(1).sum(1)
    loss = parts.weighting(squared_error) * squared_error
    return LossTerms(loss=loss, squared_error=squared_error.detach(), lam=lam)


def _bind(net: Net, condition: Condition, masks: SharedMasks) -> VelocityField:
    def u(x: Tensor, r: Tensor, t: Tensor, rows: Rows) -> Tensor:
        masks.rows = rows
        return net(x, r, t, **{name: value[rows] for name, value in condition.items()})

    return u


def _velocity(
    u: VelocityField, x: Tensor, times: TimePairs, target: Tensor, lam: float, parts: Objective
) -> Tensor:
    """u + (t − r) SG_λ[du/dt], Eq. 4 with Eq. 10; the second term only where r ≠ t (Eq. 7)."""
    r, t, gaps = times
    if not gaps:
        return u(x, t, t, slice(None))
    head = slice(0, gaps)
    with torch.no_grad():
        tangent = TANGENTS[parts.tangent](u, x[head], r[head], t[head], target[head], head)
    value, dudt = DERIVATIVES[parts.derivative](u, x, r, t, tangent, lam > 0)
    correction = per_sample((t - r)[head], x) * stop_gradient(dudt, lam)
    return torch.cat([value[head] + correction, value[gaps:]])

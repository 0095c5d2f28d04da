"""The modular MeanFlow objective.

A network u(x, r, t) is the average velocity of a flow when u + (t − r) du/dt equals its
instantaneous velocity v (Eq. 4). The loss is the squared residual of that identity with
gradient modulation SG_λ on the derivative (Eq. 10, 11):

    L_λ = E ‖u + (t − r) SG_λ[du/dt] − v‖²,   du/dt = ∂_t u + ∇_x u · w,
    SG_λ[z] = λ z + (1 − λ) stopgrad(z).

Everything in it is a named part: the path, the target v, the tangent w, λ, the
derivative, the time pairs, the weighting, the guidance. ``objective_config.py`` has the
defaults and the named objectives; docs/objective.md says what each mode does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmf_deploy.errors import ShapeError
from mmf_deploy.nn.dropout import Rows, SharedMasks, shared_masks

from .consistency import previous_time
from .derivative import DERIVATIVES
from .derivative import Field as VelocityField
from .guidance import guided_velocity
from .paths import PATHS, Path, TrajectoryPath, per_sample
from .time_pairs import TimePairs

if TYPE_CHECKING:
    from .objective_config import Objective

Net = Callable[..., Tensor]
Condition = Mapping[str, Tensor]
"""Further inputs of the network by name (label, guidance, augment), [B, …] each."""
EVERY = slice(None)


@dataclass(frozen=True)
class LossTerms:
    """What a step needs to know of its loss.

    Attributes:
        loss: weighted loss per sample, [B]; the loop takes the mean.
        squared_error: the unweighted ‖·‖² per sample, summed over elements, [B], detached.
    """

    loss: Tensor
    squared_error: Tensor


@dataclass(frozen=True)
class Point:
    """Where on the path a batch is evaluated, and what is known there.

    Attributes:
        x: x_t, float32 [B, …].
        times: r and t [B], those with r ≠ t first.
        target: the velocity v to regress, float32 [B, …].
        own: the model's instantaneous velocity u(x_t, t, t), if guidance needed it already.
    """

    x: Tensor
    times: TimePairs
    target: Tensor
    own: Tensor | None = None


# The target v (Eq. 4); "displacement" is the paper's (x1 − x0)/(t − r), whose variance is
# infinite as t → r, so it is allowed only with a minimal gap.
def velocity_target(path: Path, x0: Tensor, x1: Tensor, r: Tensor, t: Tensor) -> Tensor:
    """dx_t/dt of the chosen path."""
    return path.velocity(x0, x1, r, t)


def displacement_target(path: Path, x0: Tensor, x1: Tensor, r: Tensor, t: Tensor) -> Tensor:
    """(x1 − x0)/(t − r), as Eq. 9 and 11 print it; x1 − x0 where r = t."""
    gap = torch.where(t > r, t - r, torch.ones_like(t))
    return (x1 - x0) / per_sample(gap, x0)


TARGETS = {"velocity": velocity_target, "displacement": displacement_target}


# The tangent w: the direction in x of the total derivative, never differentiated.
def model_tangent(u: VelocityField, averaged: VelocityField, at: Point, rows: Rows) -> Tensor:
    """u(x_t, t, t): the model's own instantaneous velocity (Eq. 5 with Eq. 7).

    It depends on x_t alone. That is what keeps λ > 0 from rewarding a shrunken map.
    """
    if at.own is not None:
        return at.own[rows]
    return u(at.x[rows], at.times.t[rows], at.times.t[rows], rows)


def ema_tangent(u: VelocityField, averaged: VelocityField, at: Point, rows: Rows) -> Tensor:
    """u(x_t, t, t) of the averaged network: the same, less noisy and a little late."""
    return averaged(at.x[rows], at.times.t[rows], at.times.t[rows], rows)


def conditional_tangent(u: VelocityField, averaged: VelocityField, at: Point, rows: Rows) -> Tensor:
    """The target of this very pair (x0, x1): the original MeanFlow. Collapses for λ > 0."""
    return at.target[rows]


def average_tangent(u: VelocityField, averaged: VelocityField, at: Point, rows: Rows) -> Tensor:
    """u(x_t, r, t), as Eq. 9 prints it."""
    return u(at.x[rows], at.times.r[rows], at.times.t[rows], rows)


TANGENTS = {
    "model": model_tangent,
    "conditional": conditional_tangent,
    "average": average_tangent,
    "ema": ema_tangent,
}


Number = float | Tensor
"""What changes from step to step; as a tensor, a compiled step takes each value as it comes."""


def flows(lam: Number) -> bool:
    """Whether any gradient flows through the derivative; yes if λ is a tensor."""
    return isinstance(lam, Tensor) or lam > 0


def stop_gradient(z: Tensor, lam: Number) -> Tensor:
    """SG_λ[z] of Eq. 10: the value of z, λ times its gradient."""
    return z.detach() + lam * (z - z.detach()) if flows(lam) else z.detach()


def modular_meanflow(
    net: Net,
    x0: Tensor,
    x1: Tensor,
    times: TimePairs,
    lam: Number,
    parts: Objective,
    condition: Condition | None = None,
    *,
    omega: Tensor | None = None,
    states: Tensor | None = None,
    averaged: Net | None = None,
    levels: Number = 0,
) -> LossTerms:
    """Modular MeanFlow loss, Eq. 11 with the target of Eq. 4 (docs/objective.md).

    Args:
        net: u(x, r, t, **condition).
        x0: data; x1: noise; float32 [B, …].
        times: r, t float32 [B], those with r ≠ t first.
        lam: gradient modulation in [0, 1] (Eq. 10).
        parts: identity, path, target, tangent, derivative and weighting.
        condition: further inputs of the network, [B, …] each.
        omega: guidance scale of each sample, float32 [B], 1 where the label is null; None
            without guidance.
        states: points of each sample's own path, float32 [B, T, …]; instead of ``parts.path``.
        averaged: the averaged network, for the tangent ``ema``.
        levels: number of time levels of the consistency identity.
    Raises:
        ShapeError: the batch sizes differ.
    """
    if x0.shape != x1.shape or times.t.shape != x0.shape[:1] or times.r.shape != x0.shape[:1]:
        raise ShapeError(
            f"x0 {list(x0.shape)}, x1 {list(x1.shape)}, r {list(times.r.shape)}, "
            f"t {list(times.t.shape)}: expected x0 and x1 alike and one r and t a sample"
        )
    path = PATHS[parts.path] if states is None else TrajectoryPath(states)
    x = path.point(x0, x1, times.r, times.t)
    target = TARGETS[parts.target](path, x0, x1, times.r, times.t)
    condition = condition or {}
    with shared_masks(len(x)) as masks:
        u = _bind(net, condition, masks)
        own = None
        if omega is not None:
            own, target = _guide(u, _bind(net, _unconditional(condition), masks), x, times.t,
                                 target, omega)  # fmt: skip
        at = Point(x, times, target, own)
        if parts.identity == "consistency":
            predicted = _consistent(u, at, path, x0, x1, levels)
        else:
            predicted = _velocity(u, _bind(averaged or net, condition, masks), at, lam, parts)
    squared_error = (predicted - target).square().flatten(1).sum(1)
    loss = parts.weighting(squared_error) * squared_error
    return LossTerms(loss=loss, squared_error=squared_error.detach())


def _bind(net: Net, condition: Condition, masks: SharedMasks) -> VelocityField:
    def u(x: Tensor, r: Tensor, t: Tensor, rows: Rows) -> Tensor:
        masks.rows = rows
        # float32 whatever precision the network ran in
        return net(x, r, t, **{name: value[rows] for name, value in condition.items()}).to(x.dtype)

    return u


def _unconditional(condition: Condition) -> Condition:
    """Without label and guidance a network takes the null label and scale 1."""
    return {k: v for k, v in condition.items() if k not in ("label", "guidance")}


@torch.no_grad()
def _guide(
    u: VelocityField, free: VelocityField, x: Tensor, t: Tensor, target: Tensor, omega: Tensor
) -> tuple[Tensor, Tensor]:
    """The model's own velocity, and the target moved away from the unconditional one."""
    own = u(x, t, t, EVERY)
    return own, guided_velocity(target, own, free(x, t, t, EVERY), omega)


def _velocity(
    u: VelocityField, averaged: VelocityField, at: Point, lam: Number, parts: Objective
) -> Tensor:
    """u + (t − r) SG_λ[du/dt], Eq. 4 with Eq. 10; the second term only where r ≠ t (Eq. 7)."""
    (r, t, gaps), x = at.times, at.x
    if not gaps:
        return u(x, t, t, EVERY)
    head, tail = slice(0, gaps), slice(gaps, None)
    with torch.no_grad():
        tangent = TANGENTS[parts.tangent](u, averaged, at, head)
    # a difference of two rounded numbers, or a rounded forward mode, is mostly noise: the
    # derivative stays in float32 where the rest of the batch runs in a shorter type
    mixed = torch.is_autocast_enabled(x.device.type)
    rows = head if mixed else EVERY
    with torch.autocast(x.device.type, enabled=False):
        # exact until a gradient check (gradient_check.py) has put a faster one in its place
        derivative = DERIVATIVES["jvp" if parts.derivative == "auto" else parts.derivative]
        value, dudt = derivative(u, x[rows], r[rows], t[rows], tangent, flows(lam))
    rest = u(x[tail], r[tail], t[tail], tail) if mixed else value[tail]
    correction = per_sample((t - r)[head], x) * stop_gradient(dudt, lam)
    return torch.cat([value[head] + correction, rest])


def _consistent(
    u: VelocityField, at: Point, path: Path, x0: Tensor, x1: Tensor, levels: Number
) -> Tensor:
    """(t u(x_t, 0, t) − s sg u(x_s, 0, s))/(t − s): discrete consistency training.

    With f(x, t) = x − t u(x, 0, t), its residual is (f(x_s, s) − f(x_t, t))/(t − s), of two
    neighbouring points of one path (Song et al. 2023, Eq. 10).
    """
    zero, t = at.times.r, at.times.t
    s = previous_time(t, levels)
    later = u(at.x, zero, t, EVERY)
    with torch.no_grad():
        earlier = u(path.point(x0, x1, zero, s), zero, s, EVERY)
    moved = per_sample(t, later) * later - per_sample(s, later) * earlier
    return moved / per_sample(t - s, later)

"""What u and its own instantaneous velocity v̂(x, t) = u(x, t, t) say of the same path.

d is the number of elements of a sample; every metric is a mean square a sample, divided by d.
The exact field of Gaussian data (training/exact.py) is the case with known answers.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from mmf_deploy.nn.sampler import time_grid

from ..paths import per_sample

Field = Callable[[Tensor, Tensor, Tensor], Tensor]
"""u(x, r, t): x float32 [B, …], r and t [1] or [B]; whatever else the network takes is bound."""

POINTS = 16
"""K: points of a path, beside its start."""
SOLVER_STEPS = 128
ENCODER_STEPS = 32


def mean_square(x: Tensor) -> Tensor:
    """‖x‖²/d of every sample: [B, …] to [B]."""
    return x.square().flatten(1).mean(1)


def heun(u: Field, x: Tensor, times: tuple[float, ...]) -> list[Tensor]:
    """Follow v̂ with Heun's method, a step between neighbouring times.

    Args:
        x: float32 [B, …] at the first time.
        times: rising (from data to noise) or falling.
    Returns:
        the points at all times, ``x`` first.
    """
    points, at = [x], [x.new_tensor([t]) for t in times]
    for now, then in pairwise(at):
        step = per_sample(then - now, x)
        slope = u(x, now, now)
        x = x + step / 2 * (slope + u(x + step * slope, then, then))
        points.append(x)
    return points


def encode(u: Field, x0: Tensor, steps: int = ENCODER_STEPS) -> Tensor:
    """The noise x1 that v̂ takes from x0 [B, …]: a solve from t = 0 to t = 1."""
    return heun(u, x0, time_grid(steps)[::-1])[-1]


def jump(u: Field, x: Tensor, t: float = 1.0) -> Tensor:
    """x̂0 = x − t u(x, 0, t): one step from time t to the data (Eq. 13 at t = 1)."""
    return x - t * u(x, x.new_zeros(1), x.new_tensor([t]))


def walk(u: Field, x1: Tensor, steps: int = POINTS) -> list[Tensor]:
    """All K + 1 points of K steps with u (Eq. 3), x1 first."""
    points = [x1]
    for t, r in pairwise(time_grid(steps)):
        x = points[-1]
        points.append(x - (t - r) * u(x, x.new_tensor([r]), x.new_tensor([t])))
    return points


def one_step_error(u: Field, x0: Tensor, steps: int = ENCODER_STEPS) -> Tensor:
    """‖x0 − one step from the encoded x0‖²/d: [B, …] to [B]."""
    return mean_square(jump(u, encode(u, x0, steps)) - x0)


def one_step_gap(u: Field, x1: Tensor, solved: Tensor) -> Tensor:
    """‖one step from x1 − what a solve of v̂ makes of x1‖²/d: [B, …] to [B]."""
    return mean_square(jump(u, x1) - solved)


def reference_path(
    u: Field, x1: Tensor, points: int = POINTS, steps: int = SOLVER_STEPS
) -> list[Tensor]:
    """K + 1 points of a fine solve of v̂ from x1, at the times of ``walk``.

    Args:
        steps: of the solver; a multiple of ``points``.
    """
    return heun(u, x1, time_grid(steps))[:: steps // points]


def path_deviation(walked: list[Tensor], reference: list[Tensor]) -> Tensor:
    """D_path: mean over the K points after the start of ‖walked − reference‖²/d, [B]."""
    pairs = zip(walked[1:], reference[1:], strict=True)
    return torch.stack([mean_square(a - b) for a, b in pairs]).mean(0)


def smoothness(points: list[Tensor]) -> Tensor:
    """K⁴ mean_k ‖x_{k+1} − 2 x_k + x_{k−1}‖²/d, [B]: the mean square of d²x/dt²; 0 if straight."""
    intervals = len(points) - 1
    bends = [c - 2 * b + a for a, b, c in zip(points, points[1:], points[2:], strict=False)]
    return intervals**4 * torch.stack([mean_square(bend) for bend in bends]).mean(0)


def consistency_residual(u: Field, x: Tensor, r: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """Eq. 6, ‖(t−r) u(x_t, r, t) − (s−r) u(x_s, r, s) − (t−s) u(x_t, s, t)‖²/d, [B].

    Args:
        x: x_t, float32 [B, …]; x_s follows from it by Eq. 3.
        r, s, t: float32 [B], r <= s <= t.
    """
    first = per_sample(t - s, x) * u(x, s, t)
    second = per_sample(s - r, x) * u(x - first, r, s)
    return mean_square(per_sample(t - r, x) * u(x, r, t) - second - first)

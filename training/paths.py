"""The path between data (t = 0) and noise (t = 1), and the velocity along it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from mmf_deploy.errors import ShapeError


def per_sample(a: Tensor, like: Tensor) -> Tensor:
    """View [B] as [B, 1, …] so that it multiplies ``like`` [B, …]."""
    return a.view(-1, *[1] * (like.ndim - 1))


class Path(Protocol):
    """x_t and dx_t/dt between x0 (data) and x1 (noise), all float32 [B, …]; r, t [B]."""

    def point(self, x0: Tensor, x1: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """x_t."""
        ...

    def velocity(self, x0: Tensor, x1: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """dx_t/dt."""
        ...


class LinearPath:
    """x_t = (1 − t) x0 + t x1, v = x1 − x0: one flow, the same for every r."""

    def point(self, x0: Tensor, x1: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """x_t."""
        return x0 + per_sample(t, x0) * (x1 - x0)

    def velocity(self, x0: Tensor, x1: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """x1 − x0."""
        return x1 - x0


class IntervalPath:
    """The paper's §5.1: x_t = (1 − α) x0 + α x1 with α = (t − r)/(1 − r).

    Each r defines another flow, so path consistency (Eq. 6) and K-step sampling do not
    hold for a network trained on it.
    """

    _LATEST = 1 - 1e-4  # r = t = 1 has no interval left; its α is taken as 0

    def point(self, x0: Tensor, x1: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """x_t."""
        alpha = (t - r) / (1 - r.clamp(max=self._LATEST))
        return x0 + per_sample(alpha, x0) * (x1 - x0)

    def velocity(self, x0: Tensor, x1: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """(x1 − x0)/(1 − r)."""
        return (x1 - x0) / per_sample(1 - r.clamp(max=self._LATEST), x0)


class TrajectoryPath:
    """Each sample's own path, known at T uniform times: cubic through its points.

    Catmull–Rom: the velocity is continuous, and exact where the path is quadratic.

    Args:
        states: float32 [B, T, …], from x0 (t = 0) to x1 (t = 1), T >= 3.
    Raises:
        ShapeError: fewer points.
    """

    def __init__(self, states: Tensor) -> None:
        if states.shape[1] < 3:
            raise ShapeError(f"states {list(states.shape)}: expected [B, T, …] with T >= 3")
        self._states = states
        ends = [2 * states[:, :1] - states[:, 1:2], 2 * states[:, -1:] - states[:, -2:-1]]
        second = [states[:, :1] - 2 * states[:, 1:2] + states[:, 2:3],
                  states[:, -1:] - 2 * states[:, -2:-1] + states[:, -3:-2]]  # fmt: skip
        # continued by a parabola beyond both ends
        self._padded = torch.cat([ends[0] + second[0], states, ends[1] + second[1]], dim=1)

    def _at(self, t: Tensor) -> tuple[list[Tensor], Tensor]:
        """Four neighbouring points and where between the middle two, in [0, 1]."""
        intervals = self._states.shape[1] - 1
        index = (t * intervals).long().clamp(0, intervals - 1)
        rows = torch.arange(len(t), device=t.device)
        points = [self._padded[rows, index + k] for k in range(4)]
        return points, per_sample(t * intervals - index, points[0])

    def point(self, x0: Tensor, x1: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """x_t."""
        (a, b, c, d), f = self._at(t)
        return b + 0.5 * f * (c - a + f * (2 * a - 5 * b + 4 * c - d + f * (3 * (b - c) + d - a)))

    def velocity(self, x0: Tensor, x1: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """dx_t/dt."""
        (a, b, c, d), f = self._at(t)
        slope = c - a + f * (2 * (2 * a - 5 * b + 4 * c - d) + 3 * f * (3 * (b - c) + d - a))
        return 0.5 * slope * (self._states.shape[1] - 1)


PATHS: dict[str, Path] = {"linear": LinearPath(), "interval": IntervalPath()}

"""The path between data (t = 0) and noise (t = 1), and the velocity along it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


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


PATHS: dict[str, Path] = {"linear": LinearPath(), "interval": IntervalPath()}

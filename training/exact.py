"""The exact solution for Gaussian data N(0, s²): what objectives and metrics are checked by.

On the linear path x_t has the standard deviation σ_t, σ_t² = (1 − t)² s² + t², and the
flow scales: x_r = x_t σ_r/σ_t. So every quantity of the method has a closed form.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .paths import per_sample


@dataclass(frozen=True)
class GaussianField:
    """u* and v* of data with standard deviation ``s``, in any dtype and dimension."""

    s: float = 0.5

    def sigma(self, t: Tensor) -> Tensor:
        """σ_t, as t."""
        return ((1 - t) ** 2 * self.s**2 + t**2).sqrt()

    def rate(self, t: Tensor) -> Tensor:
        """v*(x, t)/x = σ_t'/σ_t, as t."""
        return (t - (1 - t) * self.s**2) / self.sigma(t) ** 2

    def __call__(self, x: Tensor, r: Tensor, t: Tensor, rows: object = None) -> Tensor:
        """u*(x, r, t) = x (1 − σ_r/σ_t)/(t − r); where r = t, its limit v*.

        Args:
            x: [B, …]; r, t: [B] or [1].
        """
        gap = t - r
        equal = gap.abs() < 1e-9
        average = (1 - self.sigma(r) / self.sigma(t)) / torch.where(equal, 1.0, gap)
        return x * per_sample(torch.where(equal, self.rate(t), average), x)

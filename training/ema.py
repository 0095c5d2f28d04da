"""Exponential moving averages of the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class EMA:
    """One average: w̄ ← d w̄ + (1 − d) w with d = min(decay, (1 + k)/(10 + k)) at update k.

    The ramp lets a short run forget its random start.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.decay = decay
        self._names = [n for n, _ in net.named_parameters()]
        self._live = [p for _, p in net.named_parameters()]
        self._mean = [p.detach().clone() for p in self._live]
        self._buffers = dict(net.named_buffers())

    @property
    def name(self) -> str:
        """File name without ending, for example ``ema-0.995``."""
        return f"ema-{self.decay:g}"

    @torch.no_grad()
    def restart(self) -> None:
        """Begin at the weights as they are now."""
        for mean, live in zip(self._mean, self._live, strict=True):
            mean.copy_(live)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimiser step ``step`` (0, 1, …)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._mean, [p.detach() for p in self._live], 1.0 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights, with the network's buffers."""
        return {**dict(zip(self._names, self._mean, strict=True)), **self._buffers}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from saved averages."""
        for name, mean in zip(self._names, self._mean, strict=True):
            mean.copy_(state[name])

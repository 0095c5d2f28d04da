"""Classifier-free guidance built into a one-step generator.

A guided flow has the velocity ω v(x_t | c) + (1 − ω) v(x_t | null). A one-step generator
cannot mix two velocities at sampling time, so its training target does: with

    ṽ = v + (1 − 1/ω) (sg u(x_t, t, t | c, ω) − sg u(x_t, t, t | null)),

the model's own instantaneous velocity settles where u = ω v(· | c) + (1 − ω) v(· | null),
for any pair (x0, x1) that v came from. ω is fixed, or an input of the network.
"""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from mmf_deploy.errors import ConfigError

from .paths import per_sample

LABEL_DROPOUT = 0.1


class GuidanceConfig(BaseModel):
    """``objective.guidance``.

    Attributes:
        mode: ``off``; ``fixed``: ω = ``scale`` is trained into the weights; ``input``: ω is an
            input of the network, trained log-uniformly on [1, ``max``].
        scale: ω of ``fixed``.
        max: largest ω of ``input``.
        label_dropout: share of samples whose label becomes the null label; 0.1 if guided and
            not given, else 0. It is what trains the unconditional velocity.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["off", "fixed", "input"] = "off"
    scale: float = Field(2.0, ge=1.0, le=100.0)
    max: float = Field(4.0, gt=1.0, le=100.0)
    label_dropout: float = Field(0.0, ge=0.0, lt=1.0)

    @model_validator(mode="before")
    @classmethod
    def _dropout_of_the_mode(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        if given.get("mode") is False:  # what YAML makes of a bare off
            given = {**given, "mode": "off"}
        guided = given.get("mode", "off") != "off"
        return {"label_dropout": LABEL_DROPOUT, **given} if guided else given

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.mode != "off" and self.label_dropout == 0.0:
            raise ConfigError(
                f"objective.guidance.mode {self.mode!r} needs the unconditional velocity, which "
                "only label dropout trains; set objective.guidance.label_dropout, e.g. 0.1"
            )
        return self

    @property
    def on(self) -> bool:
        """True when the target is guided."""
        return self.mode != "off"

    def draw(self, batch: int, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
        """Which labels to drop, and the scale of each sample, from the global generator.

        Returns:
            dropped, bool [B] or None without dropout; ω, float32 [B], 1 where dropped, or
            None without guidance.
        """
        if not self.label_dropout:
            return None, None
        a, b = torch.rand(2, batch, device=device)
        dropped = a < self.label_dropout
        if not self.on:
            return dropped, None
        omega = self.max**b if self.mode == "input" else torch.full_like(b, self.scale)
        return dropped, torch.where(dropped, 1.0, omega)


def guided_velocity(v: Tensor, own: Tensor, free: Tensor, omega: Tensor) -> Tensor:
    """ṽ = v + (1 − 1/ω)(own − free).

    Args:
        v: conditional velocity of the pair, [B, …].
        own: u(x_t, t, t | c, ω); free: u(x_t, t, t | null); without gradient.
        omega: [B], at least 1.
    """
    return v + per_sample(1.0 - 1.0 / omega, v) * (own - free)

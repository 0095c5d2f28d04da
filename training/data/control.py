"""A point mass that moves to a target: the reference is the minimum-jerk motion.

Data runs from a start x1 ~ N(0, I) at rest to the target x0 at rest; time is in units of the
fixed horizon, which therefore has no effect on positions.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from mmf_deploy.spec import SampleSpec

from .base import ResidentVectors


class ControlConfig(BaseModel):
    """``data:`` with ``source: control``.

    Attributes:
        target: position that is moved to.
        noise: std, around the target, of where a motion ends.
        supervise: endpoints: x0 and x1; trajectory: also the positions in between.
        states: how many positions a trajectory has, both ends included.
        size: number of motions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: tuple[float, float] = (1.0, 0.5)
    noise: float = Field(0.05, ge=0.0)
    supervise: Literal["endpoints", "trajectory"] = "endpoints"
    states: int = Field(17, ge=3)
    size: int = Field(20000, ge=1)


def minimum_jerk(s: Tensor) -> Tensor:
    """The share of the way that is done at the share s of the time.

    10 s³ − 15 s⁴ + 6 s⁵: of all motions that start and end at rest, without acceleration,
    the one with the least integral of squared jerk.
    """
    return s**3 * (10 - 15 * s + 6 * s**2)


def load(config: ControlConfig) -> ResidentVectors:
    """The same motions every time. Flow time t = 1 is the start, t = 0 the end."""
    generator = torch.Generator().manual_seed(0)
    x1 = torch.randn(config.size, 2, generator=generator)
    noise = torch.randn(config.size, 2, generator=generator)
    x0 = torch.tensor(config.target) + config.noise * noise
    states = None
    if config.supervise == "trajectory":
        share = minimum_jerk(1 - torch.linspace(0, 1, config.states))[:, None]
        states = torch.lerp(x1[:, None], x0[:, None], share)
    return ResidentVectors(x0, None, SampleSpec(shape=(2,)), x1=x1, states=states)


Config = ControlConfig

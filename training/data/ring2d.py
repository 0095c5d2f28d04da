"""Gaussians on a ring in the plane: the smallest data that shows whether modes are lost."""

from __future__ import annotations

import math

import torch
from pydantic import BaseModel, ConfigDict, Field

from mmf_deploy.spec import SampleSpec

from .base import ResidentVectors


class Ring2dConfig(BaseModel):
    """``data:`` with ``source: ring2d``.

    Attributes:
        modes: Gaussians, at equal angles; the first lies at (radius, 0).
        radius: of the ring.
        std: of each Gaussian.
        size: number of samples.
        classes: whether the mode of a sample is its class.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    modes: int = Field(8, ge=1)
    radius: float = Field(1.0, ge=0.0)
    std: float = Field(0.1, gt=0.0)
    size: int = Field(20000, ge=1)
    classes: bool = False


def load(config: Ring2dConfig) -> ResidentVectors:
    """The same samples every time; equally many of each mode, as far as ``size`` allows."""
    generator = torch.Generator().manual_seed(0)
    mode = torch.arange(config.size) % config.modes
    angle = mode * (2 * math.pi / config.modes)
    centre = config.radius * torch.stack([angle.cos(), angle.sin()], dim=1)
    vectors = centre + config.std * torch.randn(config.size, 2, generator=generator)
    spec = SampleSpec(shape=(2,), classes=config.modes if config.classes else 0)
    return ResidentVectors(vectors, mode if config.classes else None, spec)


Config = Ring2dConfig

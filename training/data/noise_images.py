"""Random images of any size and number of classes: for benchmarks of networks that no data
set at hand fits, and for smoke tests. Nothing can be learned from them."""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field

from mmf_deploy.spec import SampleSpec

from .base import ResidentImages


class NoiseImagesConfig(BaseModel):
    """``data:`` with ``source: noise``.

    Attributes:
        shape: (C, H, W).
        classes: 0 for none.
        size: number of images.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    shape: tuple[int, int, int]
    classes: int = Field(0, ge=0)
    size: int = Field(256, ge=1)


def load(config: NoiseImagesConfig) -> ResidentImages:
    """The same images every time."""
    generator = torch.Generator().manual_seed(0)
    channels, height, width = config.shape
    shape = (config.size, height, width, channels)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    labels = torch.arange(config.size) % config.classes if config.classes else None
    return ResidentImages(images, labels, SampleSpec(shape=config.shape, classes=config.classes))


Config = NoiseImagesConfig

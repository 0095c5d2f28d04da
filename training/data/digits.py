"""The embedded data set: scikit-learn's 1,797 real handwritten digits, 8×8, ten classes."""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict

from mmf_deploy.errors import require
from mmf_deploy.spec import SampleSpec

from .base import ResidentImages


class DigitsConfig(BaseModel):
    """``data:`` of the digits recipe; there is nothing to set."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def load(config: DigitsConfig) -> ResidentImages:
    """All digits, their 17 grey levels spread over 0 … 255."""
    raw = require("sklearn.datasets", "train").load_digits()
    images = torch.from_numpy(raw.images).mul(255 / 16).round().to(torch.uint8)
    spec = SampleSpec(shape=(1, 8, 8), classes=10, class_names=tuple(str(k) for k in range(10)))
    return ResidentImages(images[..., None], torch.from_numpy(raw.target).long(), spec)


Config = DigitsConfig

"""The embedded data set: scikit-learn's 1,797 real handwritten digits, 8×8, ten classes."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict

from mmf_deploy.errors import require
from mmf_deploy.spec import SampleSpec

from .base import ResidentImages

HELD_OUT = 5  # every fifth digit of a class


class DigitsConfig(BaseModel):
    """``data:`` of the digits recipe.

    Attributes:
        split: all; or train and test: four fifths and one fifth of every class.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    split: Literal["all", "train", "test"] = "all"


def load(config: DigitsConfig) -> ResidentImages:
    """The digits, their 17 grey levels spread over 0 … 255."""
    raw = require("sklearn.datasets", "train").load_digits()
    images = torch.from_numpy(raw.images).mul(255 / 16).round().to(torch.uint8)
    labels = torch.from_numpy(raw.target).long()
    spec = SampleSpec(shape=(1, 8, 8), classes=10, class_names=tuple(str(k) for k in range(10)))
    kept = slice(None) if config.split == "all" else _held_out(labels) == (config.split == "test")
    return ResidentImages(images[kept][..., None], labels[kept], spec)


def _held_out(labels: torch.Tensor) -> torch.Tensor:
    """bool [N]: every fifth of a class, in the order of the data set."""
    held_out = torch.zeros_like(labels, dtype=torch.bool)
    for label in range(10):
        held_out[(labels == label).nonzero().flatten()[HELD_OUT - 1 :: HELD_OUT]] = True
    return held_out


Config = DigitsConfig

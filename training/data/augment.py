"""Augmentation that the network is told of: each transformation comes with its label.

The labels are those of the augmentation in EDM (Karras et al. 2022) as the public MeanFlow
recipe uses it. Zero labels mean an untouched image, and that is what generation asks for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from mmf_deploy.errors import ShapeError

LABELS = 6
ROTATED_FRACTION = 0.5  # of the anisotropic scalings, the others are along the axes


class AugmentConfig(BaseModel):
    """``augment:`` of a recipe.

    Attributes:
        probability: of each of scaling, anisotropic scaling and translation; 0 turns
            everything off, flips included.
        flip: share of the images that are mirrored left to right, whatever the probability;
            0 where left and right mean something, as in writing.
        scale: std of log2 of the scale.
        anisotropy: std of log2 of the stretch along one axis and the shrinking across.
        translate: std of the translation, as a fraction of the image's side.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    probability: float = Field(0.12, ge=0.0, le=1.0)
    flip: float = Field(0.5, ge=0.0, le=1.0)
    scale: float = Field(0.2, ge=0.0)
    anisotropy: float = Field(0.2, ge=0.0)
    translate: float = Field(0.125, ge=0.0)


@dataclass(frozen=True)
class AugmentParameters:
    """What is done to each image of a batch; slice it like a tensor.

    Attributes:
        labels: float32 [B, 6]: mirrored (0 or 1), scale, anisotropy · cos and · sin of its
            angle, translation right, translation down; all but the first in units of their
            standard deviations.
        linear: float32 [B, 2, 2], from a place in the result, once it is shifted back, to
            the place in the mirrored image; from the centre, x to the right, y down.
        shift: float32 [B, 2], translation right and down, as fractions of the sides.
    """

    labels: Tensor
    linear: Tensor
    shift: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice | Tensor) -> AugmentParameters:
        return AugmentParameters(*(getattr(self, field.name)[rows] for field in fields(self)))


def draw(config: AugmentConfig, batch: int) -> AugmentParameters:
    """Draw what happens to each of ``batch`` images, from torch's global generator.

    The numbers drawn depend on ``batch`` alone, not on the configuration.
    """
    normal, uniform = torch.randn(4, batch), torch.rand(6, batch)
    on = uniform[:3] < config.probability
    strengths = torch.tensor([config.scale, config.anisotropy, config.translate])
    on &= strengths[:, None] > 0
    flip = (uniform[3] < config.flip) & (config.probability > 0)
    scale, stretch = normal[0] * on[0], normal[1] * on[1]
    angle = (2 * uniform[4] - 1) * math.pi * (uniform[5] < ROTATED_FRACTION)
    shift = normal[2:] * on[2]
    labels = [flip.float(), scale, stretch * angle.cos(), stretch * angle.sin(), *shift]
    linear = _linear(config.scale * scale, config.anisotropy * stretch, angle)
    return AugmentParameters(torch.stack(labels, dim=1), linear, config.translate * shift.T)


def _linear(scale: Tensor, stretch: Tensor, angle: Tensor) -> Tensor:
    """Inverse of scaling everything, and stretching along an angle while shrinking across.

    Args:
        scale, stretch: log2 of the factors, [B].
        angle: counter-clockwise as seen, [B].
    Returns:
        [B, 2, 2].
    """
    turn = _matrix(angle.cos(), angle.sin(), -angle.sin(), angle.cos())
    zero = torch.zeros_like(scale)
    back = _matrix((-scale - stretch).exp2(), zero, zero, (-scale + stretch).exp2())
    return turn @ back @ turn.mT


def _matrix(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    return torch.stack([a, b, c, d], dim=1).reshape(-1, 2, 2)


def apply(parameters: AugmentParameters, x0: Tensor) -> tuple[Tensor, Tensor]:
    """Augment a batch of images.

    Args:
        x0: float32 [B, C, H, W] in [-1, 1], on any device; not changed.
    Returns:
        the images [B, C, H, W], and the labels float32 [B, 6] on the same device. An image
        with zero labels has the same bits as before.
    Raises:
        ShapeError: not images, or not as many as there are parameters.
    """
    if x0.ndim != 4 or len(x0) != len(parameters):
        raise ShapeError(
            f"augmentation of {len(parameters)} images got {list(x0.shape)}, expected "
            f"[{len(parameters)}, C, H, W]; leave out augment: for data that is no images"
        )
    labels = parameters.labels
    mirrored = labels[:, 0].nonzero()[:, 0].to(x0.device)
    warped = labels[:, 1:].any(dim=1).nonzero()[:, 0]
    result = x0.clone()
    result[mirrored] = x0[mirrored].flip(3)
    if len(warped):
        rows = warped.to(x0.device)
        result[rows] = _warp(result[rows], parameters[warped])
    return result, labels.to(x0.device)


def _warp(images: Tensor, parameters: AugmentParameters) -> Tensor:
    """Resample with cubic interpolation; what lies beyond an edge is the mirrored image."""
    height, width = images.shape[2:]
    # a turn is rigid in pixels, but the grid counts in half sides
    aspect = torch.tensor([[1.0, height / width], [width / height, 1.0]])
    linear = parameters.linear * aspect
    offset = linear @ (-2 * parameters.shift)[..., None]
    inverse = torch.cat([linear, offset], dim=2).to(images)
    grid = F.affine_grid(inverse, list(images.shape), align_corners=False)
    warped = F.grid_sample(images, grid, "bicubic", "reflection", align_corners=False)
    return warped.clamp_(-1, 1)  # cubic interpolation overshoots at edges

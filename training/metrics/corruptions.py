"""Images that are not like the training data: noise, blur, shift, inversion."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmf_deploy.errors import require

SEVERITIES = (1, 2, 3, 4, 5)
# the strengths of CIFAR-10-C (Hendrycks and Dietterich 2019), for images in [0, 1]
NOISE = (0.04, 0.06, 0.08, 0.09, 0.10)
BLUR = (0.4, 0.6, 0.7, 0.8, 1.0)


def noise(x: Tensor, severity: int) -> Tensor:
    """Gaussian noise; the same one for every severity, but for its strength."""
    generator = torch.Generator().manual_seed(0)
    # twice, as [-1, 1] is twice as wide
    return (x + 2 * NOISE[severity - 1] * torch.randn(x.shape, generator=generator)).clamp(-1, 1)


def blur(x: Tensor, severity: int) -> Tensor:
    """Gaussian blur; its standard deviation is in pixels."""
    functional = require("torchvision.transforms.v2.functional", "train")
    sigma = BLUR[severity - 1]
    # three standard deviations to each side, and no farther than a small image can be mirrored
    reach = min(max(1, round(3 * sigma)), x.shape[-1] // 2)
    return torch.as_tensor(functional.gaussian_blur(x, kernel_size=2 * reach + 1, sigma=sigma))


def shift(x: Tensor, severity: int) -> Tensor:
    """Moved to the right by 1/16 of the width a severity; what moves in repeats the left edge.

    Whole pixels, at least one: on 8×8 images 1, 1, 2, 2 and 2.
    """
    pixels = max(1, round(severity * x.shape[-1] / 16))
    return torch.cat([x[..., :1].expand(*x.shape[:-1], pixels), x[..., :-pixels]], dim=-1)


def inversion(x: Tensor, severity: int) -> Tensor:
    """White for black: the severity is how far, five is all the way."""
    return x * (1 - 2 * severity / SEVERITIES[-1])


CORRUPTIONS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "noise": noise,
    "blur": blur,
    "shift": shift,
    "inversion": inversion,
}
"""Each maps float32 [B, C, H, W] in [-1, 1] and a severity of 1 … 5 to the same shape."""

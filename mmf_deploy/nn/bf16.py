"""A sampler computed in bfloat16 where that is safe: convolutions and linear layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmf_deploy.nn.sampler import Sampler
from mmf_deploy.nn.unet import Conv2d


class Bfloat16(nn.Module):
    """A sampler with bf16 products; its inputs and outputs stay float32.

    Weights of convolutions and linear layers are stored in bf16, so that no call converts them;
    autocast does the rest, and keeps normalisation and softmax in float32 where the device's
    rules say so. The time embedding and the step x − u stay in float32.

    Args:
        sampler: its weights are changed in place.
    """

    def __init__(self, sampler: Sampler) -> None:
        super().__init__()
        self.sampler = sampler
        for module in sampler.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear, Conv2d)):
                module.to(torch.bfloat16)

    def forward(
        self, noise: Tensor, label: Tensor | None = None, guidance: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """As ``Sampler.forward``."""
        with torch.autocast(noise.device.type, torch.bfloat16):
            outputs: tuple[Tensor, ...] = self.sampler(noise, label, guidance)
            return outputs

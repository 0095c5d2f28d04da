"""A sampler computed in 16 bits where that is safe: convolutions and linear layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmf_deploy.nn.sampler import Sampler
from mmf_deploy.nn.unet import Conv2d


class HalfPrecision(nn.Module):
    """A sampler with products in bf16 or fp16; its inputs and outputs stay float32.

    Weights of convolutions and linear layers are stored in 16 bits, so that no call converts
    them; autocast does the rest. Statistics of normalisation and softmax are computed in
    float32: on a GPU by autocast's rules, on a CPU inside the kernels. The sines of the time
    embedding and the step x − u stay in float32. In fp16 a value beyond 65504 becomes infinite.

    Args:
        sampler: its weights are changed in place.
        dtype: torch.bfloat16 or torch.float16.
    """

    def __init__(self, sampler: Sampler, dtype: torch.dtype) -> None:
        super().__init__()
        self.sampler = sampler
        self.dtype = dtype
        for module in sampler.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear, Conv2d)):
                module.to(dtype)

    def forward(
        self, noise: Tensor, label: Tensor | None = None, guidance: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """As ``Sampler.forward``."""
        with torch.autocast(noise.device.type, self.dtype):
            outputs: tuple[Tensor, ...] = self.sampler(noise, label, guidance)
            return outputs

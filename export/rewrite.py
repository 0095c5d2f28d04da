"""Forms of a network that compute the same: how it is written decides what an engine fuses."""

from __future__ import annotations

import copy
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmf_deploy.nn.sampler import Sampler
from mmf_deploy.nn.unet import Conv2d

from .targets import Form


class WrittenOutGroupNorm(nn.GroupNorm):
    """GroupNorm as means and a reciprocal square root."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__(norm.num_groups, norm.num_channels, norm.eps, norm.affine)
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, input: Tensor) -> Tensor:
        """float32 [B, C, …] to the same."""
        grouped = input.reshape(input.shape[0], self.num_groups, -1)
        centred = grouped - grouped.mean(2, keepdim=True)
        scale = torch.rsqrt((centred * centred).mean(2, keepdim=True) + self.eps)
        normal: Tensor = (centred * scale).reshape(input.shape)
        if not self.affine:
            return normal
        column = (-1, *[1] * (input.dim() - 2))
        return normal * self.weight.reshape(column) + self.bias.reshape(column)


class NearestUp(nn.Module):
    """A convolution behind 2× upsampling, without a transposed convolution.

    The filter [1, 3, 3, 1] with stride 2 weights each source pixel 3/4 and its neighbour 1/4,
    which is what [1, 2, 1] gives on an image whose pixels are repeated. OpenVINO has no fast
    depthwise transposed convolution in bf16: the two of it in the 55.9M network cost a tenth.
    """

    filter: Tensor

    def __init__(self, conv: Conv2d) -> None:
        super().__init__()
        self.conv = conv
        line = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("filter", (torch.outer(line, line) * _gain(conv))[None, None])

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """As ``Conv2d.forward``."""
        channels = x.shape[1]
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        x = F.conv2d(x, self.filter.repeat(channels, 1, 1, 1), groups=channels, padding=1)
        return self.conv.convolve(x, shift)


def _gain(conv: Conv2d) -> float:
    """How many times [1, 3, 3, 1] the filter of a convolution is; 0 if it is another one."""
    line = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    known, found = torch.outer(line, line), conv.resample_filter[0, 0]
    gain = float(found[1, 1] / known[1, 1])
    return gain if torch.allclose(found, gain * known, rtol=1e-6, atol=0) else 0.0


def _can_repeat(module: nn.Module) -> bool:
    """True for an upsampling convolution whose filter ``NearestUp`` can write otherwise."""
    return isinstance(module, Conv2d) and module.up and _gain(module) != 0


def in_form(sampler: Sampler, form: Form) -> Sampler:
    """The sampler written as ``form`` says; all large weights are shared with the one given."""
    if form.normalisation != "reduce" and form.upsampling == "transposed":
        return sampler
    memo = {id(p): p for p in sampler.parameters()} | {id(b): b for b in sampler.buffers()}
    copied = copy.deepcopy(sampler, memo)
    _replace(copied, form)
    return copied


def _replace(module: nn.Module, form: Form) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.GroupNorm) and form.normalisation == "reduce":
            setattr(module, name, WrittenOutGroupNorm(child))
        elif form.upsampling == "nearest" and _can_repeat(child):
            setattr(module, name, NearestUp(cast(Conv2d, child)))
        else:
            _replace(child, form)

"""Grids of one-step samples, drawn while a run goes on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mmf_deploy import noise
from mmf_deploy.images import save_grid
from mmf_deploy.nn.sampler import Sampler
from mmf_deploy.spec import SampleSpec

from .ema import EMA

AT_ONCE = 20
"""Samples in one pass: a grid needs no more memory than a step."""


def draw_grid(path: Path, net: nn.Module, emas: list[EMA], spec: SampleSpec) -> None:
    """Write a PNG of one-step samples of the slowest average; always the same seeds.

    Classes come in turn, a column each; the network is left as it was found.
    """
    count = 10 * min(spec.classes, 10) if spec.conditional else 64
    device = next(net.parameters()).device
    x1 = torch.from_numpy(noise.gaussian_batch(range(count), spec.shape)).to(device)
    label = None
    if spec.conditional:
        label = torch.arange(count, device=device) % min(spec.classes, 10)
    images = _one_step(net, emas, x1, label)
    columns = min(spec.classes, 10) if spec.conditional else 8
    save_grid(path, images.cpu().numpy(), columns)


@torch.no_grad()
def _one_step(net: nn.Module, emas: list[EMA], x1: Tensor, label: Tensor | None) -> Tensor:
    weights = max(emas, key=lambda e: e.decay).state_dict() if emas else dict(net.state_dict())
    training = net.training
    try:
        sampler = Sampler(_WithWeights(net.eval(), weights)).to(x1.device)
        parts = [slice(k, k + AT_ONCE) for k in range(0, len(x1), AT_ONCE)]
        image = torch.cat(
            [sampler(x1[part], None if label is None else label[part])[1] for part in parts]
        )
    finally:
        net.train(training)
    return image


class _WithWeights(nn.Module):
    """A network run with other weights, without copying it."""

    def __init__(self, net: nn.Module, weights: dict[str, Tensor]) -> None:
        super().__init__()
        # not a submodule: its parameters are not this module's
        self._call: Callable[..., Tensor] = functools.partial(functional_call, net, weights)

    def forward(self, *inputs: Any) -> Tensor:
        return self._call(inputs)

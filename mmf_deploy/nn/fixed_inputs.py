"""Inputs of a network as constants: what an export froze and the network itself still takes."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn


def fix_inputs(net: nn.Module, label: int | None, guidance: float | None) -> nn.Module:
    """The network with its label or guidance scale fixed; the network itself if neither is."""
    return net if label is None and guidance is None else FixedInputs(net, label, guidance)


class FixedInputs(nn.Module):
    """u(x, r, t, …) with the label, the guidance scale or both as constants."""

    def __init__(self, net: nn.Module, label: int | None, guidance: float | None) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("label", None if label is None else torch.tensor([label]))
        self.register_buffer("guidance", None if guidance is None else torch.tensor([guidance]))

    def forward(
        self,
        x: Tensor,
        r: Tensor,
        t: Tensor,
        label: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """As the network; fixed inputs have batch 1 and broadcast."""
        label = label if self.label is None else cast(Tensor, self.label).expand(x.shape[0])
        if self.guidance is not None:
            guidance = cast(Tensor, self.guidance).expand(x.shape[0])
        return torch.as_tensor(self.net(x, r, t, label, guidance))

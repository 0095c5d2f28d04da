"""A residual multi-layer perceptron u(x, r, t) for vectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmf_deploy.nn.config import MLPConfig
from mmf_deploy.nn.embedding import Conditioning
from mmf_deploy.spec import SampleSpec


class MLP(Conditioning):
    """Average velocity u(x, r, t) of vectors: residual layers shifted by the embedding."""

    def __init__(self, spec: SampleSpec, config: MLPConfig) -> None:
        super().__init__(spec, config.width)
        self.input = nn.Linear(spec.elements, config.width)
        self.map_layer = nn.Linear(config.width, config.width)
        self.layers = nn.ModuleList(
            nn.Linear(config.width, config.width) for _ in range(config.depth)
        )
        self.shifts = nn.ModuleList(
            nn.Linear(config.width, config.width) for _ in range(config.depth)
        )
        self.output = nn.Linear(config.width, spec.elements)
        with torch.no_grad():
            self.output.weight.mul_(config.zero_init)
            self.output.bias.zero_()

    def forward(
        self,
        x: Tensor,
        r: Tensor,
        t: Tensor,
        label: Tensor | None = None,
        guidance: Tensor | None = None,
        augment: Tensor | None = None,
    ) -> Tensor:
        """u(x, r, t): float32 [B, D]; arguments as in ``UNet.forward``."""
        e = self.embed(self.condition(r, t, label, guidance, augment))
        return self.body(x, [layer(e) for layer in self.shift_layers()])

    def embed(self, condition: Tensor) -> Tensor:
        """The embedding after its linear layer, [B, width]."""
        return F.silu(self.map_layer(condition))

    def shift_layers(self) -> list[nn.Linear]:
        """What turns the embedding into each layer's shift."""
        return [layer for layer in self.shifts if isinstance(layer, nn.Linear)]

    def body(self, x: Tensor, shifts: Sequence[Tensor]) -> Tensor:
        """The network behind its embedding; shifts: one [1 or B, width] a layer."""
        h = self.input(x)
        for layer, shift in zip(self.layers, shifts, strict=True):
            h = h + F.silu(layer(F.silu(h)) + shift)
        return torch.as_tensor(self.output(h))

"""How times, labels, guidance and augmentation labels enter a network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmf_deploy.spec import SampleSpec


def sinusoidal(a: Tensor, dim: int) -> Tensor:
    """[sin(a f), cos(a f)] with f_k = 10000^(−k / (dim/2 − 1)).

    Args:
        a: [B], unscaled; computed in float32 at least.
        dim: width of the embedding, even.
    Returns:
        [B, dim].
    """
    half = dim // 2
    a = a if a.dtype == torch.float64 else a.float()
    k = torch.arange(half, dtype=a.dtype, device=a.device)
    frequency = 10000.0 ** (-k / max(half - 1, 1))
    angle = a[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class Conditioning(nn.Module):
    """Base of networks u(x, r, t, …): the embedding before its first linear layer.

    e = [emb(t), emb(t − r)], plus one linear map each of augmentation labels, class
    label and log guidance where the network has them. The entries are named as in the
    public checkpoints, so they live on the network itself.
    """

    def __init__(self, spec: SampleSpec, width: int, augment_dim: int = 0) -> None:
        super().__init__()
        self.spec = spec
        self._half = width // 2
        if augment_dim:
            self.map_augment = nn.Linear(augment_dim, width, bias=False)
        if spec.conditional:
            # one row a class, and the null label last
            self.map_label = nn.Embedding(spec.classes + 1, width)
        if spec.guided:
            self.map_guidance = nn.Linear(self._half, width, bias=False)

    def condition(
        self,
        r: Tensor,
        t: Tensor,
        label: Tensor | None,
        guidance: Tensor | None,
        augment: Tensor | None,
    ) -> Tensor:
        """The embedding, float32 [B, width]; [1, width] if all inputs have batch 1."""
        e = torch.cat([sinusoidal(t, self._half), sinusoidal(t - r, self._half)], dim=1)
        if augment is not None and hasattr(self, "map_augment"):
            e = e + self.map_augment(augment)
        if self.spec.conditional:
            if label is None:
                label = torch.full((1,), self.spec.classes, device=t.device)
            e = e + self.map_label(label)
        if self.spec.guided:
            if guidance is None:
                guidance = torch.ones(1, device=t.device)
            e = e + self.map_guidance(sinusoidal(guidance.float().log(), self._half))
        return e

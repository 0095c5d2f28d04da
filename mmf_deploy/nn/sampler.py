"""From noise to samples with u: the one-step sampler (Eq. 13) and its K-step refinement."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from mmf_deploy.errors import ConfigError


def time_grid(steps: int) -> tuple[float, ...]:
    """The uniform grid 1 = t_K > … > t_0 = 0.

    Raises:
        ConfigError: fewer than one step.
    """
    if steps < 1:
        raise ConfigError(f"steps = {steps}: expected 1 or more")
    return tuple((steps - k) / steps for k in range(steps + 1))


class Sampler(nn.Module):
    """The whole sampler as one module: what is exported, and what every engine must equal.

    x_{k−1} = x_k − (t_k − t_{k−1}) u(x_k, t_{k−1}, t_k), from t_K = 1 to t_0 = 0. The times
    are constants of shape (1,), so that their embedding folds away in an exported graph.

    Args:
        net: u(x, r, t, label, guidance).
        grid: falling times from 1 to 0; (1, 0) is the one-step sampler.
        is_image: also return uint8 images.

    Attributes:
        with_trajectory: also return all points of the path.
    """

    with_trajectory = False

    def __init__(self, net: nn.Module, grid: Sequence[float] = (1.0, 0.0), is_image: bool = True):
        super().__init__()
        falls = all(later < earlier for earlier, later in pairwise(grid))
        if len(grid) < 2 or grid[0] != 1.0 or grid[-1] != 0.0 or not falls:
            raise ConfigError(f"time grid {tuple(grid)}: expected falling times from 1 to 0")
        self.net = net
        self.is_image = is_image
        self.grid = tuple(grid)
        for k, t in enumerate(self.grid):
            self.register_buffer(f"t{k}", torch.tensor([t]), persistent=False)

    def forward(
        self, noise: Tensor, label: Tensor | None = None, guidance: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Generate.

        Args:
            noise: float32 [B, *shape].
            label: int64 [B] or None.
            guidance: float32 [B] or None.
        Returns:
            (sample float32 [B, *shape], image uint8 [B, H, W, C]), or (sample,) for vectors;
            then the trajectory float32 [B, K + 1, *shape], if asked for.
        """
        points = self.trajectory(noise, label, guidance)
        outputs = (points[-1], quantise(points[-1])) if self.is_image else (points[-1],)
        return (*outputs, torch.stack(points, dim=1)) if self.with_trajectory else outputs

    def velocity(self, k: int, x: Tensor, label: Tensor | None, guidance: Tensor | None) -> Tensor:
        """u(x, r, t) of step k, whose times are constants; float32 [B, *shape]."""
        t, r = getattr(self, f"t{k}"), getattr(self, f"t{k + 1}")
        return torch.as_tensor(self.net(x, r, t, label, guidance))

    def trajectory(
        self, noise: Tensor, label: Tensor | None = None, guidance: Tensor | None = None
    ) -> list[Tensor]:
        """All K + 1 points of the path, noise first, float32 [B, *shape] each."""
        points = [noise]
        for k in range(len(self.grid) - 1):
            u = self.velocity(k, points[-1], label, guidance)
            # 1 − 0 in the one-step sampler: no multiplication to export
            step = self.grid[k] - self.grid[k + 1]
            points.append(points[-1] - (u if step == 1.0 else step * u))
        return points


def quantise(sample: Tensor) -> Tensor:
    """Float samples [B, C, H, W] to uint8 images [B, H, W, C], as ``images.to_uint8``."""
    levels = (sample.clamp(-1.0, 1.0) + 1.0) * 127.5
    # the conversion last: TensorRT has uint8 at the edge of a network only
    return levels.round().permute(0, 2, 3, 1).to(torch.uint8)

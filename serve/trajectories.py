"""Trajectories: the whole way of an image, from an engine that also makes single images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmf_deploy.engines.base import Engine
from mmf_deploy.images import to_uint8


def gives_trajectories(engine: Engine) -> bool:
    """Whether an engine gives trajectories of images: its variant has them, and it can."""
    return engine.gives_trajectory and engine.spec.is_image


class Trajectories:
    """An engine as seen by a batcher of trajectories.

    Another batcher makes single images with the same engine. Both hold the same turn around
    their batches, and so it is used by one thread at a time.

    Args:
        engine: open while there are batches.
        buckets: sizes of batches, ascending.
    """

    def __init__(self, engine: Engine, buckets: tuple[int, ...]) -> None:
        self.spec = engine.spec
        self.buckets = buckets
        self._engine = engine

    @property
    def pads(self) -> bool:
        """Whether a batch costs as much as the bucket that holds it."""
        return self._engine.pads

    def generate(
        self,
        noise: NDArray[np.float32],
        label: NDArray[np.int64] | None = None,
        guidance: NDArray[np.float32] | None = None,
    ) -> NDArray[np.uint8]:
        """Noise [B, C, H, W] to the K + 1 points of each way, uint8 [B, K + 1, H, W, C].

        Points are clamped to [-1, 1], as the image at the end is.
        """
        points = self._engine.trajectory(noise, label, guidance)
        levels = to_uint8(points.reshape(-1, *self.spec.shape))
        return levels.reshape(*points.shape[:2], *levels.shape[1:])

"""What turns images into features in which sets of them can be compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from mmf_deploy.errors import ConfigError, require
from mmf_deploy.nn.judge import Judge

Images = NDArray[np.uint8]
BATCH = 100
FEATURES = 2048


class Features(Protocol):
    """Features of images.

    Attributes:
        name: for tables: what a Fréchet distance in them is called.
    """

    @property
    def name(self) -> str: ...

    def __call__(self, images: Images) -> NDArray[np.float32]:
        """Float32 [N, D] of uint8 [N, H, W, C]."""
        ...


@dataclass(frozen=True)
class JudgeFeatures:
    """Those of the digits classifier. A Fréchet distance in them is never called FID."""

    judge: Judge
    name: str = "Fréchet distance"

    def __call__(self, images: Images) -> NDArray[np.float32]:
        """Float32 [N, 64] of uint8 [N, 8, 8, 1]."""
        return self.judge(images)[1]


class InceptionFeatures:
    """Pool features of the Inception network that FID is defined by, through torchmetrics.

    Args:
        weights: the file of weights-inception-2015-12-05-6726825d.pth, where there is no network;
            None downloads it.
        device: what it runs on.
    Raises:
        ConfigError: the weights are not there, are not Inception's, or cannot be downloaded.
    """

    name = "FID"

    def __init__(self, weights: Path | None = None, device: str = "cpu") -> None:
        metric = require("torchmetrics.image.fid", "train").FrechetInceptionDistance
        require("torch_fidelity", "train")
        if weights is not None and not weights.is_file():
            raise ConfigError(f"--inception-weights {weights}: no such file")
        try:
            path = None if weights is None else str(weights)
            found = metric(feature=FEATURES, feature_extractor_weights_path=path)
            self._net: Any = found.inception.to(device)
        except Exception as e:  # a URL, a pickle, a state dict: each has its own
            reason = " ".join(f"{type(e).__name__}: {e}".split())[:200]
            what = "cannot be downloaded" if weights is None else f"{weights} is not their file"
            raise ConfigError(
                f"the weights of Inception: {what} ({reason}); give the file with "
                "--inception-weights"
            ) from e
        self._device = device

    @torch.inference_mode()
    def __call__(self, images: Images) -> NDArray[np.float32]:
        """Float32 [N, 2048] of uint8 [N, H, W, C]; grey images count as colour."""
        parts = []
        for start in range(0, len(images), BATCH):
            part = torch.from_numpy(images[start : start + BATCH]).permute(0, 3, 1, 2)
            colour = part.expand(-1, 3, -1, -1).contiguous().to(self._device)
            parts.append(self._net(colour).cpu().numpy())
        return np.concatenate(parts)

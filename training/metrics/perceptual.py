"""How different do two images look? Distances between pairs, not between sets."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from mmf_deploy.errors import ConfigError, require

from .features import BATCH, Features, Images

SMALLEST = 64  # AlexNet shrinks images by 32; smaller ones are enlarged
ALEXNET = "alexnet-owt-7be5be79.pth"


class Distance(Protocol):
    """A distance between the images of a pair.

    Attributes:
        name: for tables.
    """

    name: str

    def __call__(self, a: Images, b: Images) -> NDArray[np.float64]:
        """[N] of two sets uint8 [N, H, W, C]."""
        ...


class FeatureDistance:
    """Euclidean distance in features, where no perceptual network fits (digits)."""

    def __init__(self, features: Features) -> None:
        self._features = features
        self.name = "feature L2"

    def __call__(self, a: Images, b: Images) -> NDArray[np.float64]:
        """[N] of two sets uint8 [N, H, W, C]."""
        apart = self._features(a).astype(np.float64) - self._features(b)
        return np.asarray(np.linalg.norm(apart, axis=1))


class Lpips:
    """LPIPS with AlexNet (Zhang et al. 2018), through torchmetrics.

    Args:
        weights: torchvision's file of AlexNet, where there is no network; None downloads it.
            The linear layers of LPIPS come with torchmetrics.
        device: what it runs on.
    Raises:
        ConfigError: the weights are not there, are not AlexNet's, or cannot be downloaded.
    """

    name = "LPIPS"

    def __init__(self, weights: Path | None = None, device: str = "cpu") -> None:
        lpips = require("torchmetrics.image.lpip", "train").LearnedPerceptualImagePatchSimilarity
        try:
            with _alexnet_from(weights):
                self._net: Any = lpips(net_type="alex", reduction="none").to(device).eval()
        except ConfigError:
            raise
        except Exception as e:  # a URL, a pickle, a state dict: each has its own
            reason = " ".join(f"{type(e).__name__}: {e}".split())[:200]
            what = "cannot be downloaded" if weights is None else f"{weights} is not their file"
            raise ConfigError(
                f"the weights of AlexNet: {what} ({reason}); give the file with --alexnet-weights"
            ) from e
        self._device = device

    @torch.inference_mode()
    def __call__(self, a: Images, b: Images) -> NDArray[np.float64]:
        """[N] of two sets uint8 [N, H, W, C]; grey images count as colour."""
        parts = []
        for start in range(0, len(a), BATCH):
            pair = (_prepared(x[start : start + BATCH]).to(self._device) for x in (a, b))
            parts.append(np.atleast_1d(self._net.net(*pair).flatten().cpu().double().numpy()))
        return np.concatenate(parts)


def _prepared(images: Images) -> torch.Tensor:
    """Float32 [N, 3, H, W] in [-1, 1], large enough for AlexNet."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    x = x.expand(-1, 3, -1, -1)
    if min(x.shape[2:]) < SMALLEST:
        scale = SMALLEST / min(x.shape[2:])
        x = F.interpolate(x, scale_factor=scale, mode="bilinear", antialias=False)
    return x


@contextmanager
def _alexnet_from(weights: Path | None) -> Iterator[None]:
    """torchvision finds ``weights`` where it would have downloaded its own to."""
    if weights is None:
        yield
        return
    if not weights.is_file():
        raise ConfigError(f"--alexnet-weights {weights}: no such file")
    before = torch.hub.get_dir()
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "checkpoints").mkdir()
        shutil.copyfile(weights, Path(directory) / "checkpoints" / ALEXNET)
        torch.hub.set_dir(directory)
        try:
            yield
        finally:
            torch.hub.set_dir(before)

"""The judge: a classifier whose features tell generated images from real ones.

Training makes it of the real data and leaves it beside the checkpoints; export judges by it
whether a reduced precision still gives the same images.

    runs/<name>/judge/judge.safetensors   weights, mean and covariance of the real features
    runs/<name>/judge/judge.json          what it is, and how good
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mmf_deploy import files
from mmf_deploy.errors import CheckpointError, require

KIND = "digits-classifier"


@dataclass(frozen=True)
class Judge:
    """A trained classifier with the features of the real data.

    Attributes:
        body, head: images to features, features to logits.
        accuracy: on real images that it was not trained on.
        real_mean: float64 [D]; real_covariance: float64 [D, D], of the real data's features.
    """

    body: nn.Module
    head: nn.Module
    accuracy: float
    real_mean: NDArray[np.float64]
    real_covariance: NDArray[np.float64]

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Classes int64 [N] and features float32 [N, 64] of images uint8 [N, 8, 8, 1]."""
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        features = self.body(x)
        return self.head(features).argmax(1).numpy(), features.numpy()

    def save(self, directory: Path) -> None:
        """Write both files; whole or not at all."""
        tensors: dict[str, Tensor] = {
            **{f"body.{k}": v for k, v in self.body.state_dict().items()},
            **{f"head.{k}": v for k, v in self.head.state_dict().items()},
            "real.mean": torch.from_numpy(self.real_mean),
            "real.covariance": torch.from_numpy(self.real_covariance),
        }
        safetensors = require("safetensors.numpy", "train")
        arrays = {k: v.contiguous().numpy() for k, v in tensors.items()}
        with files.atomic_directory(directory) as temporary:
            (temporary / "judge.safetensors").write_bytes(safetensors.save(arrays))
            about = {"kind": KIND, "accuracy": self.accuracy}
            (temporary / "judge.json").write_text(json.dumps(about, indent=1) + "\n")

    @classmethod
    def load(cls, directory: Path) -> Judge:
        """Read what ``save`` wrote.

        Raises:
            CheckpointError: it is not there or not readable.
        """
        safetensors = require("safetensors.numpy", "train")
        body, head = layers()
        try:
            about = json.loads((directory / "judge.json").read_text())
            if about["kind"] != KIND:
                raise CheckpointError(f"{directory}: judge {about['kind']!r}, expected {KIND!r}")
            stored = safetensors.load((directory / "judge.safetensors").read_bytes())
            for name, module in (("body.", body), ("head.", head)):
                module.load_state_dict(
                    {k.removeprefix(name): torch.from_numpy(v)
                     for k, v in stored.items() if k.startswith(name)}
                )  # fmt: skip
                module.eval().requires_grad_(False)
            return cls(
                body, head, float(about["accuracy"]), stored["real.mean"], stored["real.covariance"]
            )
        except (OSError, ValueError, KeyError, TypeError, RuntimeError,
                require("safetensors", "train").SafetensorError) as e:  # fmt: skip
            raise CheckpointError(f"{directory}: not a readable judge ({e!r})") from e


def layers() -> tuple[nn.Module, nn.Module]:
    """Body and head, freshly initialised, for 8 × 8 grey images in ten classes."""
    body = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Linear(64 * 4 * 4, 64),
        nn.ReLU(),
    )
    return body, nn.Linear(64, 10)

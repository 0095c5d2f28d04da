"""A small convolutional classifier of the embedded digits: the judge of generated ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

HELD_OUT = 0.2


@dataclass(frozen=True)
class DigitsClassifier:
    """A trained classifier.

    Attributes:
        accuracy: on real digits that it was not trained on.
    """

    body: nn.Module
    head: nn.Module
    accuracy: float

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Classes int64 [N] and features float32 [N, 64] of images uint8 [N, 8, 8, 1]."""
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        features = self.body(x)
        return self.head(features).argmax(1).numpy(), features.numpy()


def train_classifier(
    x: Tensor, label: Tensor, *, epochs: int = 12, seed: int = 0
) -> DigitsClassifier:
    """Train on four fifths of the digits, measure on the rest; a few seconds.

    Args:
        x: float32 [N, 1, 8, 8] in [-1, 1].
        label: int64 [N].
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        order = torch.randperm(len(x))
        test, train = order[: int(HELD_OUT * len(x))], order[int(HELD_OUT * len(x)) :]
        body, head = _layers()
        net = nn.Sequential(body, head)
        optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
        batches = epochs * (len(train) // 64)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=batches)
        for _ in range(epochs):
            for rows in train[torch.randperm(len(train))][: len(train) // 64 * 64].view(-1, 64):
                optimizer.zero_grad()
                loss = F.cross_entropy(net(x[rows]), label[rows], label_smoothing=0.05)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
        net.eval().requires_grad_(False)
        accuracy = float((net(x[test]).argmax(1) == label[test]).float().mean())
    return DigitsClassifier(body, head, accuracy)


def _layers() -> tuple[nn.Module, nn.Module]:
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

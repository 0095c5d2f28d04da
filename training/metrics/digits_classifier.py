"""A small convolutional classifier of the embedded digits: the judge of generated ones."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmf_deploy.nn.judge import Judge, layers

HELD_OUT = 0.2


def train_classifier(x: Tensor, label: Tensor, *, epochs: int = 12, seed: int = 0) -> Judge:
    """Train on four fifths of the digits, measure on the rest; a few seconds.

    Args:
        x: float32 [N, 1, 8, 8] in [-1, 1].
        label: int64 [N].
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        order = torch.randperm(len(x))
        test, train = order[: int(HELD_OUT * len(x))], order[int(HELD_OUT * len(x)) :]
        body, head = layers()
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
    real = body(x).double().numpy()
    return Judge(body, head, accuracy, real.mean(0), np.cov(real, rowvar=False))

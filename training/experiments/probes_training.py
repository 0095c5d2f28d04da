"""Measurements of how a run was trained, and of what its network costs."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from mmf_deploy.nn.sampler import Sampler

from ..metrics.stability import read_log, rolling_variance, variation
from .subject import Subject

WINDOW = 10  # logged steps
POINTS = 60  # of a curve
CALLS, WARM_UP = 300, 30


def stability(subject: Subject) -> dict[str, Any]:
    """The unweighted loss over the run, and how steady it and the gradient are.

    Divided by the number of elements, so that sizes compare. Steadiness is that of the last
    half, when the learning rate has risen and λ has settled.
    """
    log = read_log(subject.run)
    loss = log["squared_error"] / subject.checkpoint.spec.elements
    half, window = len(loss) // 2, min(WINDOW, len(loss))
    # a run of a few steps has logged too little to vary
    variance = rolling_variance(loss, window) if window > 1 else np.array([np.nan])
    # neighbouring values are averaged: single ones are too noisy to be seen
    groups = np.array_split(np.arange(len(loss)), min(POINTS, len(loss)))
    return {
        "curve": {
            "step": [float(log["step"][g].mean()) for g in groups],
            "loss": [_finite(loss[g].mean()) for g in groups],
        },
        "loss": _finite(loss[half:].mean()),
        "rolling_variance": _finite(np.median(variance[len(variance) // 2 :])),
        "gradient_variation": _finite(variation(log["gradient_norm"][half:])),
        "loss_variation": _finite(variation(loss[half:])),
        "window": window,
    }


def _finite(value: float) -> float | None:
    """JSON has no word for what is not a number."""
    return float(value) if np.isfinite(value) else None


def latency(subject: Subject) -> dict[str, Any]:
    """Milliseconds of one image in one step, batch 1, PyTorch eager.

    An objective changes weights, not the network: what differs between objectives is noise.
    """
    conditional, device = subject.checkpoint.spec.conditional, torch.device(subject.device)
    label = torch.zeros(1, dtype=torch.long, device=device) if conditional else None
    x1, sampler, took = subject.noise([0]).to(device), Sampler(subject.net).to(device), []
    with torch.inference_mode():
        for _ in range(WARM_UP + CALLS):
            begin = time.perf_counter()
            sampler(x1, label)
            if device.type == "cuda":
                torch.cuda.synchronize()
            took.append(1e3 * (time.perf_counter() - begin))
    threads = torch.get_num_threads()
    return {"median_ms": float(np.median(took[WARM_UP:])), "threads": threads,
            "device": subject.device}  # fmt: skip

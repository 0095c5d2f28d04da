"""λ and the learning rate as functions of the step."""

from __future__ import annotations

import math
from typing import Literal


def curriculum(step: int, warmup_steps: int) -> float:
    """λ(step) = min(1, step / T_warmup), Eq. 12; 1 throughout if T_warmup is 0."""
    return min(1.0, step / warmup_steps) if warmup_steps > 0 else 1.0


def learning_rate(
    step: int,
    *,
    peak: float,
    steps: int,
    warmup_steps: int = 0,
    decay: Literal["cosine", "constant"] = "cosine",
) -> float:
    """Learning rate of step 0 … steps − 1: linear warm-up, then cosine to zero or constant."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if decay == "constant":
        return peak
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    return peak * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))

"""The kinds of optimiser step that the step benchmark compares, the naive one among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmf_deploy.spec import SampleSpec

from .config import LoopConfig, TrainConfig
from .data import noise_images
from .data.base import ResidentVectors, Source
from .derivative import DERIVATIVES
from .learner import Learner
from .objective import stop_gradient
from .objective_config import Objective
from .paths import per_sample
from .processes import OneProcess
from .training_step import Inputs

BASELINE = "flow-matching"
NAIVE = "naive"
LAMBDAS = (0.0, 0.5, 1.0)
NAIVE_LAMBDAS = (0.0, 1.0)


@dataclass(frozen=True)
class Variant:
    """One kind of step.

    Attributes:
        objective: ``flow-matching``, ``mmf`` or ``naive``.
        lam: λ.
        derivative: how du/dt is computed; None where there is none.
        gap_fraction: share of samples with r ≠ t; None where the cost does not depend on it.
    """

    objective: str
    lam: float
    derivative: str | None = None
    gap_fraction: float | None = None


def variants(gap_fractions: Sequence[float]) -> list[Variant]:
    """Every kind of step, flow matching first."""
    found = [Variant(BASELINE, 0.0)]
    for share in gap_fractions:
        found += [Variant("mmf", lam, d, share) for lam in LAMBDAS for d in DERIVATIVES]
    return found + [Variant(NAIVE, lam, "jvp") for lam in NAIVE_LAMBDAS]


class NaiveStep(nn.Module):
    """The same loss as `TrainingStep`'s, computed without care: the baseline to beat.

    The tangent u(x_t, t, t) and one torch.func.jvp go over the whole batch, though du/dt counts
    only where r ≠ t, and the jvp keeps its graph even where λ = 0 then detaches du/dt, as
    public implementations of MeanFlow do.
    """

    def __init__(self, net: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.net = net
        self.objective = objective

    def forward(self, inputs: Inputs, lam: float, levels: int) -> tuple[Tensor, Tensor]:
        """As ``TrainingStep.forward``, for the linear path and without guidance."""
        r, t, _ = inputs.times
        v = inputs.x1 - inputs.x0
        x = inputs.x0 + per_sample(t, v) * v

        def u(x: Tensor, t: Tensor) -> Tensor:
            found: Tensor = self.net(x, r, t, **inputs.condition)
            return found

        with torch.no_grad():
            tangent = self.net(x, t, t, **inputs.condition)
        value, dudt = torch.func.jvp(u, (x, t), (tangent, torch.ones_like(t)))[:2]
        target = v - per_sample(t - r, v) * stop_gradient(dudt, lam)
        squared_error = (value - target).square().flatten(1).sum(1)
        loss = self.objective.weighting(squared_error) * squared_error
        return loss.mean(), squared_error.detach()


def build_learner(recipe: TrainConfig, spec: SampleSpec, batch: int, device: str) -> Learner:
    """What the trainer computes with, on noise instead of data.

    Args:
        recipe: its ``network`` and ``optimizer`` are used, nothing else.
        batch: samples a step.
        device: "cpu" or "cuda".
    """
    # weights that are zero at the output would leave numbers that no trained network has
    network = recipe.network.model_copy(update={"zero_init": 1.0})
    config = TrainConfig(
        name="bench-step",
        data={},
        network=network,
        optimizer=recipe.optimizer,
        loop=LoopConfig(steps=1, batch_size=batch),
    )
    return Learner(config, _noise(spec, batch), OneProcess(device))


def _noise(spec: SampleSpec, size: int) -> Source:
    if spec.is_image:
        config = {"shape": spec.shape, "classes": spec.classes, "size": size}
        return noise_images.load(noise_images.NoiseImagesConfig.model_validate(config))
    vectors = torch.randn(size, *spec.shape, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(size) % spec.classes if spec.conditional else None
    return ResidentVectors(vectors, labels, spec)


def select(learner: Learner, variant: Variant) -> None:
    """Make the learner take steps of another kind."""
    parts: dict[str, Any] = {"lam": variant.lam, "derivative": variant.derivative or "jvp"}
    if variant.gap_fraction is not None:
        parts["time_pairs"] = {"gap_fraction": variant.gap_fraction}
    name = BASELINE if variant.objective == BASELINE else "mmf"
    objective = Objective.model_validate({"name": name, **parts})
    learner.config = learner.config.model_copy(update={"objective": objective})
    learner.assemble(None)
    if variant.objective == NAIVE:
        learner.step = NaiveStep(learner.net, objective)

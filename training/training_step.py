"""The loss as a module: what is wrapped for several processes, and what is compiled.

All of it is inside: a network that is wrapped alone does not synchronise the gradients of
a forward-mode pass, and one that is compiled alone has lost its tangents before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mmf_deploy.nn.config import NetworkConfig
from mmf_deploy.spec import SampleSpec

from .data.augment import apply
from .data.base import Batch
from .draws import Draws
from .objective import Net, Number, modular_meanflow
from .objective_config import Objective
from .time_pairs import TimePairs


@dataclass(frozen=True)
class Inputs:
    """One batch, or one part of it, on its device; fields as in ``modular_meanflow``."""

    x0: Tensor
    x1: Tensor
    times: TimePairs
    condition: dict[str, Tensor]
    omega: Tensor | None
    states: Tensor | None

    def laid_out(self, layout: torch.memory_format) -> Inputs:
        """The same with both ends in another memory format."""
        x0, x1 = (x.contiguous(memory_format=layout) for x in (self.x0, self.x1))
        return replace(self, x0=x0, x1=x1)


def prepare(
    batch: Batch, draws: Draws, spec: SampleSpec, network: NetworkConfig, device: torch.device
) -> Inputs:
    """Data and random draws of the same samples, as the loss wants them.

    A dropped label becomes the null label; every input that the network has gets a value.
    """
    x0 = batch.x0.to(device, non_blocking=True)
    condition: dict[str, Tensor] = {}
    if draws.augment is not None:
        x0, labels = apply(draws.augment, x0)
        condition["augment"] = labels.to(device)
    elif dim := getattr(network, "augment_dim", 0):
        # untouched; without it the weights of this input would have no gradient at all
        condition["augment"] = torch.zeros(len(x0), dim, device=device)
    if batch.label is not None:
        label = batch.label.to(device, non_blocking=True)
        if draws.dropped is not None:
            label = torch.where(draws.dropped, spec.classes, label)
        condition["label"] = label
    if spec.guided and draws.omega is not None:
        condition["guidance"] = draws.omega
    return Inputs(
        x0=x0,
        x1=draws.x1 if batch.x1 is None else batch.x1.to(device),
        times=draws.times,
        condition=condition,
        omega=draws.omega,
        states=None if batch.states is None else batch.states.to(device),
    )


class TrainingStep(nn.Module):
    """The mean loss of a batch.

    Args:
        net: u(x, r, t, …).
        averaged: the averaged network, for the tangent ``ema``.
        bf16: run the network, but not the derivative, in bfloat16.
    """

    def __init__(
        self, net: nn.Module, objective: Objective, averaged: Net | None = None, bf16: bool = False
    ) -> None:
        super().__init__()
        self.net = net
        self.objective = objective
        self.bf16 = bf16
        # a list, so that the averaged network is not a submodule
        self._averaged = [averaged]

    def forward(self, inputs: Inputs, lam: Number, levels: Number) -> tuple[Tensor, Tensor]:
        """Evaluate.

        Args:
            lam: λ of the step.
            levels: time levels of the step, for the consistency identity.
        Returns:
            the mean weighted loss, and the unweighted squared error per sample, [B].
        """
        with torch.autocast(inputs.x0.device.type, torch.bfloat16, enabled=self.bf16):
            terms = modular_meanflow(
                self.net, inputs.x0, inputs.x1, inputs.times, lam, self.objective,
                inputs.condition, omega=inputs.omega, states=inputs.states,
                averaged=self._averaged[0], levels=levels,
            )  # fmt: skip
        return terms.loss.mean(), terms.squared_error

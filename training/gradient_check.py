"""Is a faster way to the gradient the same gradient? Asked once, when a run starts.

Exact forward mode is the reference. A difference quotient is half its price and right in
float32, but mostly noise where products are rounded to ten bits (TF32, the default of
convolutions on recent GPUs): only a measurement on this device tells.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmf_deploy.nn.dropout import Dropout
from mmf_deploy.spec import SampleSpec

from .derivative import DERIVATIVES
from .objective import Number, modular_meanflow
from .objective_config import Objective
from .time_pairs import TimePairs
from .training_step import Inputs, TrainingStep

TOLERANCE = 0.02
"""Largest relative difference of du/dt, and of the gradient of the weights, to the exact ones."""
BATCH = 4


@dataclass(frozen=True)
class Agreement:
    """Relative differences to the exact derivative, in the Euclidean norm.

    Attributes:
        dudt: of du/dt itself.
        gradient: of the gradient of the loss at λ = 1, over all weights.
    """

    dudt: float
    gradient: float

    @property
    def passed(self) -> bool:
        """Whether both are within ``TOLERANCE``; not a number is not."""
        return self.dudt <= TOLERANCE and self.gradient <= TOLERANCE


def choose_derivative(net: nn.Module, spec: SampleSpec, objective: Objective) -> tuple[str, str]:
    """The fastest derivative that passes, and why, in a line.

    Args:
        net: on the device where it will train; left as it is.
    """
    if not objective.differentiates:
        return "jvp", "nothing is differentiated"
    found = check_derivative(net, spec, objective, "finite_difference")
    numbers = f"du/dt differs by {found.dudt:.1e}, the gradient by {found.gradient:.1e}"
    if found.passed:
        return "finite_difference", numbers
    return "jvp", f"finite_difference fails its check: {numbers}, allowed are {TOLERANCE:g}"


def check_derivative(
    net: nn.Module, spec: SampleSpec, objective: Objective, derivative: str
) -> Agreement:
    """Compare a derivative with exact forward mode on a roughened copy of the network."""
    device = next(net.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        rough = _roughened(net)
        inputs = _inputs(spec, device)
        exact = _derivative_and_gradient(rough, objective, "jvp", *inputs)
        fast = _derivative_and_gradient(rough, objective, derivative, *inputs)
    return Agreement(*(relative_difference(a, b) for a, b in zip(fast, exact, strict=True)))


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖/‖expected‖."""
    return float((found - expected).norm() / expected.norm().clamp(min=1e-30))


def _roughened(net: nn.Module) -> nn.Module:
    """A copy whose output depends on everything: fresh networks end in zeros."""
    rough = copy.deepcopy(net).eval()
    with torch.no_grad():
        for weight in rough.parameters():
            _roughen(weight)
    return rough


def _roughen(weight: Tensor) -> None:
    if weight.ndim >= 2:
        fan_in = weight[0].numel()
        weight.add_(torch.randn_like(weight), alpha=0.5 / math.sqrt(fan_in))


def _inputs(spec: SampleSpec, device: torch.device) -> tuple[Tensor, Tensor, TimePairs]:
    x0, x1 = torch.randn(2, BATCH, *spec.shape, device=device)
    t = torch.linspace(0.15, 0.95, BATCH, device=device)
    return 0.5 * x0, x1, TimePairs(t * torch.linspace(0.0, 0.9, BATCH, device=device), t, BATCH)


def _derivative_and_gradient(
    net: nn.Module, objective: Objective, derivative: str, x0: Tensor, x1: Tensor, times: TimePairs
) -> tuple[Tensor, Tensor]:
    def u(x: Tensor, r: Tensor, t: Tensor, rows: object) -> Tensor:
        found: Tensor = net(x, r, t)
        return found

    x = x0 + (x1 - x0) * times.t.view(-1, *[1] * (x0.ndim - 1))
    dudt = DERIVATIVES[derivative](u, x, times.r, times.t, x1 - x0, False)[1]
    parts = objective.model_copy(
        update={"derivative": derivative, "path": "linear", "target": "velocity",
                "tangent": "conditional"}
    )  # fmt: skip
    loss = modular_meanflow(net, x0, x1, times, 1.0, parts).loss.mean()
    return dudt.detach(), _gradient(net, loss)


def compile_step(
    step: TrainingStep, inputs: Inputs, lam: Number, levels: Number
) -> tuple[bool, str]:
    """Compile a step in place, unless its gradient then differs; whether, and why, in a line.

    Args:
        inputs, lam, levels: of the shapes and types that it will see.
    """
    weights = [p.detach().clone() for p in step.parameters()]
    device = weights[0].device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        with torch.no_grad():
            for p in step.parameters():
                _roughen(p)
        # masks off: a compiler draws other ones
        layers = [layer for layer in step.modules() if isinstance(layer, Dropout)]
        rates = [layer.p for layer in layers]
        for layer in layers:
            layer.p = 0.0
        expected = _gradient(step, step(inputs, lam, levels)[0])
        try:
            step.compile(dynamic=False)
            difference = relative_difference(
                _gradient(step, step(inputs, lam, levels)[0]), expected
            )
        except Exception as e:  # whatever the compiler raises, the run goes on without it
            difference = math.inf
            why = f"{type(e).__name__}: {' '.join(str(e).split())[:160]}"
        else:
            why = f"its gradient differs by {difference:.1e}"
    for layer, rate in zip(layers, rates, strict=True):
        layer.p = rate
    with torch.no_grad():
        for p, before in zip(step.parameters(), weights, strict=True):
            p.copy_(before)
    if difference <= TOLERANCE:
        return True, f"the step is compiled ({why})"
    step._compiled_call_impl = None
    return False, f"the step is not compiled: {why}"


def _gradient(module: nn.Module, loss: Tensor) -> Tensor:
    """Gradient of a loss in all weights, flat; the module keeps none of it."""
    module.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    found = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
    module.zero_grad(set_to_none=True)
    return torch.cat(found)

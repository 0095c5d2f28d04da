"""The flow map of an ordinary differential equation: dx/dτ = −∇V(x), V = ½‖x‖².

Data runs from a start x1 ~ N(0, I) to where the equation takes it, x0, so that the one step
of a trained generator from noise is the solution of the equation over the whole horizon.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from mmf_deploy.spec import SampleSpec

from .base import ResidentVectors

SOLVER_STEPS = 8  # between two recorded states: the error of RK4 is far below float32's


class OdeConfig(BaseModel):
    """``data:`` with ``source: ode``.

    Attributes:
        horizon: τ at the end.
        noise: std of what is added to the end state.
        supervise: endpoints: x0 and x1; trajectory: also the states in between.
        states: how many states a trajectory has, both ends included.
        size: number of trajectories.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    horizon: float = Field(1.0, gt=0.0)
    noise: float = Field(0.05, ge=0.0)
    supervise: Literal["endpoints", "trajectory"] = "endpoints"
    states: int = Field(17, ge=3)
    size: int = Field(20000, ge=1)


def minus_gradient(x: Tensor) -> Tensor:
    """−∇V at x [N, 2], for V = ½‖x‖²."""
    return -x


def solve(start: Tensor, horizon: float, states: int) -> Tensor:
    """Solve the equation with the classical Runge–Kutta method.

    Args:
        start: float [N, D] at τ = 0.
    Returns:
        [N, states, D] at equidistant τ, from 0 to ``horizon``.
    """
    step = horizon / (states - 1) / SOLVER_STEPS
    x, recorded = start, [start]
    for _ in range(states - 1):
        for _ in range(SOLVER_STEPS):
            k1 = minus_gradient(x)
            k2 = minus_gradient(x + step / 2 * k1)
            k3 = minus_gradient(x + step / 2 * k2)
            k4 = minus_gradient(x + step * k3)
            x = x + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        recorded.append(x)
    return torch.stack(recorded, dim=1)


def load(config: OdeConfig) -> ResidentVectors:
    """The same trajectories every time. Flow time t = 1 is the start, t = 0 the end.

    The noise ε of an end state is on its trajectory as (1 − t) ε: the states stay a smooth
    path between the two ends.
    """
    generator = torch.Generator().manual_seed(0)
    x1 = torch.randn(config.size, 2, generator=generator)
    noise = config.noise * torch.randn(config.size, 1, 2, generator=generator)
    t = torch.linspace(0, 1, config.states)[:, None]
    path = solve(x1.double(), config.horizon, config.states).flip(1).float() + (1 - t) * noise
    states = path if config.supervise == "trajectory" else None
    return ResidentVectors(path[:, 0].clone(), None, SampleSpec(shape=(2,)), x1=x1, states=states)


Config = OdeConfig

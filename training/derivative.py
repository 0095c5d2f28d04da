"""The total derivative du/dt along a tangent: exact forward mode, and without any JVP.

du/dt = ∂_t u + ∇_x u · w, at fixed r (Eq. 5): the directional derivative of u along
(w, 0, 1) in (x, r, t). Only samples with r ≠ t need it; they come first in a batch.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from typing import Protocol

import torch
from torch import Tensor

from mmf_deploy.nn.dropout import Rows


class Field(Protocol):
    """u as the objective sees it: labels and the like are bound."""

    def __call__(self, x: Tensor, r: Tensor, t: Tensor, rows: Rows) -> Tensor:
        """Evaluate u at (x, r, t); ``rows`` says which samples of the batch these are."""
        ...


class Derivative(Protocol):
    """Computes u of a batch, and du/dt of its first samples."""

    def __call__(
        self, u: Field, x: Tensor, r: Tensor, t: Tensor, tangent: Tensor, keep_graph: bool
    ) -> tuple[Tensor, Tensor]:
        """Evaluate.

        Args:
            x: float32 [B, …]; r, t: float32 [B].
            tangent: float32 [G, …], of the first G <= B samples.
            keep_graph: whether gradients shall flow through du/dt. They always flow
                through u.
        Returns:
            u(x, r, t), float32 [B, …], and du/dt, float32 [G, …].
        """
        ...


@functools.cache
def _load_forward_rules() -> None:
    # torch compiles these at the first jvp and warns of its own deprecated compiler
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("torch._decomp.decompositions_for_jvp")


def jvp(
    u: Field, x: Tensor, r: Tensor, t: Tensor, tangent: Tensor, keep_graph: bool
) -> tuple[Tensor, Tensor]:
    """Exact forward-mode derivative (torch.func.jvp)."""
    _load_forward_rules()
    count = len(tangent)
    head = slice(0, count)

    def at(x: Tensor, t: Tensor) -> Tensor:
        return u(x, r[head], t, head)

    primals, tangents = (x[head], t[head]), (tangent, torch.ones_like(t[head]))
    if not keep_graph:
        with torch.no_grad():
            dudt: Tensor = torch.func.jvp(at, primals, tangents)[1]
        return u(x, r, t, slice(0, len(x))), dudt
    value, dudt = torch.func.jvp(at, primals, tangents)[:2]
    if count == len(x):
        return value, dudt
    tail = slice(count, len(x))
    return torch.cat([value, u(x[tail], r[tail], t[tail], tail)]), dudt


STEP = 1e-3
"""Step of the finite difference: its truncation error and float32's rounding balance here."""


def finite_difference(
    u: Field,
    x: Tensor,
    r: Tensor,
    t: Tensor,
    tangent: Tensor,
    keep_graph: bool,
    step: float = STEP,
) -> tuple[Tensor, Tensor]:
    """One-sided difference (u(x, r, t) − u(x − h w, r, t − h))/h that reuses u(x, r, t).

    Its error is of first order in the step h (docs/objective.md, "Cost").
    With a graph, both points of every sample go through the network in one pass.
    """
    head = slice(0, len(tangent))
    x_before, r_before, t_before = x[head] - step * tangent, r[head], t[head] - step
    if not keep_graph:
        value = u(x, r, t, slice(0, len(x)))
        with torch.no_grad():
            return value, (value[head] - u(x_before, r_before, t_before, head)) / step
    every = torch.arange(len(x), device=x.device)
    both = u(
        torch.cat([x, x_before]),
        torch.cat([r, r_before]),
        torch.cat([t, t_before]),
        torch.cat([every, every[head]]),
    )
    value = both[: len(x)]
    return value, (value[head] - both[len(x) :]) / step


DERIVATIVES: dict[str, Derivative] = {"jvp": jvp, "finite_difference": finite_difference}

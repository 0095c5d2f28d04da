"""The total derivative du/dt along a tangent: exact forward mode, and without any JVP.

du/dt = ∂_t u + ∇_x u · w, at fixed r (Eq. 5): the directional derivative of u along
(w, 0, 1) in (x, r, t).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import warnings
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

Field = Callable[[Tensor, Tensor, Tensor], Tensor]
"""u as a function of (x, r, t) alone; labels and the like are bound."""


class Derivative(Protocol):
    """Computes u and du/dt together."""

    def __call__(
        self, u: Field, x: Tensor, r: Tensor, t: Tensor, tangent: Tensor, keep_graph: bool
    ) -> tuple[Tensor, Tensor]:
        """Evaluate.

        Args:
            x, tangent: float32 [B, …]; r, t: float32 [B].
            keep_graph: whether gradients shall flow through du/dt. They always flow
                through u.
        Returns:
            u(x, r, t) and du/dt, float32 [B, …] each.
        """
        ...


@contextlib.contextmanager
def _same_random_numbers(state: Tensor) -> Iterator[None]:
    # every pass of a step must see the same dropout mask, or du/dt measures the mask
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    yield
    torch.set_rng_state(after)


@functools.cache
def _load_forward_rules() -> None:
    # torch compiles these at the first jvp and warns of its own deprecated compiler
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        importlib.import_module("torch._decomp.decompositions_for_jvp")


def jvp(
    u: Field, x: Tensor, r: Tensor, t: Tensor, tangent: Tensor, keep_graph: bool
) -> tuple[Tensor, Tensor]:
    """Exact forward-mode derivative (torch.func.jvp)."""
    _load_forward_rules()

    def at(x: Tensor, t: Tensor) -> Tensor:
        return u(x, r, t)

    if keep_graph:
        return _jvp(at, x, t, tangent)
    state = torch.get_rng_state()
    with torch.no_grad():
        dudt = _jvp(at, x, t, tangent)[1]
    with _same_random_numbers(state):
        return u(x, r, t), dudt


def _jvp(
    at: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor, tangent: Tensor
) -> tuple[Tensor, Tensor]:
    value, dudt = torch.func.jvp(at, (x, t), (tangent, torch.ones_like(t)))[:2]
    return value, dudt


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

    Its error is of first order in the step h: 1e-4 … 4e-3 of du/dt on random networks.
    """
    state = torch.get_rng_state()
    value = u(x, r, t)
    context = contextlib.nullcontext() if keep_graph else torch.no_grad()
    with context, _same_random_numbers(state):
        dudt = (value - u(x - step * tangent, r, t - step)) / step
    return value, dudt


DERIVATIVES: dict[str, Derivative] = {"jvp": jvp, "finite_difference": finite_difference}

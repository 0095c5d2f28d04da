"""Frozen time taken to its end: what depends on r, t and the label alone becomes a table.

A network u(x, r, t, label, guidance) here is an embedding of everything but x, one linear
layer a block that turns it into a shift, and a body (``nn.unet.UNet``, ``nn.mlp.MLP``). At a
fixed (r, t) the first two are a function of the label and the guidance scale alone:

    unconditional    one row of shifts, which the exporter adds to the biases
    labels           one row a class, and one for the null label: a table look-up
    guidance input   the time's part is a constant; all shift layers are one matrix
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from mmf_deploy.nn.embedding import sinusoidal
from mmf_deploy.nn.fixed_inputs import fix_inputs
from mmf_deploy.nn.sampler import Sampler, time_grid
from mmf_deploy.spec import SampleSpec

from .origin import Origin


class Foldable(Protocol):
    """What a network must offer to have its embedding folded."""

    spec: SampleSpec

    def condition(self, r: Tensor, t: Tensor, label: Tensor | None, guidance: Tensor | None,
                  augment: Tensor | None) -> Tensor: ...  # fmt: skip

    def embed(self, condition: Tensor) -> Tensor: ...

    def shift_layers(self) -> list[nn.Linear]: ...

    def body(self, x: Tensor, shifts: Sequence[Tensor]) -> Tensor: ...


def foldable(net: nn.Module) -> bool:
    """True if the embedding of this network can be folded."""
    return all(hasattr(net, name) for name in ("condition", "embed", "shift_layers", "body"))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread, so that the result does not depend on the number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class FoldedTime(nn.Module):
    """u(x, r, t, label, guidance) at one fixed (r, t), as a sub-module of a ``FoldedSampler``.

    Args:
        net: a ``Foldable``; its body is shared, not copied.
        label, guidance: fixed inputs; None leaves them inputs where the spec has them.
    """

    table: Tensor

    def __init__(
        self, net: Foldable, r: float, t: float, label: int | None, guidance: float | None
    ) -> None:
        super().__init__()
        spec = net.spec
        self.widths = [layer.out_features for layer in net.shift_layers()]
        self.has_label = spec.conditional and label is None
        self.has_guidance = spec.guided and guidance is None
        rows = spec.classes + 1 if self.has_label else 1
        labels = None
        if spec.conditional:
            labels = torch.arange(rows) if label is None else torch.tensor([label])
        # one thread: how a matrix product is split decides its last bits, and so the file's bytes
        with torch.no_grad(), one_thread():
            scale = torch.ones(1) if guidance is None else torch.tensor([guidance])
            condition = net.condition(
                torch.tensor([r]), torch.tensor([t]), labels, scale if spec.guided else None, None
            )
            if self.has_guidance:
                # the embedding of ω = 1 went in with the rest
                one = net.map_guidance(sinusoidal(torch.zeros(1), net._half))  # type: ignore[attr-defined]
                self.register_buffer("table", (condition - one).expand(rows, -1).clone())
                self._stack(net)
            else:
                e = net.embed(condition)
                shifts = [layer(e) for layer in net.shift_layers()]
                self._keep(shifts)

    def _keep(self, shifts: list[Tensor]) -> None:
        if self.has_label:
            self.register_buffer("table", torch.cat(shifts, dim=1))
            return
        # one buffer a block: the exporter folds them into the biases, but not out of a split
        for k, shift in enumerate(shifts):
            self.register_buffer(f"shift{k}", shift)

    def _stack(self, net: Foldable) -> None:
        layers = net.shift_layers()
        self.stacked = nn.Linear(layers[0].in_features, sum(self.widths))
        self.stacked.weight.copy_(torch.cat([layer.weight for layer in layers]))
        self.stacked.bias.copy_(torch.cat([layer.bias for layer in layers]))

    def shifts(self, net: Foldable, label: Tensor | None, guidance: Tensor | None) -> list[Tensor]:
        """One [1 or B, width] a block."""
        if not self.has_label and not self.has_guidance:
            return [getattr(self, f"shift{k}") for k in range(len(self.widths))]
        rows = self.table if label is None else self.table[label]
        if guidance is not None:
            scale = sinusoidal(guidance.log(), net._half)  # type: ignore[attr-defined]
            rows = self.stacked(net.embed(rows + net.map_guidance(scale)))  # type: ignore[attr-defined]
        return list(torch.split(rows, self.widths, dim=1))


class FoldedSampler(Sampler):
    """The sampler with its embedding folded: the same samples from fewer operations."""

    def __init__(
        self,
        net: nn.Module,
        grid: Sequence[float],
        is_image: bool,
        label: int | None = None,
        guidance: float | None = None,
    ) -> None:
        super().__init__(net, grid, is_image)
        self.folded = nn.ModuleList(
            FoldedTime(cast(Foldable, net), r, t, label, guidance) for t, r in pairwise(grid)
        )

    def velocity(self, k: int, x: Tensor, label: Tensor | None, guidance: Tensor | None) -> Tensor:
        """u of step k, from the table."""
        net = cast(Foldable, self.net)
        return net.body(x, cast(FoldedTime, self.folded[k]).shifts(net, label, guidance))


def plain_sampler(origin: Origin, steps: int) -> Sampler:
    """The sampler of an origin as PyTorch runs it: the reference of every comparison."""
    net = fix_inputs(origin.net, origin.source.label, origin.source.guidance)
    return Sampler(net, time_grid(steps), origin.spec.is_image).eval()


def frozen_sampler(origin: Origin, steps: int) -> Sampler:
    """The sampler of an origin as it is exported: folded where the network allows it."""
    if not foldable(origin.net):
        return plain_sampler(origin, steps)
    source = origin.source
    grid = time_grid(steps)
    return FoldedSampler(
        origin.net, grid, origin.spec.is_image, source.label, source.guidance
    ).eval()

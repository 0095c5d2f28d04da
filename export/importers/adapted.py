"""A network with some of the inputs x, r, t, label and guidance, called with all of them."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

from mmf_deploy.errors import ConfigError
from mmf_deploy.spec import SampleSpec

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class Adapted(nn.Module):
    """u(x, r, t, label, guidance) by a network that takes some of them.

    The first parameter of its forward is x. The others are passed by name, so their order
    does not matter. What the sample does not have (a label, a guidance scale) is not passed.

    Args:
        reference: what the user calls the network, for messages.
    Raises:
        ConfigError: its forward lacks an input, or wants another.
    """

    def __init__(self, net: nn.Module, spec: SampleSpec, reference: str) -> None:
        super().__init__()
        self.net = net
        self.takes = _inputs(net, spec, reference)
        self.expand_times = False

    def forward(
        self,
        x: Tensor,
        r: Tensor,
        t: Tensor,
        label: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """As ``mmf_deploy.nn`` networks: r and t may be [1] whatever the batch."""
        if self.expand_times:
            r, t = r.expand(x.shape[0]), t.expand(x.shape[0])
        given = {"r": r, "t": t, "label": label, "guidance": guidance}
        u: Tensor = self.net(x, **{name: given[name] for name in self.takes})
        return u


def _inputs(net: nn.Module, spec: SampleSpec, reference: str) -> tuple[str, ...]:
    """Names of the inputs after x to pass."""
    signature = inspect.signature(net.forward)
    head = f"--module {reference}: forward{signature}"
    parameters = list(signature.parameters.values())
    everything = any(p.kind is p.VAR_KEYWORD for p in parameters)
    takes_x = bool(parameters) and parameters[0].kind in _POSITIONAL
    named = {p.name: p for p in parameters[1:] if p.kind in _NAMED}
    wanted = ["r", "t"]
    wanted += ["label"] if spec.conditional else []
    wanted += ["guidance"] if spec.guided else []
    missing = [name for name in wanted if name not in named and not everything]
    if not takes_x or missing:
        raise ConfigError(
            f"{head}: expected x first, and inputs named {', '.join(wanted)}"
            + (f"; {', '.join(missing)} missing" if missing else "")
        )
    for name, parameter in named.items():
        if name not in wanted and parameter.default is parameter.empty:
            flag = {"label": "give --classes N", "guidance": "give --guidance-range 1,4"}
            raise ConfigError(
                f"{head}: needs {name!r}, which the sampler does not have; "
                f"{flag.get(name, 'give it a default')}"
            )
    return tuple(wanted)


@torch.inference_mode()
def check_forward(net: Adapted, spec: SampleSpec, reference: str) -> None:
    """Run the network once on two samples, and see whether times may be of shape [1].

    Raises:
        ConfigError: it fails, or its result is not finite float32 of the shape of x.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *spec.shape, generator=generator)
    label = torch.tensor([0, spec.classes - 1]) if spec.conditional else None
    guidance = torch.tensor(spec.guidance) if spec.guidance else None
    r, t = torch.tensor([0.0]), torch.tensor([1.0])
    try:
        u = net(x, r.expand(2), t.expand(2), label, guidance)
    except Exception as e:  # a user's code
        reason = f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"
        raise ConfigError(
            f"--module {reference}: forward failed on x {list(x.shape)}, r = 0, t = 1: {reason}"
        ) from e
    if not isinstance(u, Tensor) or u.shape != x.shape or u.dtype != torch.float32:
        found = f"{u.dtype} {list(u.shape)}" if isinstance(u, Tensor) else type(u).__name__
        raise ConfigError(
            f"--module {reference}: forward gave {found}, expected torch.float32 {list(x.shape)}, "
            "the shape of x"
        )
    if not u.isfinite().all():
        raise ConfigError(f"--module {reference}: forward gave numbers that are not finite")
    net.expand_times = not _same(net, u, (x, r, t, label, guidance))


def _same(net: Adapted, u: Tensor, inputs: tuple[Tensor | None, ...]) -> bool:
    """True if times of shape [1] give what times of shape [B] give."""
    try:
        other = net(*inputs)
    except Exception:  # a user's code that needs a time a sample
        return False
    return isinstance(other, Tensor) and other.shape == u.shape and torch.allclose(other, u)

"""Fine-tuning: start a run with the weights of another."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from mmf_deploy import checkpoint
from mmf_deploy.errors import CheckpointError

NEW_INPUTS = ("map_label.", "map_guidance.", "map_augment.")
"""What depends on the conditioning alone, and may be new in the run that starts."""


def initialise(net: nn.Module, source: str) -> str:
    """Load the slowest average of a checkpoint or run, for example of flow matching.

    Inputs that the source does not have, or has for other classes, start at zero: the
    network then begins as exactly what the source was.

    Returns:
        what was taken, in a line.
    Raises:
        CheckpointError: it is not a checkpoint, or its network is another one.
    """
    found = checkpoint.read(Path(source))
    own = net.state_dict()
    given = {k: torch.from_numpy(v) for k, v in found.tensors().items()}
    fresh = [k for k, v in own.items() if k not in given or given[k].shape != v.shape]
    stray = [k for k in given if k not in own and not k.startswith(NEW_INPUTS)]
    for name in [k for k in fresh if not k.startswith(NEW_INPUTS)] + stray:
        mine = list(own[name].shape) if name in own else "nothing"
        theirs = list(given[name].shape) if name in given else "nothing"
        raise CheckpointError(
            f"init_from {found.path}: {name} is {theirs} there and {mine} here; "
            "set network to that of the checkpoint (mmf inspect shows it)"
        )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(torch.zeros_like(value) if name in fresh else given[name])
    new = f", new and zero: {', '.join(fresh)}" if fresh else ""
    return f"weights of {found.path}, {found.default_weights()}{new}"

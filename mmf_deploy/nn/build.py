"""From a configuration, or a checkpoint, to a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from mmf_deploy.checkpoint import Checkpoint
from mmf_deploy.errors import CheckpointError, ConfigError
from mmf_deploy.nn.config import NetworkConfig
from mmf_deploy.nn.mlp import MLP
from mmf_deploy.nn.unet import UNet
from mmf_deploy.spec import SampleSpec

NETWORKS: dict[str, Callable[[SampleSpec, Any], nn.Module]] = {"unet": UNet, "mlp": MLP}
_CONFIG: TypeAdapter[Any] = TypeAdapter(NetworkConfig)


def build_network(spec: SampleSpec, config: Mapping[str, Any]) -> nn.Module:
    """A freshly initialised network.

    Args:
        config: as under ``network:`` in a recipe; ``type`` names an entry of ``NETWORKS``.
    Raises:
        ConfigError: the configuration is not valid or does not fit the data.
    """
    try:
        parsed = _CONFIG.validate_python(dict(config))
    except ValidationError as e:
        raise ConfigError(f"network: {e.errors()[0]['msg']} at {e.errors()[0]['loc']}") from e
    if spec.is_image != (parsed.type == "unet"):
        raise ConfigError(
            f"network.type {parsed.type!r} does not fit samples of shape {spec.shape}"
        )
    return NETWORKS[parsed.type](spec, parsed)


def network_from(checkpoint: Checkpoint, weights: str | None = None) -> nn.Module:
    """The network of a checkpoint with its weights, in evaluation mode, on the CPU.

    Args:
        weights: "model" or the name of an average; the slowest average if not given.
    Raises:
        CheckpointError: the weights do not fit the network.
    """
    network = build_network(checkpoint.spec, checkpoint.network)
    state = {k: torch.from_numpy(v) for k, v in checkpoint.tensors(weights).items()}
    try:
        network.load_state_dict(state)
    except RuntimeError as e:
        reason = " ".join(str(e).split())[:300]
        raise CheckpointError(f"{checkpoint.path}: weights do not fit the network: {reason}") from e
    return network.eval().requires_grad_(False)

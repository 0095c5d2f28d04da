"""A tiny random UNet as a checkpoint, and its export: real files of both kinds, made once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmf_deploy import bundle, checkpoint
from mmf_deploy.spec import SampleSpec

SPEC = SampleSpec(shape=(1, 8, 8), classes=3)
NETWORK = {
    "type": "unet",
    "model_channels": 8,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "zero_init": 1.0,
}


@pytest.fixture(scope="session")
def unet_run(tmp_path_factory) -> Path:
    """A run with one checkpoint of a randomly initialised UNet: 8 × 8 images, three classes."""
    import torch

    from mmf_deploy.nn.build import build_network

    run = tmp_path_factory.mktemp("unet") / "run"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = build_network(SPEC, NETWORK).state_dict()
    weights = {name: tensor.numpy() for name, tensor in state.items()}
    checkpoint.write(
        run / "checkpoints",
        step=12,
        spec=SPEC,
        network=NETWORK,
        # the average must be told from the model: half its weights
        weights={
            "model": weights,
            "ema-0.99": {k: v * np.float32(0.5) for k, v in weights.items()},
        },
        config={"name": "tiny", "objective": {"name": "mmf"}},
        meta={"name": "tiny", "seed": 0, "versions": {}},
    )
    return run


@pytest.fixture(scope="session")
def unet_bundle(unet_run, shared) -> bundle.Bundle:
    """The bundle exported from ``unet_run``."""

    def export(path: Path) -> None:
        from mmf_deploy.export import measurements
        from mmf_deploy.export.assemble import Request, export_bundle

        with pytest.MonkeyPatch.context() as patch:
            # three calls and not a second of them: the tests judge no time
            median_ms = measurements.median_ms
            patch.setattr(measurements, "median_ms", lambda run, *_: median_ms(run, 0.0, 3))
            export_bundle(Request(source=unet_run, out=path / "bundle", samples=80))

    return bundle.load(shared("unet", export) / "bundle")

"""A small random checkpoint, exported once for all tests of the stage."""

import numpy as np
import pytest
import torch
from mmf_deploy.export.assemble import Request, export_bundle

from mmf_deploy import checkpoint
from mmf_deploy.nn.build import build_network
from mmf_deploy.spec import SampleSpec

UNET = {"type": "unet", "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1,
        "attn_resolutions": [4], "zero_init": 1.0}  # fmt: skip
MLP = {"type": "mlp", "width": 16, "depth": 2, "zero_init": 1.0}
SPECS = {
    "conditional": (SampleSpec(shape=(1, 8, 8), classes=3), UNET),
    "unconditional": (SampleSpec(shape=(3, 8, 8)), UNET),
    "guided": (SampleSpec(shape=(1, 8, 8), classes=3, guidance=(1.0, 4.0)), UNET),
    "vector": (SampleSpec(shape=(2,)), MLP),
}


def write_checkpoint(folder, name):
    spec, network = SPECS[name]
    torch.manual_seed(0)
    net = build_network(spec, network)
    # a trained network is no random one: samples of the order of the data
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(0.7)
    weights = {k: v.numpy() for k, v in net.state_dict().items()}
    return checkpoint.write(
        folder / name / "checkpoints",
        step=1,
        spec=spec,
        network=network,
        weights={"model": weights, "ema-0.9": {k: np.asarray(v) for k, v in weights.items()}},
        config={"name": name, "objective": {"name": "mmf"}},
        meta={"name": name, "seed": 0, "versions": {}},
    )


@pytest.fixture(scope="session", params=SPECS)
def exported(request, tmp_path_factory):
    """(checkpoint, bundle) of every kind of generator."""
    folder = tmp_path_factory.mktemp("exported")
    source = write_checkpoint(folder, request.param)
    bundle, _ = export_bundle(Request(source, folder / "bundle"))
    return checkpoint.read(source), bundle

"""The UNet is the published one: weights, names and arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from mmf_deploy.errors import ConfigError
from mmf_deploy.nn.build import build_network
from mmf_deploy.nn.config import UNetConfig
from mmf_deploy.spec import SampleSpec

REFERENCE = Path(__file__).parents[3] / "shared" / "reference"
CIFAR10 = SampleSpec(shape=(3, 32, 32))

needs_reference = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason="the reference weights (../shared/reference) are not here"
)


def cifar10_network(**changes):
    """The published size, without memory for its weights."""
    with torch.device("meta"):
        return build_network(CIFAR10, {"type": "unet", **changes})


def parameters(net) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.fixture(scope="module")
def small():
    """The small reference: its tensors, and a network with its weights."""
    with safe_open(REFERENCE / "songunet_small.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        facts = json.loads(file.metadata()["config"])
    side = facts["img_resolution"]
    names = ("model_channels", "channel_mult", "num_blocks", "attn_resolutions", "augment_dim")
    config = {"type": "unet", **{name: facts[name] for name in names}}
    net = build_network(SampleSpec(shape=(3, side, side)), config).eval()
    weights = "weights."
    state = {k.removeprefix(weights): v for k, v in tensors.items() if k.startswith(weights)}
    net.load_state_dict(state, strict=True)
    return net, tensors


@needs_reference
@torch.no_grad()
def test_reference_velocity_is_reproduced(small):
    net, known = small
    u = net(known["x"], known["r"], known["t"])
    torch.testing.assert_close(u, known["u"], rtol=0, atol=1e-5)


@needs_reference
@torch.no_grad()
def test_reference_velocity_with_augmentation_labels_is_reproduced(small):
    net, known = small
    u = net(known["x"], known["r"], known["t"], augment=known["augment_labels"])
    torch.testing.assert_close(u, known["u_augmented"], rtol=0, atol=1e-5)
    assert (known["u_augmented"] - known["u"]).abs().max() > 1e-3


@needs_reference
def test_cifar10_weights_have_the_published_names_and_shapes():
    published = json.loads((REFERENCE / "songunet_cifar10_keys.json").read_text())
    state = cifar10_network(augment_dim=6).state_dict()
    assert len(published) == 425
    assert {name: list(tensor.shape) for name, tensor in state.items()} == published


def test_default_configuration_is_the_published_cifar10_network():
    assert UNetConfig() == UNetConfig(
        model_channels=128, channel_mult=(2, 2, 2), num_blocks=4, attn_resolutions=(16,)
    )
    augmented = cifar10_network(augment_dim=6)
    assert parameters(augmented) == 55_932_419
    assert len(augmented.state_dict()) == 425
    assert parameters(cifar10_network()) == 55_932_419 - 6 * 512


def test_label_and_guidance_add_one_row_a_class_and_one_linear_map():
    plain, width = parameters(cifar10_network()), 4 * 128
    with torch.device("meta"):
        spec = SampleSpec(shape=(3, 32, 32), classes=10, guidance=(1, 4))
        full = build_network(spec, {"type": "unet"})
    assert parameters(full) == plain + (10 + 1) * width + width // 2 * width


def test_digits_size_is_reached_by_configuration_alone():
    config = {"type": "unet", "model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1}
    net = build_network(SampleSpec(shape=(1, 8, 8), classes=10), config)
    assert 100_000 < parameters(net) < 300_000


@pytest.mark.parametrize(
    ("side", "levels"), [(9, 2), (4, 4), (6, 3), (30, 3)], ids=lambda n: str(n)
)
def test_image_that_cannot_be_halved_often_enough_is_refused(side, levels):
    with pytest.raises(ConfigError, match=f"{levels} levels.*divisible by {2 ** (levels - 1)}"):
        build_network(
            SampleSpec(shape=(3, side, side)), {"type": "unet", "channel_mult": [1] * levels}
        )


def test_image_that_is_not_square_is_refused():
    with pytest.raises(ConfigError, match=r"must be square.*8×16"):
        build_network(SampleSpec(shape=(1, 8, 16)), {"type": "unet", "channel_mult": [1]})


@pytest.mark.parametrize("base", [4, 20, 36, 48, 132])
def test_every_width_that_is_a_multiple_of_four_works(base):
    config = {"type": "unet", "model_channels": base, "channel_mult": [1, 2], "num_blocks": 1}
    with torch.device("meta"):
        net = build_network(SampleSpec(shape=(1, 8, 8)), config)
        x, t = torch.empty(2, 1, 8, 8), torch.empty(2)
        assert net(x, t, t).shape == x.shape


def test_resampling_keeps_the_mean_of_a_constant_image():
    from mmf_deploy.nn.unet import Conv2d

    x = torch.full((1, 2, 16, 16), 3.0)
    for direction, side in (("up", 32), ("down", 8)):
        layer = Conv2d(2, 2, 1, **{direction: True})
        with torch.no_grad():
            layer.weight.copy_(torch.eye(2)[:, :, None, None])
            y = layer(x)
        assert y.shape == (1, 2, side, side)
        # the border sees the zero padding
        inner = y[:, :, 2:-2, 2:-2]
        torch.testing.assert_close(inner, torch.full_like(inner, 3.0))

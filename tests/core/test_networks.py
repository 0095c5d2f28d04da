"""What every network of NETWORKS does with times, labels and guidance."""

from __future__ import annotations

import math

import pytest
import torch

from mmf_deploy import checkpoint
from mmf_deploy.errors import CheckpointError, ConfigError
from mmf_deploy.nn.build import NETWORKS, build_network, network_from
from mmf_deploy.spec import SampleSpec

SHAPES = {"unet": (1, 8, 8), "mlp": (5,)}
CONFIGS = {
    "unet": {"type": "unet", "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1},
    "mlp": {"type": "mlp", "width": 16, "depth": 2},
}
BATCH = 4


@pytest.fixture(params=NETWORKS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def build(kind):
    """Builds a random network whose output is not all zero."""

    def build(**conditioning):
        torch.manual_seed(0)
        spec = SampleSpec(shape=SHAPES[kind], **conditioning)
        return build_network(spec, {**CONFIGS[kind], "zero_init": 1.0}).eval()

    return build


@pytest.fixture
def inputs(kind):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, *SHAPES[kind], generator=generator)
    t = torch.tensor([0.1, 0.5, 0.9, 1.0])
    return x, t * torch.tensor([0.0, 1.0, 0.3, 0.0]), t


def differs(a, b) -> torch.Tensor:
    return (a - b).abs().flatten(1).amax(1) > 1e-4


@torch.no_grad()
def test_velocity_has_the_shape_of_the_data_and_depends_on_both_times(build, inputs):
    net = build()
    x, r, t = inputs
    u = net(x, r, t)
    assert (u.shape, u.dtype) == (x.shape, torch.float32)
    assert differs(u, net(x, r + 0.05, t)).all()
    assert differs(u, net(x, r, t + 0.05)).all()


def test_times_enter_as_the_sines_of_t_and_of_the_interval(build, inputs):
    net = build()
    _, r, t = inputs
    e = net.condition(r, t, None, None, None)
    half = e.shape[1] // 4
    for row, (r_k, t_k) in enumerate(zip(r.tolist(), t.tolist(), strict=True)):
        frequencies = [10000 ** (-k / (half - 1)) for k in range(half)]
        expected = [
            f(a * w) for a in (t_k, t_k - r_k) for f in (math.sin, math.cos) for w in frequencies
        ]
        torch.testing.assert_close(e[row], torch.tensor(expected), rtol=0, atol=1e-6)


@torch.no_grad()
def test_each_label_changes_the_velocity(build, inputs):
    net = build(classes=3)
    u = [net(*inputs, label=torch.full((BATCH,), c)) for c in range(4)]
    for a in range(4):
        for b in range(a):
            assert differs(u[a], u[b]).all()


@torch.no_grad()
def test_no_label_means_the_null_label(build, inputs):
    net = build(classes=3)
    null = net(*inputs, label=torch.full((BATCH,), 3))
    torch.testing.assert_close(net(*inputs), null, rtol=0, atol=0)


@torch.no_grad()
def test_each_guidance_scale_changes_the_velocity_and_none_means_one(build, inputs):
    net = build(classes=3, guidance=(1, 4))
    label = torch.zeros(BATCH, dtype=torch.int64)
    one = net(*inputs, label, torch.ones(BATCH))
    torch.testing.assert_close(net(*inputs, label), one, rtol=0, atol=1e-5)
    assert differs(one, net(*inputs, label, torch.full((BATCH,), 1.5))).all()
    mixed = net(*inputs, label, torch.tensor([1.0, 3.0, 1.0, 3.0]))
    assert differs(one, mixed).tolist() == [False, True, False, True]


@torch.no_grad()
def test_one_time_for_all_equals_the_same_time_for_each(build, inputs):
    net = build(classes=3)
    x, label = inputs[0], torch.tensor([0, 1, 2, 3])
    r, t = torch.tensor([0.25]), torch.tensor([0.75])
    expected = net(x, r.expand(BATCH), t.expand(BATCH), label)
    torch.testing.assert_close(net(x, r, t, label), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_velocity_does_not_depend_on_batch_neighbours(build, inputs):
    net = build(classes=3)
    label = torch.tensor([0, 1, 2, 3])
    together = net(*inputs, label)
    for k in range(BATCH):
        row = slice(k, k + 1)
        alone = net(*(a[row] for a in inputs), label[row])
        torch.testing.assert_close(alone, together[row], rtol=0, atol=1e-5)


def test_network_is_differentiable_in_forward_mode(build, inputs):
    net = build(classes=3)
    tangents = tuple(torch.ones_like(a) for a in inputs)
    _, derivative = torch.func.jvp(net, inputs, tangents)
    with torch.no_grad():
        up = net(*(a + 1e-3 for a in inputs))
        down = net(*(a - 1e-3 for a in inputs))
    torch.testing.assert_close(derivative, (up - down) / 2e-3, rtol=0.02, atol=0.02)


def test_fresh_network_is_nearly_zero_so_that_training_starts_at_the_noise(kind, inputs):
    torch.manual_seed(0)
    net = build_network(SampleSpec(shape=SHAPES[kind]), CONFIGS[kind])
    assert net(*inputs).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("shape", "config", "message"),
    [
        ((5,), {"type": "unet"}, "'unet' does not fit samples of shape"),
        ((1, 8, 8), {"type": "mlp"}, "'mlp' does not fit samples of shape"),
        ((1, 8, 8), {"type": "vit"}, "'vit'.*'unet', 'mlp'"),
        ((1, 8, 8), {}, "type"),
        ((1, 8, 8), {"type": "unet", "chanel_mult": [1]}, "chanel_mult"),
        ((1, 8, 8), {"type": "unet", "channel_mult": []}, "channel_mult"),
        ((1, 8, 8), {"type": "unet", "channel_mult": [1, 0]}, "channel_mult"),
        ((1, 8, 8), {"type": "unet", "model_channels": 6}, "model_channels"),
        ((1, 8, 8), {"type": "unet", "dropout": 1.0}, "dropout"),
        ((5,), {"type": "mlp", "width": -8}, "width"),
    ],
)
def test_configuration_that_cannot_be_built_is_refused_with_the_key(shape, config, message):
    with pytest.raises(ConfigError, match=message):
        build_network(SampleSpec(shape=shape), config)


@pytest.mark.parametrize(("name", "scale"), [("model", 1.0), ("ema-0.99", 0.5), (None, 0.5)])
def test_network_of_a_checkpoint_has_its_weights_and_is_frozen(name, scale, unet_run):
    found = checkpoint.read(unet_run)
    net = network_from(found, name)
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())
    model = found.tensors("model")
    for key, tensor in net.state_dict().items():
        torch.testing.assert_close(
            tensor, torch.from_numpy(model[key]) * scale, rtol=0, atol=0, msg=key
        )


def test_weights_of_another_network_are_refused_in_one_line(unet_run, tmp_path):
    found = checkpoint.read(unet_run)
    path = checkpoint.write(
        tmp_path,
        step=1,
        spec=found.spec,
        network={**found.network, "model_channels": 16},
        weights={"model": found.tensors("model")},
        config={},
        meta={},
    )
    with pytest.raises(CheckpointError, match="weights do not fit the network") as caught:
        network_from(checkpoint.read(path))
    assert "\n" not in str(caught.value)

"""A py-meanflow checkpoint becomes a run whose samples are those of the published arithmetic."""

import argparse
import json
import math
import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from mmf_deploy.export.assemble import Request, export_bundle
from mmf_deploy.export.importers.cli import app
from mmf_deploy.export.importers.unet_shapes import infer_unet
from safetensors import safe_open
from typer.testing import CliRunner

from mmf_deploy import bundle as bundles
from mmf_deploy import checkpoint, files
from mmf_deploy.errors import CheckpointError, ConfigError
from mmf_deploy.nn.build import build_network, network_from
from mmf_deploy.nn.sampler import Sampler
from mmf_deploy.noise import gaussian_batch
from mmf_deploy.spec import SampleSpec

REFERENCE = Path(__file__).parents[3] / "shared" / "reference"
needs_reference = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason="the reference weights (../shared/reference) are not here"
)
SPEC = SampleSpec(shape=(3, 8, 8))
UNET = {"type": "unet", "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1,
        "attn_resolutions": [4], "augment_dim": 6}  # fmt: skip
GROUPS = ("net", "net_ema", "net_ema1", "net_ema2")
AVERAGES = {"ema-0.9999": "net_ema", "ema-0.99995": "net_ema1", "ema-0.9996": "net_ema2"}
ARGS = {"arch": "unet", "dataset": "cifar10", "dropout": 0.2, "use_edm_aug": True,
        "ema_decay": 0.9999, "ema_decays": [0.99995, 0.9996], "optimizer_betas": [0.9, 0.999],
        "data_path": "/home/someone/data", "distributed": False, "seed": 0}  # fmt: skip


def own_state(seed, spec=SPEC, **changes):
    """Weights that our own UNet would have after a training that made them small."""
    torch.manual_seed(seed)
    net = build_network(spec, {**UNET, "zero_init": 1.0, **changes})
    return {k: v * 0.7 if "filter" not in k else v for k, v in net.state_dict().items()}


def content(states, **args):
    """The dictionary that py-meanflow saves."""
    model = {f"{g}.{k}": v for g, state in states.items() for k, v in state.items()}
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    return {
        "model": {"num_updates": torch.tensor(800_000), **model},
        "optimizer": optimizer.state_dict(),
        "lr_schedule": schedule.state_dict(),
        "epoch": 15_999,
        "args": argparse.Namespace(**{**ARGS, **args}),
    }


def states(**changes):
    return {name: own_state(seed, **changes) for seed, name in enumerate(GROUPS)}


def run_import(*arguments):
    """`mmf import py-meanflow …`; raises what the command raises."""
    return (
        CliRunner()
        .invoke(app, ["py-meanflow", *map(str, arguments)], catch_exceptions=False)
        .output
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """(file, the states in it)."""
    path = tmp_path_factory.mktemp("public") / "cifar10.pth"
    torch.save(content(states()), path)
    return path, states()


@pytest.fixture(scope="module")
def run(source, tmp_path_factory):
    """The file, imported by the command."""
    out = tmp_path_factory.mktemp("runs") / "public"
    run_import(source[0], "--out", out)
    return out


def resampled(weights, name, x, direction):
    kernel = torch.outer(*[torch.tensor([1.0, 3.0, 3.0, 1.0])] * 2) / 64
    kernel = kernel.expand(x.shape[1], 1, 4, 4)
    if direction == "up":
        x = F.conv_transpose2d(x, 4 * kernel, stride=2, padding=1, groups=x.shape[1])
    if direction == "down":
        x = F.conv2d(x, kernel, stride=2, padding=1, groups=x.shape[1])
    weight = weights[f"{name}.weight"]
    return (
        F.conv2d(x, weight, padding=weight.shape[2] // 2) + weights[f"{name}.bias"][:, None, None]
    )


def normed(weights, name, x):
    groups = min(32, x.shape[1] // 4)
    return F.group_norm(x, groups, weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)


def block(weights, name, x, e, direction=None):
    """One residual block, read off its weights (songunet.md)."""
    y = resampled(weights, f"{name}.conv0", F.silu(normed(weights, f"{name}.norm0", x)), direction)
    shift = e @ weights[f"{name}.affine.weight"].T + weights[f"{name}.affine.bias"]
    y = F.silu(normed(weights, f"{name}.norm1", y + shift[:, :, None, None]))
    y = resampled(weights, f"{name}.conv1", y, None)
    if f"{name}.skip.weight" in weights:
        x = resampled(weights, f"{name}.skip", x, direction)
    x = (x + y) / math.sqrt(2)
    if f"{name}.qkv.weight" in weights:
        qkv = resampled(weights, f"{name}.qkv", normed(weights, f"{name}.norm2", x), None)
        q, k, v = qkv.flatten(2).tensor_split(3, dim=1)
        scores = torch.einsum("bcq,bck->bqk", q, k) / math.sqrt(x.shape[1])
        attended = torch.einsum("bqk,bck->bcq", scores.softmax(-1), v).reshape(x.shape)
        x = (x + resampled(weights, f"{name}.proj", attended, None)) / math.sqrt(2)
    return x


def block_names(weights):
    """The modules of encoder and decoder, in the order in which they are called."""
    names = {".".join(key.split(".")[:2]) for key in weights}
    sides = sorted({int(re.search(r"\d+", n)[0]) for n in names if n[:4] == "enc."}, reverse=True)
    encoder, decoder = [], []
    for side in sides:
        place = f"{side}x{side}"
        first = f"enc.{place}_conv" if side == sides[0] else f"enc.{place}_down"
        encoder += [first, *sorted(n for n in names if n.startswith(f"enc.{place}_block"))]
        starts = ["in0", "in1"] if side == sides[-1] else ["up"]
        blocks = sorted(n for n in names if n.startswith(f"dec.{place}_block"))
        decoder = [*(f"dec.{place}_{s}" for s in starts), *blocks, *decoder]
    ends = [f"dec.{sides[0]}x{sides[0]}_aux_{layer}" for layer in ("norm", "conv")]
    assert {*encoder, *decoder, *ends} == {n for n in names if n[:4] in ("enc.", "dec.")}
    return encoder, [*decoder, *ends]


def published_velocity(weights, x, t, h, augment=None):
    """The published network as a function of its weights, written from its description."""
    base = weights[f"enc.{x.shape[2]}x{x.shape[2]}_conv.weight"].shape[0]
    frequency = 10000 ** (-torch.arange(base) / (base - 1))
    e = torch.cat([f(a[:, None] * frequency) for a in (t, h) for f in (torch.sin, torch.cos)], 1)
    if augment is not None:
        e = e + augment @ weights["map_augment.weight"].T
    for layer in ("map_layer0", "map_layer1"):
        e = F.silu(e @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"])
    encoder, decoder = block_names(weights)
    skips = []
    for name in encoder:
        if name.endswith("_conv"):
            x = resampled(weights, name, x, None)
        else:
            x = block(weights, name, x, e, "down" if name.endswith("_down") else None)
        skips.append(x)
    for name in decoder:
        if name.endswith("_aux_norm"):
            x = F.silu(normed(weights, name, x))
        elif name.endswith("_aux_conv"):
            x = resampled(weights, name, x, None)
        else:
            x = torch.cat([x, skips.pop()], 1) if "_block" in name else x
            x = block(weights, name, x, e, "up" if name.endswith("_up") else None)
    return x


def published_samples(weights, noise):
    """x1 − u(x1, 0, 1)."""
    one = torch.ones(len(noise))
    return noise - published_velocity(weights, noise, one, one)


def noise(count, shape=SPEC.shape):
    return torch.from_numpy(gaussian_batch(range(count), shape))


@pytest.mark.parametrize(("name", "group"), {"model": "net", **AVERAGES}.items())
@torch.inference_mode()
def test_every_set_of_weights_samples_as_published(run, source, name, group):
    sampler = Sampler(network_from(checkpoint.read(run), name))
    expected = published_samples(source[1][group], noise(4))
    torch.testing.assert_close(sampler(noise(4))[0], expected, rtol=0, atol=1e-4)
    others = [published_samples(source[1][g], noise(4)) for g in GROUPS if g != group]
    assert all((expected - other).abs().max() > 0.01 for other in others)


@torch.inference_mode()
def test_bundle_samples_as_published_with_the_slowest_average(run, source, tmp_path):
    export_bundle(Request(run, tmp_path / "bundle"))
    bundle = bundles.load(tmp_path / "bundle")
    session = onnxruntime.InferenceSession(bundle.file(bundle.variant()))
    sample = session.run(["sample"], {"noise": noise(5).numpy()})[0]
    expected = published_samples(source[1]["net_ema1"], noise(5))
    np.testing.assert_allclose(sample, expected, rtol=0, atol=1e-4)
    assert bundle.manifest.source.weights == "ema-0.99995"
    assert bundle.manifest.source.step == 800_000
    # paths of the machine that trained it are nobody's business
    assert "/home/someone" not in (bundle.path / "bundle.json").read_text()


@needs_reference
@torch.inference_mode()
def test_reference_weights_give_the_recorded_velocity(tmp_path):
    with safe_open(REFERENCE / "songunet_small.safetensors", "pt") as file:
        known = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    weights = {k.removeprefix("weights."): v for k, v in known.items() if k[:8] == "weights."}
    torch.save(content({"net": weights, "net_ema": weights}), tmp_path / "small.pth")
    run_import(tmp_path / "small.pth", "--out", tmp_path / "run", "--image-size", 16)
    net = network_from(checkpoint.read(tmp_path / "run"))
    x, r, t, augment = known["x"], known["r"], known["t"], known["augment_labels"]
    torch.testing.assert_close(net(x, r, t), known["u"], rtol=0, atol=1e-5)
    torch.testing.assert_close(
        net(x, r, t, augment=augment), known["u_augmented"], rtol=0, atol=1e-5
    )
    for labels, expected in ((None, known["u"]), (augment, known["u_augmented"])):
        found = published_velocity(weights, x, t, t - r, labels)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    expected = published_samples(weights, x)
    torch.testing.assert_close(Sampler(net)(x)[0], expected, rtol=0, atol=1e-4)


@needs_reference
def test_published_cifar10_shapes_are_recognised():
    published = json.loads((REFERENCE / "songunet_cifar10_keys.json").read_text())
    spec, network = infer_unet({k: tuple(v) for k, v in published.items()}, "net.")
    assert spec == SampleSpec(shape=(3, 32, 32))
    assert network == {"type": "unet", "model_channels": 128, "channel_mult": [2, 2, 2],
                       "num_blocks": 4, "attn_resolutions": [16], "augment_dim": 6}  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [
        {"model_channels": 128, "channel_mult": [2, 2, 2], "num_blocks": 4,
         "attn_resolutions": [16], "augment_dim": 6},
        {"model_channels": 12, "channel_mult": [3], "num_blocks": 2, "attn_resolutions": [],
         "augment_dim": 0},
        {"model_channels": 8, "channel_mult": [1, 2, 1, 4], "num_blocks": 3,
         "attn_resolutions": [32, 8], "augment_dim": 9},
    ],
    ids=["published", "one level", "four levels"],
)  # fmt: skip
@pytest.mark.parametrize("spec", [SampleSpec(shape=(3, 32, 32)),
                                  SampleSpec(shape=(1, 64, 64), classes=7)], ids=str)  # fmt: skip
def test_configuration_is_read_off_names_and_shapes(config, spec):
    with torch.device("meta"):
        state = build_network(spec, {"type": "unet", **config}).state_dict()
    found = infer_unet({k: tuple(v.shape) for k, v in state.items()}, "")
    assert found == (spec, {"type": "unet", **config})


def test_run_says_where_it_came_from(run, source):
    found = checkpoint.read(run)
    assert found.step == 800_000
    assert found.emas == ["ema-0.9996", "ema-0.9999", "ema-0.99995"]
    assert found.default_weights() == "ema-0.99995"
    origin = {"format": "py-meanflow", "file": "cifar10.pth", "epoch": 15_999,
              "sha256": files.sha256(source[0])}  # fmt: skip
    assert found.config["imported"] == origin
    assert found.meta["imported"] == {**origin, "args": ARGS}
    assert found.network["dropout"] == 0.2


def test_one_average_is_taken_alone(source, tmp_path):
    run_import(source[0], "--ema", "0.9999", "--out", tmp_path / "run")
    found = checkpoint.read(tmp_path / "run")
    assert found.emas == ["ema-0.9999"]
    with pytest.raises(ConfigError, match=r"--ema 0\.5: .*there are 0\.9996, 0\.9999, 0\.99995"):
        run_import(source[0], "--ema", "0.5", "--out", tmp_path / "other")
    with pytest.raises(ConfigError, match="--ema fast: expected all or a decay"):
        run_import(source[0], "--ema", "fast", "--out", tmp_path / "other")


def test_what_is_in_the_way_stays(run, source, tmp_path):
    before = files.sha256(run / "checkpoints" / "step-00800000" / "model.safetensors")
    with pytest.raises(ConfigError, match="exists; choose another --out"):
        run_import(source[0], "--out", run)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not made by mmf import"):
        run_import(source[0], "--out", tmp_path / "mine", "--force")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"
    run_import(source[0], "--out", run, "--force")
    assert files.sha256(run / "checkpoints" / "step-00800000" / "model.safetensors") == before


def test_classes_are_those_of_the_label_rows(tmp_path):
    spec = SampleSpec(shape=(3, 8, 8), classes=5)
    torch.save(content({"net": own_state(0, spec)}), tmp_path / "a.pth")
    run_import(tmp_path / "a.pth", "--classes", 5, "--out", tmp_path / "run")
    assert checkpoint.read(tmp_path / "run").spec == spec
    with pytest.raises(CheckpointError, match="found 5 classes, expected --classes 10"):
        run_import(tmp_path / "a.pth", "--classes", 10, "--out", tmp_path / "other")


@torch.inference_mode()
def test_network_without_augmentation_labels_is_taken_if_args_agrees(tmp_path):
    state = own_state(0, augment_dim=0)
    torch.save(content({"net": state}, use_edm_aug=False), tmp_path / "a.pth")
    run_import(tmp_path / "a.pth", "--out", tmp_path / "run")
    found = checkpoint.read(tmp_path / "run")
    assert found.network["augment_dim"] == 0
    sample = Sampler(network_from(found))(noise(3))[0]
    torch.testing.assert_close(sample, published_samples(state, noise(3)), rtol=0, atol=1e-4)
    torch.save(content({"net": state}, use_edm_aug=True), tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match="use_edm_aug: found True, expected False"):
        run_import(tmp_path / "b.pth", "--out", tmp_path / "other")


def changed(group="net_ema1", drop=None, add=None, args=None, model=None):
    """The content of a file in which one thing is wrong."""
    made = states()
    if drop:
        del made[group][drop]
    made[group] |= add or {}
    whole = content(made, **(args or {}))
    whole["model"] |= model or {}
    return whole


WRONG = {
    "an entry of another shape": (
        lambda: changed("net", add={"enc.8x8_block0.affine.weight": torch.zeros(8, 3)}),
        r"net\.enc\.8x8_block0\.affine\.weight: found \[8, 3\], expected \[8, 32\]",
    ),
    "a missing entry": (
        lambda: changed("net", drop="dec.4x4_in0.qkv.bias"),
        r"net\.dec\.4x4_in0\.qkv\.bias: found nothing, expected \[48\]",
    ),
    "an average that is another network": (
        lambda: changed(drop="map_layer0.bias"),
        r"net_ema1\.map_layer0\.bias: found nothing, expected \[32\]",
    ),
    "the noise embedding of EDM": (
        lambda: changed("net", add={"map_layer0.weight": torch.zeros(32, 8)}),
        r"net\.map_layer0\.weight: found \[32, 8\], expected \[32, 32\]",
    ),
    "labels as a linear map": (
        lambda: changed("net", add={"map_label.weight": torch.zeros(32, 10)}),
        r"net\.map_label\.weight: found \[32, 10\], expected \[classes \+ 1, 32\]",
    ),
    "five channels": (
        lambda: changed("net", add={"enc.8x8_conv.weight": torch.zeros(8, 5, 3, 3)}),
        r"net\.enc\.8x8_conv\.weight: found \[8, 5, 3, 3\], expected \[channels, 1 or 3, 3, 3\]",
    ),
    "weights that are not numbers": (
        lambda: changed(add={"map_layer0.bias": torch.full((32,), torch.nan)}),
        r"net_ema1\.map_layer0\.bias: found numbers that are not finite",
    ),
    "args of another architecture": (
        lambda: changed(args={"arch": "dit"}),
        r"args\.arch: found dit, expected unet",
    ),
    "args without augmentation labels": (
        lambda: changed(args={"use_edm_aug": False}),
        r"args\.use_edm_aug: found False, expected True",
    ),
    "args of another width": (
        lambda: changed(args={"model_channels": 64}),
        r"args\.model_channels: found 64, expected 8",
    ),
    "args of other levels": (
        lambda: changed(args={"channel_mult": [2, 2, 2]}),
        r"args\.channel_mult: found \[2, 2, 2\], expected \[1, 2\]",
    ),
    "args with too few decays": (
        lambda: changed(args={"ema_decays": [0.99995]}),
        r"args\.ema_decays\[1\]: found None, expected the decay of net_ema2",
    ),
    "another kind of entry": (
        lambda: changed(model={"vae.weight": torch.zeros(1)}),
        r"model\.vae\.weight: found a Tensor, expected weights under net\.",
    ),
    "a plain state dict": (
        lambda: own_state(0),
        r"found keys .*and \d+ more, expected a py-meanflow checkpoint.*mmf import safetensors",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_mismatch_is_one_line_with_the_entry_what_was_found_and_what_was_expected(what, tmp_path):
    make, message = WRONG[what]
    torch.save(make(), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=message) as caught:
        run_import(tmp_path / "a.pth", "--out", tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'a.pth'}: ")
    assert not (tmp_path / "run").exists()


def test_another_image_size_is_refused(source, tmp_path):
    with pytest.raises(CheckpointError, match="images of 8 pixels, expected --image-size 32"):
        run_import(source[0], "--image-size", 32, "--out", tmp_path / "run")


def test_file_without_args_has_the_published_decays(tmp_path):
    whole = content(states())
    del whole["args"], whole["epoch"]
    torch.save(whole, tmp_path / "a.pth")
    run_import(tmp_path / "a.pth", "--out", tmp_path / "run")
    found = checkpoint.read(tmp_path / "run")
    assert found.emas == ["ema-0.9996", "ema-0.9999", "ema-0.99995"]
    expected = own_state(2)["map_layer0.weight"]
    np.testing.assert_array_equal(found.tensors("ema-0.99995")["map_layer0.weight"], expected)


def test_half_precision_weights_become_float32(tmp_path):
    half = {k: v.bfloat16() for k, v in own_state(0).items()}
    torch.save(content({"net": half}), tmp_path / "a.pth")
    run_import(tmp_path / "a.pth", "--out", tmp_path / "run")
    found = checkpoint.read(tmp_path / "run").tensors()["map_layer0.weight"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, half["map_layer0.weight"].float())

"""`mmf sample`: steps, guidance, the null label, trajectories and weights, on small networks."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmf_deploy import checkpoint, cli, images, sampling
from mmf_deploy.nn.build import build_network, network_from
from mmf_deploy.nn.sampler import Sampler, time_grid
from mmf_deploy.noise import gaussian_batch
from mmf_deploy.spec import SampleSpec

UNET = {
    "type": "unet",
    "model_channels": 8,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "zero_init": 1.0,
}
MLP = {"type": "mlp", "width": 16, "depth": 1, "zero_init": 1.0}
GUIDED = SampleSpec(
    shape=(1, 8, 8), classes=3, class_names=("cat", "dog", "owl"), guidance=(1.0, 4.0)
)
GUIDED_BUNDLE = SampleSpec(shape=(1, 8, 8), classes=3, guidance=(1.0, 4.0))
VECTORS = SampleSpec(shape=(5,))
TRAINED = {"objective": {"path": "linear", "guidance": {"mode": "input", "label_dropout": 0.1}}}


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def sample(monkeypatch, capsys):
    """Runs `mmf sample` in this process."""

    def run(*args) -> Result:
        monkeypatch.setattr(sys, "argv", ["mmf", "sample", *map(str, args)])
        code = 0
        try:
            cli.main()
        except SystemExit as e:
            code = e.code or 0
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture
def array(sample, tmp_path):
    """The array that `mmf sample` writes."""

    def run(*args) -> np.ndarray:
        out = tmp_path / "samples.npy"
        result = sample(*args, "--out", out)
        assert (result.code, result.err) == (0, "")
        return np.load(out)

    return run


def write_run(run: Path, spec: SampleSpec, network: dict, config: dict) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = build_network(spec, network).state_dict()
    weights = {name: tensor.numpy() for name, tensor in state.items()}
    checkpoint.write(
        run / "checkpoints",
        step=7,
        spec=spec,
        network=network,
        weights={
            "model": weights,
            "ema-0.9": {k: v * np.float32(0.9) for k, v in weights.items()},
            "ema-0.99": {k: v * np.float32(0.8) for k, v in weights.items()},
            "optimizer": {"step": np.zeros(1, np.float32)},
        },
        config=config,
        meta={"name": "tiny", "seed": 0, "versions": {}},
    )
    return run


@pytest.fixture(scope="module")
def guided(tmp_path_factory) -> Path:
    """A run of a guided UNet with three classes, trained with label dropout."""
    return write_run(tmp_path_factory.mktemp("guided") / "run", GUIDED, UNET, TRAINED)


@pytest.fixture(scope="module")
def vectors(tmp_path_factory) -> Path:
    """A run of an MLP that makes vectors, with no classes and no guidance."""
    return write_run(tmp_path_factory.mktemp("vectors") / "run", VECTORS, MLP, {"objective": {}})


def reference(run, seeds, labels=None, scale=None, steps=1, weights=None) -> list[np.ndarray]:
    """All points of the paths, float32 [N, *shape] each, straight from the sampler."""
    found = checkpoint.read(run)
    sampler = Sampler(network_from(found, weights), time_grid(steps), found.spec.is_image)
    x1 = torch.from_numpy(gaussian_batch(seeds, found.spec.shape))
    label = None if labels is None else torch.tensor(labels)
    guidance = None if scale is None else torch.full((len(seeds),), scale)
    return [point.numpy() for point in sampler.trajectory(x1, label, guidance)]


def tiles(path: Path, columns: int) -> np.ndarray:
    """The pictures of a grid of 8 × 8 images shown eightfold, uint8 [rows, columns, 8, 8, 1]."""
    shown = np.asarray(Image.open(path))
    side, gap = 64, 2
    rows = (shown.shape[0] - gap) // (side + gap)
    assert shown.shape == (rows * (side + gap) + gap, columns * (side + gap) + gap)
    cut = shown[gap:, gap:].reshape(rows, side + gap, columns, side + gap)
    return cut[:, :side:8, :, :side:8].swapaxes(1, 2)[..., None]


def test_one_step_at_the_lowest_guidance_is_the_default(array, guided):
    expected = images.to_uint8(reference(guided, range(4), [0, 1, 2, 0], 1.0)[-1])
    for options in ((), ("--steps", 1), ("--guidance", 1), ("--steps", 1, "--guidance", "1.0")):
        np.testing.assert_array_equal(array(guided, "--seeds", "0-3", *options), expected)


def test_several_steps_are_those_of_the_sampler(array, guided):
    found = array(guided, "--seeds", "0-3", "--label", "dog", "--steps", 3)
    expected = images.to_uint8(reference(guided, range(4), [1] * 4, 1.0, steps=3)[-1])
    np.testing.assert_array_equal(found, expected)
    assert (found != array(guided, "--seeds", "0-3", "--label", "dog")).any()


def test_strip_goes_from_the_clamped_noise_to_the_image(sample, array, guided, tmp_path):
    args = (guided, "--seeds", "5,0-2", "--steps", 3)
    result = sample(*args, "--trajectory", "--out", tmp_path / "strip.png")
    assert (result.code, result.err) == (0, "")
    assert f"4 paths from {guided}: {tmp_path / 'strip.png'}" in result.out
    strip = tiles(tmp_path / "strip.png", columns=4)
    assert strip.shape == (4, 4, 8, 8, 1)
    noise = gaussian_batch([5, 0, 1, 2], GUIDED.shape)
    np.testing.assert_array_equal(strip[:, 0], images.to_uint8(noise))
    np.testing.assert_array_equal(strip[:, -1], array(*args))
    points = reference(guided, [5, 0, 1, 2], [2, 0, 1, 2], 1.0, steps=3)
    for column, point in enumerate(points):
        np.testing.assert_array_equal(strip[:, column], images.to_uint8(point))


def test_trajectory_of_one_step_is_noise_and_sample(array, guided):
    found = array(guided, "--seeds", "0-2", "--trajectory")
    assert (found.dtype, found.shape) == (np.float32, (3, 2, 1, 8, 8))
    np.testing.assert_array_equal(found, np.stack(reference(guided, range(3), [0, 1, 2], 1.0), 1))


def test_trajectory_of_vectors_is_an_array(array, vectors):
    found = array(vectors, "--seeds", "0-9", "--steps", 4, "--trajectory")
    assert (found.dtype, found.shape) == (np.float32, (10, 5, 5))
    np.testing.assert_array_equal(found, np.stack(reference(vectors, range(10), steps=4), 1))
    np.testing.assert_array_equal(found[:, -1], array(vectors, "--seeds", "0-9", "--steps", 4))


def test_guidance_changes_images_and_reaches_the_network(array, guided):
    found = array(guided, "--seeds", "0-3", "--guidance", 2.5)
    expected = images.to_uint8(reference(guided, range(4), [0, 1, 2, 0], 2.5)[-1])
    np.testing.assert_array_equal(found, expected)
    assert (found != array(guided, "--seeds", "0-3")).any()


def test_sweep_has_a_row_per_guidance_and_a_column_per_seed(sample, array, guided, tmp_path):
    args = (guided, "--seeds", "3-7", "--guidance")
    result = sample(*args, "1,2.5,4", "--out", tmp_path / "sweep.png")
    assert (result.code, result.err) == (0, "")
    assert f"15 samples from {guided}" in result.out
    assert "guidance 1, 2.5, 4" in result.out
    rows = tiles(tmp_path / "sweep.png", columns=5)
    for row, scale in zip(rows, (1, 2.5, 4), strict=True):
        np.testing.assert_array_equal(row, array(*args, scale))
    np.testing.assert_array_equal(rows, array(*args, "1,2.5,4"))


def test_bundle_takes_guidance_too(array, make_tiny_bundle, tiny_formula):
    path = make_tiny_bundle(GUIDED_BUNDLE)
    found = array(path, "--seeds", "0-3", "--label", 2, "--guidance", "1,4")
    noise, label = gaussian_batch(range(4), (1, 8, 8)), np.full(4, 2)
    for row, scale in zip(found, (1, 4), strict=True):
        expected = tiny_formula(GUIDED_BUNDLE, noise, label, np.full(4, scale))
        assert np.abs(row.astype(int) - images.to_uint8(expected)).max() <= 1


def test_null_label_is_unconditional_at_guidance_one(array, guided):
    found = array(guided, "--seeds", "0-3", "--label", "null")
    expected = images.to_uint8(reference(guided, range(4), [3] * 4, 1.0)[-1])
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(
        found, array(guided, "--seeds", "0-3", "--label", "null", "--guidance", 1)
    )


@pytest.mark.parametrize("name", ["model", "ema-0.9", "ema-0.99"])
def test_weights_are_those_named(name, array, guided):
    found = array(guided, "--seeds", "0-3", "--weights", name)
    expected = reference(guided, range(4), [0, 1, 2, 0], 1.0, weights=name)[-1]
    np.testing.assert_array_equal(found, images.to_uint8(expected))
    slowest = array(guided, "--seeds", "0-3")
    assert (found == slowest).all() == (name == "ema-0.99")


@pytest.mark.parametrize("options", [(), ("--trajectory",)])
def test_samples_do_not_depend_on_the_batches_they_are_computed_in(
    options, array, vectors, monkeypatch
):
    whole = array(vectors, "--seeds", "0-24", "--steps", 2, *options)
    monkeypatch.setattr(sampling, "BATCH", 10)
    parts = array(vectors, "--seeds", "0-24", "--steps", 2, *options)
    np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-6)


class Bar:
    """Stands in for TaskProgress and notes what it was told."""

    shown: list[tuple[int, int]]

    def __init__(self, unit: str, total: int) -> None:
        self.total = total
        Bar.shown = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def show(self, what: str, done: int) -> None:
        self.shown.append((done, self.total))


@pytest.mark.parametrize("source", ["checkpoint", "bundle"])
def test_long_sampling_counts_every_network_evaluation(
    source, array, vectors, make_tiny_bundle, monkeypatch
):
    monkeypatch.setattr(sampling, "TaskProgress", Bar)
    monkeypatch.setattr(sampling, "BATCH", 2)
    path = vectors if source == "checkpoint" else make_tiny_bundle(VECTORS)
    Bar.shown = []
    array(path, "--seeds", "0-7")
    assert Bar.shown == []
    array(path, "--seeds", "0-8")
    assert Bar.shown == [(done, 5) for done in range(6)]


@pytest.mark.parametrize("objective", [{"path": "interval"}, {"identity": "consistency"}])
@pytest.mark.parametrize(("steps", "warned"), [(1, False), (2, True)])
def test_several_steps_where_only_one_was_trained_are_warned_of(
    steps, warned, objective, sample, tmp_path
):
    run = write_run(tmp_path / "run", VECTORS, MLP, {"objective": objective})
    result = sample(run, "--seeds", "0", "--steps", steps, "--out", tmp_path / "x.npy")
    assert result.code == 0
    assert (tmp_path / "x.npy").is_file()
    assert ("2-step sampling does not hold" in result.err) == warned
    assert result.err.count("\n") == warned


def test_what_was_made_and_what_to_run_next_is_said(sample, guided, make_tiny_bundle, tmp_path):
    out = tmp_path / "x.png"
    result = sample(guided, "--seeds", "0-3", "--label", "owl", "--weights", "model", "--out", out)
    assert result.out.splitlines() == [
        f"4 samples from {guided}: {out}",
        "seeds 0-3; label owl; guidance 1; 1 step; weights model of step 7",
        f"next: mmf-export {guided} --weights model",
    ]
    path = make_tiny_bundle(SampleSpec(shape=(1, 8, 8)))
    assert sample(path, "--seeds", "7", "--out", out).out.splitlines() == [
        f"1 sample from {path}: {out}",
        "seeds 7; 1 step; variant fp32",
        f"next: mmf-serve {path}",
    ]


def assert_refused(result: Result, part: str, folder: Path) -> None:
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert part in result.err
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ("--steps 0", "expected 1 … 1000"),
        ("--steps 1001", "expected 1 … 1000"),
        ("--guidance 0.5", "expected 1 … 4"),
        ("--guidance 1,4.5", "--guidance 4.5: expected 1 … 4"),
        ("--guidance nan", "expected 1 … 4"),
        ("--guidance high", "expected a number"),
        ("--guidance 1,", "expected a number"),
        ("--guidance 2 --label null", "no class to guide to"),
        ("--guidance 1,2 --seeds 0-64", "at most 64 of each"),
        ("--guidance 1,2 --seeds 0-4095 --out x.npy", "expected 4096 in all"),
        ("--guidance 1,2 --trajectory", "expected one --guidance"),
        ("--label 3", "expected 0 … 2"),
        ("--label none", "expected 0 … 2 or a name (cat, dog, owl)"),
        ("--trajectory --seeds 0-64", "65 seeds and 1 steps: such a picture holds at most 64"),
        ("--trajectory --seeds 0 --steps 65", "at most 64 of each"),
        ("--trajectory --seeds 0-4095 --steps 1000 --out x.npy", "1.0 GiB"),
        ("--weights ema-0.999", "did you mean 'ema-0.99'?"),
        ("--weights optimizer", "has model, ema-0.9, ema-0.99"),
        ("--weights ../model", "has model, ema-0.9, ema-0.99"),
    ],
)
def test_what_a_checkpoint_cannot_do_is_refused_in_one_line_and_nothing_is_written(
    options, part, sample, guided, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mmf_deploy.sample_cli.MAX_ARRAY_BYTES", 10**9)
    assert_refused(sample(guided, *options.split()), part, tmp_path)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ("--steps 2", "whose variants (and steps) are fp32 (1); give the run or checkpoint"),
        ("--trajectory", "--trajectory: "),
        ("--weights model", "--weights: "),
        ("--label null", "expected 0 … 2"),
        ("--guidance 5", "expected 1 … 4"),
    ],
)
def test_what_a_bundle_cannot_do_is_refused_in_one_line_and_nothing_is_written(
    options, part, sample, make_tiny_bundle, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    path = make_tiny_bundle(GUIDED_BUNDLE)
    assert_refused(sample(path, *options.split()), part, tmp_path)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ("--guidance 1", "no guidance input; train one with --set objective.guidance.mode=input"),
        ("--label null", "no classes"),
        ("--trajectory", "vectors"),
    ],
)
def test_what_a_generator_of_vectors_cannot_do_is_refused(
    options, part, sample, vectors, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert_refused(sample(vectors, *options.split()), part, tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"objective": "mmf"},
        {"objective": {"name": "mmf"}},
        {"objective": {"guidance": None}},
        {"objective": {"guidance": {"label_dropout": 0.0}}},
    ],
)
def test_null_label_that_training_has_not_shown_is_refused(config, sample, tmp_path, monkeypatch):
    spec = SampleSpec(shape=(5,), classes=3)
    run = write_run(tmp_path / "made" / "run", spec, MLP, config)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    result = sample(run, "--label", "null", "--out", "x.npy")
    assert_refused(result, "trained without label dropout", tmp_path / "here")


def test_class_may_be_called_null(array, tmp_path):
    spec = SampleSpec(shape=(5,), classes=2, class_names=("zero", "null"))
    run = write_run(tmp_path / "run", spec, MLP, {"objective": {}})
    np.testing.assert_array_equal(
        array(run, "--seeds", "0-3", "--label", "null"),
        array(run, "--seeds", "0-3", "--label", "1"),
    )

"""The sources of training data: what all of them promise, and those that need no files."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from mmf_deploy.training.data import SOURCES, control, ode, ring2d
from mmf_deploy.training.data.lazy_images import LazyImages
from mmf_deploy.training.data.loading import class_labels
from mmf_deploy.training.learner import Learner
from mmf_deploy.training.processes import OneProcess
from mmf_deploy.training.read_recipe import load_config
from PIL import Image

from mmf_deploy.errors import ConfigError
from mmf_deploy.spec import SampleSpec


def colours(count, size=16):
    """uint8 [count, size, size, 3], all different."""
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def image_folder(path):
    for number, pixels in enumerate(colours(6)):
        folder = path / "images" / ("cats" if number % 2 else "dogs")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return {"source": "folder", "path": str(path / "images"), "size": 8}


def parquet(path):
    rows = []
    for pixels in colours(6):
        Image.fromarray(pixels).save(content := io.BytesIO(), "PNG")
        rows.append({"bytes": content.getvalue(), "path": None})
    table = pa.table({"img": rows, "label": [0, 1, 2, 0, 1, 2]})
    pq.write_table(table, path / "images.parquet")
    return {"source": "huggingface", "path": str(path / "images.parquet")}


def mnist(path):
    raw = path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    header = bytes.fromhex("00000803 00000006 0000001c 0000001c")
    pixels = colours(6, 28)[..., 0]
    (raw / "train-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
    labels = bytes.fromhex("00000801 00000006") + bytes([5, 0, 4, 1, 9, 2])
    (raw / "train-labels-idx1-ubyte").write_bytes(labels)
    return {"source": "torchvision", "name": "MNIST", "root": str(path), "download": "never"}


def arrays(path):
    np.savez(path / "some.npz", images=colours(6), labels=np.array([0, 1, 0, 1, 0, 1]))
    return {"source": "arrays", "path": str(path / "some.npz")}


OPTIONS = {
    "digits": lambda path: {"source": "digits"},
    "noise": lambda path: {"source": "noise", "shape": [3, 16, 16], "classes": 4},
    "folder": image_folder,
    "huggingface": parquet,
    "torchvision": mnist,
    "arrays": arrays,
    "ring2d": lambda path: {"source": "ring2d", "classes": True},
    "ode": lambda path: {"source": "ode", "supervise": "trajectory"},
    "control": lambda path: {"source": "control", "supervise": "trajectory"},
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_gives_batches_that_fit_its_spec(name, tmp_path):
    config = load_config("digits", ["evaluate=null"])
    source = config.model_copy(update={"data": OPTIONS[name](tmp_path)}).load_data()
    indices = torch.tensor([0, len(source) - 1, 0])
    source.prefetch(indices)
    batch = source.batch(indices)
    assert batch.x0.dtype == torch.float32
    assert batch.x0.shape == (3, *source.spec.shape)
    assert batch.x0.is_contiguous()
    assert torch.equal(batch.x0[0], batch.x0[2])
    assert not torch.equal(batch.x0[0], batch.x0[1])
    if source.spec.is_image:
        assert -1 <= batch.x0.min() < batch.x0.max() <= 1
    assert (batch.label is not None) == source.spec.conditional
    if batch.label is not None:
        assert batch.label.dtype == torch.int64
        assert 0 <= batch.label.min() <= batch.label.max() < source.spec.classes
        assert torch.equal(source.labels[indices], batch.label)
    else:
        assert source.labels is None
    if batch.states is not None:
        assert torch.equal(batch.states[:, 0], batch.x0)
        assert torch.equal(batch.states[:, -1], batch.x1)
    assert source.notes == ()


def test_digits_are_the_real_ones():
    source = load_config("digits").load_data()
    assert len(source) == 1797
    everything = source.batch(torch.arange(1797))
    assert torch.bincount(everything.label).min() > 170
    # the first image of the set is a zero: dark in the middle, bright around
    zero = everything.x0[0, 0]
    assert int(everything.label[0]) == 0
    assert zero[3:5, 3].max() < 0 < zero[3, 2]


def digits_with(*sets):
    return load_config("digits", ["evaluate=null", *sets]).load_data()


def test_digits_are_split_into_four_fifths_and_one_of_every_class():
    train, test = digits_with("data.split=train"), digits_with("data.split=test")
    assert len(train) + len(test) == 1797
    shares = torch.bincount(test.labels) / (
        torch.bincount(test.labels) + torch.bincount(train.labels)
    )
    assert torch.allclose(shares, torch.tensor(0.2), atol=0.01)
    whole = digits_with().batch(torch.arange(1797)).x0.flatten(1)
    parts = [s.batch(torch.arange(len(s))).x0.flatten(1) for s in (train, test)]
    assert torch.allclose(whole.sum(0), torch.cat(parts).sum(0), atol=1e-2)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_subset_has_its_share_of_every_class_and_lies_in_the_larger_one(seed):
    def part(fraction):
        sets = [f"data.subset.fraction={fraction}", f"data.subset.seed={seed}"]
        return digits_with(*sets)

    small, large, whole = part(0.1), part(0.5), part(1.0)
    assert torch.allclose(
        torch.bincount(small.labels) / torch.bincount(whole.labels), torch.tensor(0.1), atol=0.004
    )
    assert len(whole) == 1797
    assert small.notes == ("179 of 1,797 samples are used",)

    def rows(source):
        x0 = source.batch(torch.arange(len(source))).x0
        return {tuple(image.flatten().tolist()) for image in x0}

    assert rows(small) < rows(large) < rows(whole)
    batch = small.batch(torch.tensor([3, 5]))
    assert torch.equal(batch.label, small.labels[[3, 5]])


def test_the_smallest_subset_has_one_of_each_class_and_another_seed_has_others():
    tiny = [digits_with("data.subset.fraction=0.0001", f"data.subset.seed={k}") for k in (0, 1)]
    assert [len(t) for t in tiny] == [10, 10]
    images = [t.batch(torch.arange(10)).x0 for t in tiny]
    assert not torch.equal(*images)


def test_a_subset_of_data_without_classes_is_a_share_of_all():
    config = load_config("ring2d", ["data.subset.fraction=0.25"])
    assert len(config.load_data()) == 5000


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("data.subset.fraction=0", "data.subset.fraction = 0"),
        ("data.subset.fraction=2", "data.subset.fraction = 2"),
        ("data.subset=0.1", "data.subset = 0.1"),
        ("data.subset.share=0.1", "'data.subset.fraction' is missing"),
    ],
)
def test_a_subset_that_is_none_is_refused_by_its_key(setting, said):
    with pytest.raises(ConfigError, match=said):
        digits_with(setting)


def test_every_mode_of_the_ring_has_its_share_centre_and_width():
    source = ring2d.load(ring2d.Config(modes=8, radius=2.0, std=0.1, size=8000, classes=True))
    batch = source.batch(torch.arange(8000))
    assert torch.bincount(batch.label).tolist() == [1000] * 8
    for mode in range(8):
        angle = torch.tensor(2 * torch.pi * mode / 8)
        points = batch.x0[batch.label == mode]
        centre = 2 * torch.stack([angle.cos(), angle.sin()])
        assert torch.allclose(points.mean(0), centre, atol=0.02)
        assert torch.allclose(points.std(0), torch.tensor(0.1), rtol=0.1)


def everything(module, **options):
    source = module.load(module.Config(size=4000, **options))
    return source.batch(torch.arange(4000))


def test_the_solver_agrees_with_the_closed_form():
    batch = everything(ode, horizon=2.0, noise=0.0, states=9, supervise="trajectory")
    tau = 2.0 * (1 - torch.linspace(0, 1, 9))
    assert torch.allclose(batch.states, batch.x1[:, None] * torch.exp(-tau)[:, None], atol=1e-5)


def test_ends_of_the_ode_are_the_solution_with_noise_from_standard_normal_starts():
    batch = everything(ode, horizon=1.0, noise=0.2)
    assert batch.states is None
    assert batch.x1.std() == pytest.approx(1, rel=0.03)
    noise = batch.x0 - batch.x1 * torch.exp(torch.tensor(-1.0))
    assert noise.std() == pytest.approx(0.2, rel=0.03)
    assert abs(float((noise * batch.x1).mean())) < 0.01


def test_motions_start_and_end_at_rest_and_take_the_published_polynomial():
    batch = everything(control, target=(1.0, -2.0), noise=0.0, states=101, supervise="trajectory")
    assert torch.allclose(batch.x0, torch.tensor([1.0, -2.0]))
    assert batch.x1.std() == pytest.approx(1, rel=0.03)
    # share of the way at a quarter and half of the time, in flow time from the end
    way = (batch.states - batch.x1[:, None]) / (batch.x0 - batch.x1)[:, None]
    assert torch.allclose(way[:, 50], torch.tensor(0.5), atol=1e-3)
    assert torch.allclose(way[:, 75], torch.tensor(0.103515625), atol=1e-3)
    speed = batch.states.diff(dim=1).norm(dim=2) * 100
    length = (batch.x0 - batch.x1).norm(dim=1)
    assert (speed[:, [0, -1]].amax(dim=1) < 0.02 * length).all()
    assert torch.allclose(speed.amax(dim=1) / length, torch.tensor(1.875), rtol=1e-2)


def test_motions_end_around_the_target_as_wide_as_the_noise():
    batch = everything(control, target=(0.0, 0.0), noise=0.3)
    assert batch.x0.std() == pytest.approx(0.3, rel=0.03)


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        ([0, -1], None, "labels run from -1 to 0, expected 0 to K - 1"),
        ([0, 1, 3], None, "only 3 of these 4 classes have a sample; say how many"),
        ([0, 10**12], None, "only 2 of these"),
        ([0, 1, 3], 3, "labels run from 0 to 3, expected 0 to 2"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels, classes, message):
    with pytest.raises(ConfigError, match=message):
        class_labels(labels, "here", classes)


def test_a_class_without_a_sample_is_fine_where_the_number_of_classes_is_known():
    labels, classes = class_labels([0, 3], "here", 5)
    assert (labels.tolist(), classes) == ([0, 3], 5)


@pytest.mark.parametrize("name", SOURCES)
def test_a_step_can_be_trained_on_every_source(name, tmp_path):
    sets = ["loop.batch_size=4", "objective.derivative=finite_difference", "evaluate=null",
            "objective.guidance={mode: off}"]  # fmt: skip
    data = OPTIONS[name](tmp_path)
    unet = {"type": "unet", "model_channels": 4, "channel_mult": [1], "num_blocks": 1}
    vectors = name in ("ring2d", "ode", "control")
    network = {"type": "mlp", "width": 8} if vectors else unet
    config = load_config("digits", [*sets, f"network={json.dumps(network)}"])
    config = config.model_copy(update={"data": data})
    learner = Learner(config, config.load_data(), OneProcess("cpu"))
    learner.assemble(None)
    for step in range(2):
        assert learner.gradients(step, 0).finite


def lazy(reads, count=40):
    """Images on demand, and a note of each that is read."""
    encoded = []
    for pixels in colours(count, 4):
        Image.fromarray(pixels).save(content := io.BytesIO(), "PNG")
        encoded.append(content.getvalue())

    def read(index):
        reads.append(index)
        return encoded[index]

    spec = SampleSpec(shape=(3, 4, 4))
    return LazyImages(read, torch.arange(count), None, spec, size=None)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_what_is_prefetched_is_read_once_however_a_batch_is_split(parts):
    reads = []
    source = lazy(reads)
    for step in range(3):
        for part in range(parts):
            source.batch(torch.arange(8 * step, 8 * step + 8)[part::parts])
            source.prefetch(torch.arange(8 * step + 8, 8 * step + 16)[part::parts])
    for part in range(parts):
        source.batch(torch.arange(24, 32)[part::parts])
    assert sorted(set(reads)) == list(range(32))
    assert len(reads) == 32


def test_a_prefetch_that_nobody_asks_for_is_forgotten():
    source = lazy([])
    for number in range(100):
        source.prefetch(torch.tensor([number % 40]))
    assert len(source._ahead) == 16
    expected = lazy([]).batch(torch.tensor([3, 5])).x0
    assert torch.equal(source.batch(torch.tensor([3, 5])).x0, expected)

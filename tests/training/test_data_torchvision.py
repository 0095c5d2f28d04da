"""Sets in the layouts that torchvision reads, written small."""

import os
import pickle
import struct

import numpy as np
import pytest
import torch
from mmf_deploy.training.data import torchvision_sets
from scipy.io import savemat

from mmf_deploy.errors import ConfigError

COUNT = 20
LABELS = [n % 10 for n in range(COUNT)]


def pixels(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def load(root, name="CIFAR10", **options):
    config = torchvision_sets.Config(name=name, root=root, **{"download": "never", **options})
    return torchvision_sets.load(config)


def everything(source):
    return source.batch(torch.arange(len(source)))


def dump(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))


def write_cifar10(root):
    """Five batches of four images each; returns them as [20, 3, 32, 32]."""
    folder, images = root / "cifar-10-batches-py", pixels(COUNT, 3072)
    for k in range(5):
        part = slice(4 * k, 4 * k + 4)
        dump(folder / f"data_batch_{k + 1}", {"data": images[part], "labels": LABELS[part]})
    dump(folder / "batches.meta", {"label_names": [f"kind {k}" for k in range(10)]})
    return images.reshape(-1, 3, 32, 32)


def as_x0(images):
    return torch.from_numpy(images.astype(np.float32) / 127.5 - 1)


def test_the_batches_of_cifar10_are_read_in_order_whatever_their_checksum(tmp_path):
    images = write_cifar10(tmp_path)
    source = load(tmp_path)
    assert source.spec.class_names[3] == "kind 3"
    batch = everything(source)
    assert batch.label.tolist() == LABELS
    assert torch.allclose(batch.x0, as_x0(images), atol=1e-6)


def test_the_fine_labels_of_cifar100_are_taken(tmp_path):
    folder, images = tmp_path / "cifar-100-python", pixels(4, 3072)
    content = {"data": images, "fine_labels": [99, 0, 5, 7], "coarse_labels": [0, 0, 0, 0]}
    dump(folder / "test", content)
    names = [f"n{k}" for k in range(100)]
    dump(folder / "meta", {"fine_label_names": names, "coarse_label_names": ["x"]})
    source = load(tmp_path, "CIFAR100", split="test")
    assert everything(source).label.tolist() == [99, 0, 5, 7]
    assert source.spec.class_names == tuple(names)


def test_the_ten_of_svhn_is_a_zero(tmp_path):
    images = pixels(32, 32, 3, 10)
    labels = np.array([[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]]).T
    savemat(tmp_path / "train_32x32.mat", {"X": images, "y": labels})
    batch = everything(load(tmp_path, "SVHN"))
    assert batch.label.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    assert torch.allclose(batch.x0, as_x0(images.transpose(3, 2, 0, 1)), atol=1e-6)


def test_stl10_needs_the_files_of_its_split_only_and_can_be_resized(tmp_path):
    folder, images = tmp_path / "stl10_binary", pixels(10, 3, 96, 96)
    folder.mkdir()
    (folder / "train_X.bin").write_bytes(images.tobytes())
    (folder / "train_y.bin").write_bytes(bytes(range(1, 11)))
    (folder / "class_names.txt").write_text("\n".join(f"k{n}" for n in range(10)))
    source = load(tmp_path, "STL10")
    assert source.spec.class_names == tuple(f"k{n}" for n in range(10))
    batch = everything(source)
    assert batch.label.tolist() == list(range(10))
    assert torch.allclose(batch.x0, as_x0(images.transpose(0, 1, 3, 2)), atol=1e-6)
    small = everything(load(tmp_path, "STL10", size=32)).x0
    assert small.shape == (10, 3, 32, 32)
    means = torch.nn.functional.avg_pool2d(batch.x0, 3)
    assert torch.corrcoef(torch.stack([small.flatten(), means.flatten()]))[0, 1] > 0.8
    (folder / "unlabeled_X.bin").write_bytes(images.tobytes())
    assert everything(load(tmp_path, "STL10", split="unlabeled")).label is None


@pytest.mark.parametrize(("name", "first"), [("MNIST", "0"), ("FashionMNIST", "T-shirt/top")])
def test_the_idx_files_of_both_mnists_are_read(tmp_path, name, first):
    raw, images = tmp_path / name / "raw", pixels(COUNT, 28, 28)
    raw.mkdir(parents=True)
    header = struct.pack(">IIII", 0x803, COUNT, 28, 28)
    (raw / "t10k-images-idx3-ubyte").write_bytes(header + images.tobytes())
    labels = struct.pack(">II", 0x801, COUNT) + bytes(LABELS)
    (raw / "t10k-labels-idx1-ubyte").write_bytes(labels)
    source = load(tmp_path, name, split="test")
    assert source.spec.class_names[0] == first
    assert torch.allclose(everything(source).x0, as_x0(images[:, None]), atol=1e-6)


class Attack:
    """Unpickles to a call of os.system."""

    def __reduce__(self):
        return os.system, ("echo attacked",)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pickle.dumps({"data": Attack(), "labels": []}), "it would call posix.system"),
        (b"\x80\x02}", "EOFError|UnpicklingError"),
        (pickle.dumps([1, 2]), "holds no dictionary"),
        (pickle.dumps({"labels": [1]}), "KeyError: 'data'"),
        (pickle.dumps({"data": pixels(4, 3072), "labels": [0]}, 2), "17 labels of 20 images"),
    ],
)
def test_a_damaged_or_hostile_file_is_one_clear_line(tmp_path, capfd, content, reason):
    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_2").write_bytes(content)
    with pytest.raises(ConfigError, match=f"damaged, or not CIFAR10 .*({reason})") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)
    assert "attacked" not in capfd.readouterr().out


def test_a_label_beyond_the_classes_is_refused(tmp_path):
    write_cifar10(tmp_path)
    content = {"data": pixels(4, 3072), "labels": [0, 1, 2, 10]}
    dump(tmp_path / "cifar-10-batches-py" / "data_batch_1", content)
    with pytest.raises(ConfigError, match="labels run from 0 to 10, expected 0 to 9"):
        load(tmp_path)


def test_missing_files_are_named_with_where_to_put_them(tmp_path):
    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    message = "cifar-10-batches-py has no data_batch_3; put the files there, or set data.download"
    with pytest.raises(ConfigError, match=message):
        load(tmp_path)


def test_a_download_that_fails_says_why_and_what_to_put_where(tmp_path, monkeypatch):
    def no_network(config, known):
        raise OSError("no route to host\n(at all)")

    monkeypatch.setattr(torchvision_sets, "download", no_network)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "SVHN", download="auto")
    assert str(caught.value) == (
        f"SVHN: {tmp_path} has no train_32x32.mat; put the files there; "
        "the download failed: OSError: no route to host (at all)"
    )


def test_what_is_there_is_not_downloaded(tmp_path, monkeypatch):
    write_cifar10(tmp_path)
    monkeypatch.setattr(torchvision_sets, "download", None)
    assert len(load(tmp_path, download="auto")) == COUNT


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("CIFAR", {}, r"'CIFAR' \(did you mean 'CIFAR10'\?\): no such set"),
        ("SVHN", {"split": "trian"}, r"'trian' \(did you mean 'train'\?\): SVHN has train, test"),
    ],
)
def test_an_unknown_set_or_split_names_the_nearest(tmp_path, name, options, message):
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, name, **options)

"""NumPy files: layouts, labels, what stays on the disk and what is refused."""

import numpy as np
import pytest
import torch
from mmf_deploy.training.data import array_files

from mmf_deploy.errors import ConfigError


def pixels(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def vectors(*shape):
    return np.random.default_rng(0).normal(size=shape)


def load(path, **options):
    return array_files.load(array_files.Config(path=str(path), **options))


def everything(source):
    return source.batch(torch.arange(len(source)))


def save(path, array):
    np.save(path, array)
    return path


def as_x0(images):
    return torch.from_numpy(images.astype(np.float32) / 127.5 - 1)


@pytest.mark.parametrize("resident_mb", [1, 0])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [((5, 8, 6, 3), (0, 3, 1, 2)), ((5, 3, 8, 6), (0, 1, 2, 3)), ((5, 8, 6), None)],
)
def test_the_axis_of_channels_is_found(tmp_path, shape, axes, resident_mb):
    images = pixels(*shape)
    source = load(save(tmp_path / "a.npy", images), resident_mb=resident_mb)
    expected = as_x0(images[:, None] if axes is None else images.transpose(axes))
    batch = everything(source)
    assert source.spec.shape == expected.shape[1:]
    assert torch.allclose(batch.x0, expected, atol=1e-6)
    assert batch.x0.is_contiguous()
    assert batch.label is None


def test_channels_that_may_be_either_axis_need_the_layout(tmp_path):
    path = save(tmp_path / "a.npy", pixels(5, 3, 8, 3))
    with pytest.raises(ConfigError, match=r"may be \[N, C, H, W\] or \[N, H, W, C\]; say which"):
        load(path)
    assert load(path, layout="NCHW").spec.shape == (3, 8, 3)
    assert load(path, layout="NHWC").spec.shape == (3, 3, 8)


def test_large_files_stay_on_the_disk(tmp_path):
    source = load(save(tmp_path / "a.npy", pixels(5, 8, 8, 3)), resident_mb=0)
    assert isinstance(source._parts[0], np.memmap)
    source = load(tmp_path / "a.npy")
    assert not isinstance(source._parts[0], np.memmap)


@pytest.mark.parametrize("resident_mb", [1, 0])
def test_vectors_are_taken_as_float32(tmp_path, resident_mb):
    array = vectors(7, 2)
    source = load(save(tmp_path / "a.npy", array), resident_mb=resident_mb)
    assert (source.spec.shape, source.notes) == ((2,), ())
    x0 = source.batch(torch.tensor([6, 0])).x0
    assert torch.equal(x0, torch.from_numpy(array[[6, 0]]).float())


def test_vectors_far_from_order_one_are_said(tmp_path):
    source = load(save(tmp_path / "a.npy", 100 * vectors(500, 2)))
    assert "training expects about 1" in source.notes[0]


def test_the_labels_of_an_npz_and_of_a_file_of_their_own_are_the_same(tmp_path):
    images, labels = pixels(4, 8, 8), np.array([1, 0, 1, 0])
    np.savez(tmp_path / "a.npz", x=images, y=labels)
    save(tmp_path / "b.npy", images)
    save(tmp_path / "labels.npy", labels)
    for source in (
        load(tmp_path / "a.npz"),
        load(tmp_path / "b.npy", labels=str(tmp_path / "labels.npy")),
    ):
        assert everything(source).label.tolist() == [1, 0, 1, 0]
        assert source.spec.classes == 2
    assert everything(load(tmp_path / "a.npz", labels=None)).label is None


def test_batches_of_downsampled_imagenet_are_one_set_with_labels_from_zero(tmp_path):
    images, labels = pixels(6, 3, 8, 8), np.array([3, 1, 2, 2, 1, 3])
    for k in range(2):
        part = slice(3 * k, 3 * k + 3)
        flat = images[part].reshape(3, -1)
        np.savez(tmp_path / f"train_data_batch_{k + 1}.npz", data=flat, labels=labels[part])
    source = load(tmp_path / "train_data_batch_*.npz")
    assert source.notes == ("labels 1 … 3 are taken as 0 … 2",)
    batch = source.batch(torch.tensor([5, 0, 2]))
    assert batch.label.tolist() == [2, 2, 1]
    assert torch.allclose(batch.x0, as_x0(images[[5, 0, 2]]), atol=1e-6)
    assert load(tmp_path / "train_data_batch_*.npz", classes=3).spec.classes == 3


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (vectors(4, 8, 8, 3), r"float64 \[4, 8, 8, 3\]; expected images, uint8"),
        (np.arange(12).reshape(4, 3), r"int64 \[4, 3\]; expected"),
        (pixels(4), r"uint8 \[4\]; expected"),
        (pixels(4, 100), r"uint8 \[4, 100\]; expected"),
        (pixels(0, 8, 8), r"uint8 \[0, 8, 8\]; expected"),
        (pixels(4, 8, 8, 4), "expected 1 or 3 channels"),
        (np.array([[0.0, 1.0], [np.nan, 1.0]]), "row 1 has a value that is not finite"),
        (np.array([{}, []], object), "Python objects, which are never unpickled"),
    ],
)
def test_an_array_that_is_neither_images_nor_vectors_is_refused(tmp_path, array, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load(save(tmp_path / "a.npy", array))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 1, 2]), r"labels are int64 \[3\], expected whole numbers, one for each of"),
        (np.array([0.0, 1, 0, 1]), "labels are float64"),
        (np.array([0, 1, 3, 3]), "only 3 of these 4 classes have a sample"),
        (np.array([-1, 0, 1, 2]), "labels run from -1 to 2"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path, labels, message):
    np.savez(tmp_path / "a.npz", images=pixels(4, 8, 8), labels=labels)
    with pytest.raises(ConfigError, match=message):
        load(tmp_path / "a.npz")


def test_files_that_will_not_do_are_refused_in_one_line(tmp_path):
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY\x01\x00 and no more")
    (tmp_path / "broken.npz").write_bytes(b"PK and no more")
    (tmp_path / "table.csv").write_text("1,2")
    np.savez(tmp_path / "other.npz", pictures=pixels(4, 8, 8))
    np.savez(tmp_path / "big.npz", images=pixels(400, 64, 64))
    for name, message in [
        ("gone.npy", "no such file"),
        ("table.csv", "expected .npy or .npz files"),
        ("broken.npy", "not a readable NumPy file"),
        ("broken.npz", "not a readable NumPy file"),
        ("other.npz", "holds pictures, expected one of images, data, x, arr_0"),
        ("big.npz", "set data.resident_mb=2, or save them as .npy"),
    ]:
        with pytest.raises(ConfigError, match=message) as caught:
            load(tmp_path / name, resident_mb=1)
        assert "\n" not in str(caught.value)


def test_files_of_one_set_must_be_alike(tmp_path):
    save(tmp_path / "1.npy", pixels(4, 8, 8))
    save(tmp_path / "2.npy", pixels(4, 8, 9))
    with pytest.raises(ConfigError, match=r"2.npy: uint8 \[4, 8, 9\], but .*1.npy is uint8"):
        load(tmp_path / "*.npy")

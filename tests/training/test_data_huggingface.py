"""Hugging Face data sets: parquet on disk with and without what ``datasets`` notes, and the hub."""

import io
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from mmf_deploy.training.data import hf_images, lazy_images
from PIL import Image

from mmf_deploy.errors import ConfigError


def encoded(level, size=8, kind="PNG", mode="RGB"):
    colour = level if mode == "L" else (level, 0, 255 - level)
    Image.new(mode, (size, size), colour).save(content := io.BytesIO(), kind)
    return content.getvalue()


def rows(count, **options):
    return [{"bytes": encoded(n, **options), "path": f"{n}.png"} for n in range(count)]


def write(path, **columns):
    """A parquet file as pandas or pyarrow writes it: without a word of what the columns are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def load(path, **options):
    return hf_images.load(hf_images.Config(path=str(path), **options))


def everything(source):
    return source.batch(torch.arange(len(source)))


@pytest.fixture
def cifar(tmp_path):
    """The layout of CIFAR-10 on the hub: img {bytes, path}, label."""
    return write(tmp_path / "train.parquet", img=rows(20), label=[n % 10 for n in range(20)])


@pytest.fixture
def noted(tmp_path):
    """A file that ``datasets`` wrote, with the names of the classes."""
    features = datasets.Features(
        {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog", "owl"])}
    )
    columns = {"picture": rows(6), "kind": [0, 1, 0, 1, 0, 1]}
    datasets.Dataset.from_dict(columns, features).to_parquet(tmp_path / "noted.parquet")
    return tmp_path / "noted.parquet"


def test_the_layout_of_cifar10_is_read_without_being_told_its_columns(cifar):
    source = load(cifar)
    assert (source.spec.shape, source.spec.classes) == ((3, 8, 8), 10)
    batch = everything(source)
    assert batch.label.tolist() == [*range(10), *range(10)]
    assert torch.allclose(batch.x0[:, 0, 0, 0], torch.arange(20) / 127.5 - 1)


def test_columns_and_class_names_that_datasets_noted_are_taken(noted):
    source = load(noted)
    assert source.spec.class_names == ("cat", "dog", "owl")
    assert everything(source).label.tolist() == [0, 1, 0, 1, 0, 1]


def test_plain_bytes_and_labels_that_are_names_will_do(tmp_path):
    path = write(
        tmp_path / "a.parquet", image=[encoded(n) for n in range(3)], label=["owl", "ant", "owl"]
    )
    source = load(path)
    assert source.spec.class_names == ("ant", "owl")
    assert everything(source).label.tolist() == [1, 0, 1]


def test_label_null_and_size_and_limit_and_channels_are_obeyed(cifar):
    source = load(cifar, label=None, size=4, limit=7, channels=1)
    assert (len(source), source.spec.shape, source.spec.classes) == (7, (1, 4, 4), 0)
    assert load(cifar, label="label", limit=3).spec.classes == 3


def test_a_folder_gives_the_files_of_its_split_in_order(tmp_path):
    for part in range(2):
        write(tmp_path / "data" / f"train-0000{part}-of-00002.parquet", img=rows(part + 1))
    write(tmp_path / "data" / "test-00000-of-00001.parquet", img=rows(5))
    assert len(load(tmp_path)) == 3
    assert len(load(tmp_path, split="test")) == 5
    assert len(load(tmp_path / "data" / "t*.parquet")) == 8
    with pytest.raises(ConfigError, match="no parquet file of that name; there are train, test"):
        load(tmp_path, split="validation")


def test_files_without_a_split_in_their_names_are_all_read(tmp_path):
    paths = [write(tmp_path / f"{n}.parquet", img=rows(2), label=[0, 1]) for n in "ab"]
    assert len(load(tmp_path)) == 4
    config = hf_images.Config(path=[str(p) for p in reversed(paths)])
    assert len(hf_images.load(config)) == 4


def test_images_of_different_sizes_need_a_size(tmp_path):
    path = write(tmp_path / "a.parquet", img=[*rows(2), *rows(2, size=6)])
    for resident_mb in (1, 0.0001):
        message = r"differ in size: 8×8 and 6×6 \(row 2\); set data.size"
        with pytest.raises(ConfigError, match=message):
            load(path, resident_mb=resident_mb)
    assert load(path, size=8).notes == ("2 of 4 images are smaller than 8×8 and were enlarged",)


def test_corrupt_missing_and_grey_rows_are_counted_by_row(tmp_path):
    broken = [{"bytes": b"no image", "path": "x.png"}, {"bytes": None, "path": "/etc/hostname"}]
    images = [*rows(50), *broken, *rows(1, mode="L")]
    path = write(tmp_path / "a.parquet", img=images, label=[0] * 50 + [1, 1, 0])
    source = load(path, classes=2)
    assert source.notes == (
        "2 of 53 images cannot be read: row 50, row 51; they are left out",
        "1 of 51 images are grey; converted to colour",
    )
    assert everything(source).label.tolist() == [0] * 51


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"a": [1], "b": ["x"]}, {}, "found none among a, b; name it with data.image"),
        ({"a": [b"1"], "b": [b"2"]}, {}, "found a, b among a, b; name it with data.image"),
        ({"img": [1]}, {"image": "imgs"}, r"'imgs' \(did you mean 'img'\?\): no such column"),
        ({"img": [1]}, {"image": "img"}, "expected one column of encoded images"),
        ({"img": [b"1"]}, {"label": "labl"}, "no such column; there are img"),
        ({"img": [b"1"], "label": [1.5]}, {}, "labels are double, expected whole numbers"),
        ({"img": [b"1", b"2"], "label": [0, None]}, {}, "1 of 2 labels are missing"),
        ({"img": [b"1"] * 2, "label": [0, 1]}, {}, "2 of 2 images cannot be read: row 0, row 1"),
        ({"img": pa.array([], pa.binary())}, {}, "no rows"),
    ],
)
def test_columns_that_will_not_do_are_refused_in_one_line(tmp_path, columns, options, message):
    path = write(tmp_path / "a.parquet", **columns)
    with pytest.raises(ConfigError, match=message) as caught:
        load(path, **options)
    assert "\n" not in str(caught.value)


def test_labels_with_gaps_are_refused_unless_the_number_of_classes_is_known(tmp_path):
    path = write(tmp_path / "a.parquet", img=rows(3), label=[0, 1, 3])
    with pytest.raises(ConfigError, match="only 3 of these 4 classes have a sample"):
        load(path)
    assert load(path, classes=4).spec.classes == 4


def test_files_that_are_missing_damaged_or_none_are_refused(tmp_path, cifar):
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(b"PAR1 and no more")
    (tmp_path / "empty").mkdir()
    (tmp_path / "table.csv").write_text("img,label")
    for path, message in [
        (damaged, "not a readable parquet file"),
        (tmp_path / "gone.parquet", "no such file"),
        (tmp_path / "empty", "no .parquet files there"),
        (tmp_path / "table.csv", "expected a .parquet file"),
    ]:
        with pytest.raises(ConfigError, match=message):
            load(path)
    with pytest.raises(ConfigError, match="expected parquet files that are here"):
        hf_images.load(hf_images.Config(path=[str(cifar), "gone"]))


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def test_files_too_large_for_memory_are_read_from_the_disk_on_demand(cifar, own_cache):
    resident, lazy = load(cifar), load(cifar, resident_mb=0)
    assert isinstance(lazy, lazy_images.LazyImages)
    assert lazy.spec == resident.spec
    indices = torch.tensor([19, 0, 7])
    assert torch.equal(lazy.batch(indices).x0, resident.batch(indices).x0)
    assert lazy.batch(indices).label.tolist() == [9, 0, 7]


@pytest.fixture
def hub(monkeypatch, own_cache, noted):
    """A hub with one data set: what ``datasets`` gives for it, without a network."""

    def open_hub(config):
        if config.path != "someone/animals":
            raise ConnectionError("Couldn't reach the hub\nfor three reasons")
        files = {"data_files": [str(noted)], "split": config.split}
        return datasets.load_dataset("parquet", **files, streaming=config.streaming)

    monkeypatch.setattr(hf_images, "open_hub", open_hub)


@pytest.mark.parametrize("options", [{}, {"streaming": True}, {"streaming": True, "limit": 4}])
def test_a_data_set_of_the_hub_is_read_at_once_or_as_a_stream(hub, options):
    source = load("someone/animals", **options)
    count = options.get("limit", 6)
    assert len(source) == count
    assert source.spec.class_names == ("cat", "dog", "owl")
    assert everything(source).label.tolist() == [0, 1, 0, 1, 0, 1][:count]
    assert everything(source).x0[3, 0, 0, 0] == pytest.approx(3 / 127.5 - 1)


def test_a_stream_that_does_not_fit_into_memory_says_what_would(hub):
    with pytest.raises(ConfigError, match=r"set data.limit=2 or lower, or data.streaming"):
        load("someone/animals", streaming=True, resident_mb=2 * 3 * 64 / 2**20)


def test_no_network_is_one_clear_line(hub):
    with pytest.raises(ConfigError, match="check the name and the network") as caught:
        load("someone/else")
    assert "Couldn't reach the hub for three reasons" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_cifar10_file_at_hand_loads_as_it_is():
    path = Path(__file__).parents[3] / "shared" / "data" / "cifar10-test.parquet"
    if not path.exists():
        pytest.skip("a parquet file of CIFAR-10 (../shared/data) is not here")
    source = load(str(path), limit=2000)
    assert source.spec.shape == (3, 32, 32)
    assert source.notes == ()
    batch = everything(source)
    assert np.bincount(batch.label).tolist() == [200] * 10

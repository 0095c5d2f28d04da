"""Checkpoints come back bit for bit, or are refused with the file and what is wrong with it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from mmf_deploy import checkpoint
from mmf_deploy.errors import CheckpointError, MMFError
from mmf_deploy.files import sha256
from mmf_deploy.spec import SampleSpec

SPEC = SampleSpec(shape=(1, 8, 8), classes=3, class_names=("a", "b", "c"), guidance=(1, 3))


def weights(seed: int) -> checkpoint.Tensors:
    generator = np.random.default_rng(seed)
    return {
        "layer.weight": generator.standard_normal((3, 2, 2, 2)).astype(np.float32),
        "scalar": np.array(generator.standard_normal(), np.float32),
        "count": np.array([2**40 + seed, -1], np.int64),
        "odd": np.array([np.nan, -0.0, np.inf, 1e-45], np.float32),
        "view": generator.standard_normal((4, 6)).astype(np.float32)[::2, ::3].T,
    }


WEIGHTS = {"model": weights(0), "ema-0.99": weights(1), "ema-0.9999": weights(2)}


def write(directory, step=100, **changes):
    fields = {
        "spec": SPEC,
        "network": {"type": "unet", "channel_mult": [1, 2]},
        "weights": WEIGHTS,
        "config": {"name": "ünïcode", "train": {"lr": 1e-4}, "none": None},
        "meta": {"name": "test", "seed": 5, "versions": {"torch": "x"}},
    }
    return checkpoint.write(directory, step=step, **{**fields, **changes})


@pytest.fixture
def written(tmp_path):
    return write(tmp_path / "run" / "checkpoints")


def edit_meta(path, **changes):
    record = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps({**record, **changes}))


def refused(path) -> str:
    with pytest.raises(CheckpointError) as caught:
        checkpoint.read(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_come_back_bit_for_bit(name, written):
    found = checkpoint.read(written).tensors(name)
    assert found.keys() == WEIGHTS[name].keys()
    for key, expected in WEIGHTS[name].items():
        assert (found[key].dtype, found[key].shape) == (expected.dtype, expected.shape)
        assert found[key].tobytes() == expected.tobytes()


def test_everything_else_comes_back_too(written):
    found = checkpoint.read(written)
    assert (found.path, found.step, found.spec) == (written, 100, SPEC)
    assert found.network == {"type": "unet", "channel_mult": [1, 2]}
    assert found.config == {"name": "ünïcode", "train": {"lr": 1e-4}, "none": None}
    assert (found.meta["name"], found.meta["seed"]) == ("test", 5)
    assert found.weights_hash("model") == sha256(written / "model.safetensors")
    assert set(found.file_hashes) == {p.name for p in written.iterdir()} - {"meta.json"}


def test_same_content_gives_the_same_bytes(tmp_path):
    one, two = write(tmp_path / "one"), write(tmp_path / "two")
    assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in two.iterdir())
    for file in one.iterdir():
        assert file.read_bytes() == (two / file.name).read_bytes(), file.name


def test_slowest_average_is_the_default_and_sorted_by_value(written, tmp_path):
    found = checkpoint.read(written)
    assert found.emas == ["ema-0.99", "ema-0.9999"]
    assert found.default_weights() == "ema-0.9999"
    assert found.weights_hash() == found.weights_hash("ema-0.9999")
    assert found.tensors()["count"][0] == 2**40 + 2


def test_model_is_the_default_where_there_is_no_average(tmp_path):
    path = write(tmp_path, weights={"model": weights(0), "optimizer": {"a": np.zeros(1)}})
    assert checkpoint.read(path).default_weights() == "model"


@pytest.mark.parametrize("method", ["tensors", "weights_hash"])
def test_weights_it_does_not_hold_are_refused_with_those_it_has(method, written):
    with pytest.raises(CheckpointError, match=r"no weights 'ema-0.5'; it has .*ema-0.99.*, model"):
        getattr(checkpoint.read(written), method)("ema-0.5")


def test_run_means_its_newest_checkpoint_and_a_checkpoint_itself(tmp_path):
    run = tmp_path / "run"
    for step in (900, 10_000, 123_456_789):
        write(run / "checkpoints", step=step)
    (run / "checkpoints" / ".tmp-1-step-99999999999").mkdir()
    (run / "checkpoints" / "step-99999999999").write_text("a file")
    expected = [run / "checkpoints" / f"step-{s}" for s in ("00000900", "00010000", "123456789")]
    assert checkpoint.find_all(run) == expected
    assert checkpoint.resolve(run) == expected[-1]
    assert checkpoint.resolve(run / "checkpoints") == expected[-1]
    assert checkpoint.resolve(expected[0]) == expected[0]
    assert checkpoint.read(run).step == 123_456_789


def test_path_that_does_not_exist_is_refused_with_what_to_do(tmp_path):
    assert "no such checkpoint or run; train one first" in refused(tmp_path / "absent")


def test_directory_that_is_neither_a_checkpoint_nor_a_run_is_refused(tmp_path):
    assert "neither a checkpoint" in refused(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    assert "neither a checkpoint" in refused(tmp_path)
    assert checkpoint.find_all(tmp_path) == []


@pytest.mark.parametrize("name", ["model.safetensors", "ema-0.99.safetensors", "config.yaml"])
def test_one_flipped_bit_is_refused_with_the_file_and_both_hashes(name, written):
    file = written / name
    expected = sha256(file)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    message = refused(written)
    for part in (str(file), "corrupt", expected, sha256(file)):
        assert part in message


@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml"])
def test_missing_file_is_refused_by_name(name, written):
    (written / name).unlink()
    assert f"{written / name}: missing" in refused(written)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "link", "a/../../outside"])
def test_file_name_that_leaves_the_directory_is_refused_before_it_is_read(name, written):
    outside = written.parent / "outside"
    outside.write_text("secret")
    (written / "link").symlink_to(outside)
    edit_meta(written, files={name: sha256(outside)})
    message = refused(written)
    assert f"{name!r} leaves the checkpoint's directory" in message
    assert sha256(outside) not in message


@pytest.mark.parametrize("schema", [0, 2, "1", None])
def test_other_schema_is_refused_with_both_versions(schema, written):
    edit_meta(written, schema=schema)
    assert f"checkpoint schema {schema}, this version reads 1" in refused(written)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"3", b'"text"', b"null", b"{}", b"\xff\xfe", b'{"schema": 1}',
     b'{"schema": 1, "files": 3}', b'{"schema": 1, "files": {}, "step": "x"}'],
)  # fmt: skip
def test_meta_that_is_garbage_is_refused_by_name(text, written):
    (written / "meta.json").write_bytes(text)
    assert str(written) in refused(written)


def test_specification_that_contradicts_itself_is_refused(written):
    edit_meta(written, spec={"shape": [4, 4]})
    with pytest.raises(MMFError, match=r"expected \(C, H, W\)"):
        checkpoint.read(written)


def test_failed_write_leaves_nothing(tmp_path):
    class Unwritable:
        pass

    with pytest.raises(Exception, match="Unwritable"):
        write(tmp_path / "checkpoints", config={"a": Unwritable()})
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_copied_checkpoint_is_the_same_checkpoint(written, tmp_path):
    copy = shutil.copytree(written, tmp_path / "elsewhere")
    assert checkpoint.read(copy).file_hashes == checkpoint.read(written).file_hashes

"""The judge comes back as it was written, and what is no judge is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from mmf_deploy.errors import CheckpointError
from mmf_deploy.nn.judge import Judge, layers

FILES = ("judge.json", "judge.safetensors")


@pytest.fixture(scope="module")
def judge() -> Judge:
    """Of random weights, with statistics of batch normalisation that matter."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body, head = layers()
        for module in body.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
    rng = np.random.default_rng(0)
    real = rng.normal(size=(200, 64))
    return Judge(body.eval(), head.eval(), 0.98, real.mean(0), np.cov(real, rowvar=False))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).integers(0, 256, (40, 8, 8, 1), np.uint8)


@pytest.fixture(scope="module")
def saved(judge, tmp_path_factory):
    path = tmp_path_factory.mktemp("judge") / "judge"
    judge.save(path)
    return path


@pytest.fixture
def copy(saved, tmp_path):
    """A judge that a test may spoil."""
    return shutil.copytree(saved, tmp_path / "copy")


def refused(path) -> str:
    with pytest.raises(CheckpointError) as caught:
        Judge.load(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_judge_comes_back_as_it_was_written(judge, saved, images):
    assert sorted(f.name for f in saved.iterdir()) == sorted(FILES)
    found = Judge.load(saved)
    assert found.accuracy == judge.accuracy
    np.testing.assert_array_equal(found.real_mean, judge.real_mean)
    np.testing.assert_array_equal(found.real_covariance, judge.real_covariance)
    assert found.real_mean.dtype == np.float64
    for one, other in zip(found(images), judge(images), strict=True):
        np.testing.assert_array_equal(one, other)


def test_judge_sees_classes_and_features_of_bytes(judge, images):
    classes, features = judge(images)
    assert (classes.shape, classes.dtype) == ((40,), np.int64)
    assert (features.shape, features.dtype) == ((40, 64), np.float32)
    assert set(classes) <= set(range(10))
    assert features.std() > 0
    # bytes become [-1, 1]
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        expected = judge.body(x)
    np.testing.assert_array_equal(features, expected.numpy())
    np.testing.assert_array_equal(classes, judge.head(expected).argmax(1).numpy())


def test_judgement_of_an_image_does_not_depend_on_its_neighbours(saved, images):
    judge = Judge.load(saved)
    classes, features = judge(images)
    alone, feature = judge(images[7:8])
    assert alone[0] == classes[7]
    np.testing.assert_allclose(feature[0], features[7], atol=1e-5)


def test_loaded_judge_does_not_learn(saved):
    judge = Judge.load(saved)
    for module in (judge.body, judge.head):
        assert not module.training
        assert not any(p.requires_grad for p in module.parameters())


def test_saving_twice_gives_the_same_bytes(judge, saved, tmp_path):
    judge.save(tmp_path / "again")
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_refused(name, copy):
    (copy / name).unlink()
    assert "not a readable judge" in refused(copy)


def test_no_judge_at_all_is_refused(tmp_path):
    assert "not a readable judge" in refused(tmp_path / "nothing")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "null", "{}", '{"kind": "digits-classifier"}',
             '{"kind": "digits-classifier", "accuracy": "good"}'],
)  # fmt: skip
def test_description_that_is_something_else_is_refused(text, copy):
    (copy / "judge.json").write_text(text)
    refused(copy)


def test_judge_of_another_kind_is_refused_with_both(copy):
    (copy / "judge.json").write_text(json.dumps({"kind": "inception", "accuracy": 1.0}))
    assert "judge 'inception', expected 'digits-classifier'" in refused(copy)


@pytest.mark.parametrize("data", [b"", b"{}", b"\x00" * 64, b"\xff" * 64], ids=ascii)
def test_weights_that_are_garbage_are_refused(data, copy):
    (copy / "judge.safetensors").write_bytes(data)
    assert "not a readable judge" in refused(copy)


@pytest.mark.parametrize("missing", ["head.bias", "body.0.weight", "real.mean"])
def test_weights_that_lack_one_are_refused(missing, copy):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(copy / "judge.safetensors")
    del tensors[missing]
    save_file(tensors, copy / "judge.safetensors")
    assert "not a readable judge" in refused(copy)


def test_weights_of_another_shape_are_refused(copy):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(copy / "judge.safetensors")
    tensors["head.weight"] = tensors["head.weight"][:9]
    save_file(tensors, copy / "judge.safetensors")
    assert "not a readable judge" in refused(copy)

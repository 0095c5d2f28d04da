"""Golden samples refuse another graph under the same name, whatever hashes were repaired."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from mmf_deploy.export import measurements
from mmf_deploy.export.assemble import Request, export_origin
from mmf_deploy.export.origin import Origin
from onnx import numpy_helper
from torch import nn

from mmf_deploy import bundle
from mmf_deploy.engines.base import Engine, Output, open_engine
from mmf_deploy.errors import BundleError
from mmf_deploy.files import sha256
from mmf_deploy.golden import Golden, verify_golden
from mmf_deploy.spec import SampleSpec

SPEC = SampleSpec(shape=(1, 8, 8))


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = ((1, 8), (8, 8), (8, 8), (8, 1))
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in sizes)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(2.0)

    def forward(self, x, r, t, label=None, guidance=None):
        for layer in self.layers[:-1]:
            x = F.silu(layer(x))
        return self.layers[-1](x)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An export of convolutions in fp32 and int8."""
    folder = tmp_path_factory.mktemp("golden")
    source = bundle.Source(
        run="test", step=0, weights="model", weights_sha256="0" * 64, parameters=1
    )
    with torch.random.fork_rng(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(measurements, "median_ms", lambda run, seconds: 1.0)
        net = Convolutions().eval().requires_grad_(False)
        request = Request(folder, folder / "bundle", precisions=("fp32", "int8"), samples=32)
        return export_origin(Origin(net, SPEC, source), request)


@pytest.fixture
def copy(exported, tmp_path):
    """A bundle that a test may spoil."""
    return shutil.copytree(exported.path, tmp_path / "copy")


def repair_manifest(path):
    record = json.loads((path / bundle.MANIFEST).read_text())
    record["files"] = {name: sha256(path / name) for name in record["files"]}
    (path / bundle.MANIFEST).write_text(json.dumps(record))


def edit_golden(path, **changes):
    with np.load(path / bundle.GOLDEN) as data:
        arrays = {**data, **changes}
    np.savez(path / bundle.GOLDEN, **{k: v for k, v in arrays.items() if v is not None})
    repair_manifest(path)


def change_weight(path, name, change) -> None:
    """Change the largest weight of the middle of a variant's graph."""
    file = path / f"model.{name}.onnx"
    model = onnx.load(file)
    weights = [i for i in model.graph.initializer if len(i.dims) == 4]
    weight = max(weights, key=lambda i: np.prod(i.dims))
    values = numpy_helper.to_array(weight).copy()
    change(values)
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, file)
    repair_manifest(path)


def verify(path, name="fp32") -> float:
    found = bundle.load(path)
    with open_engine(None, found, name) as engine:
        return verify_golden(found, engine, found.variant(name))


def refused(path, name="fp32") -> str:
    with pytest.raises(BundleError) as caught:
        verify(path, name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def one_more(values):
    values.flat[3] += values.dtype.type(1)


@pytest.mark.parametrize("name", ["fp32", "int8"])
def test_untouched_bundle_is_verified(name, copy):
    assert verify(copy, name) <= bundle.load(copy).golden().tolerance[name]


@pytest.mark.parametrize("name", ["fp32", "int8"])
def test_one_changed_weight_is_refused_by_the_hash_of_the_graph(name, copy):
    file = copy / f"model.{name}.onnx"
    before = sha256(file)
    change_weight(copy, name, one_more)
    message = refused(copy, name)
    for part in (str(file), "not the file that the golden images came from", before, sha256(file)):
        assert part in message


def larger(values):
    """A change that shows in the images: one weight by half, or by a quarter of its range."""
    values.flat[3] += values.dtype.type(0.5 if values.dtype == np.float32 else 64)


def hidden(path, name, change):
    """A changed weight with every hash repaired, also that of the golden images."""
    change_weight(path, name, change)
    graph = sha256(path / f"model.{name}.onnx")
    edit_golden(path, **{f"graphs.{name}": np.asarray(graph)})


@pytest.mark.parametrize("name", ["fp32", "int8"])
def test_changed_weight_with_every_hash_repaired_is_refused_by_images_or_samples(name, copy):
    hidden(copy, name, larger)
    message = refused(copy, name)
    assert "golden image of seed" in message or "golden samples differ" in message


def test_change_too_small_for_the_images_is_refused_by_the_samples(copy):
    def small(values):
        values.flat[3] += values.dtype.type(5e-3)

    hidden(copy, "fp32", small)
    message = refused(copy)
    assert "golden samples differ from those it was verified with by" in message
    assert "expected at most" in message
    # the images alone would let it pass
    edit_golden(copy, **{f"{what}.{name}": None for what in ("samples", "rms", "graphs")
                         for name in ("fp32", "int8")})  # fmt: skip
    assert verify(copy) <= 1


def test_change_that_does_not_matter_passes(copy):
    def tiny(values):
        values.flat[3] += values.dtype.type(1e-6)

    hidden(copy, "fp32", tiny)
    assert verify(copy) <= 1


@pytest.mark.parametrize(("served", "claimed"), [("fp32", "int8"), ("int8", "fp32")])
def test_graph_of_another_variant_is_refused_though_it_is_the_same_generator(served, claimed, copy):
    shutil.copy(copy / f"model.{served}.onnx", copy / f"model.{claimed}.onnx")
    repair_manifest(copy)
    graph = sha256(copy / f"model.{claimed}.onnx")
    edit_golden(copy, **{f"graphs.{claimed}": np.asarray(graph)})
    refused(copy, claimed)


def test_other_samples_of_one_variant_are_no_matter_of_the_others(copy):
    with np.load(copy / bundle.GOLDEN) as data:
        samples = data["samples.int8"] + np.float32(0.5)
    edit_golden(copy, **{"samples.int8": samples})
    assert verify(copy, "fp32") <= 1
    assert "golden samples differ" in refused(copy, "int8")


def test_samples_that_are_not_numbers_are_refused(copy):
    edit_golden(copy, **{"samples.fp32": np.full((16, 1, 8, 8), np.nan, np.float32)})
    assert "by nan (root mean square)" in refused(copy)


class Fixed(Engine):
    """Gives what a test says, in the precision that it says."""

    name = "fixed"

    def __init__(self, found, variant, sample, precision) -> None:
        super().__init__(found, found.variant(variant))
        self.sample, self.precision = sample, precision

    def load(self) -> None: ...

    def close(self) -> None: ...

    def _run(self, noise, label, guidance) -> Output:
        golden = self.bundle.golden()
        rows = slice(0, len(noise))
        return Output(self.sample[rows], golden.outputs[rows])


def test_engine_of_another_precision_answers_for_its_images_alone(copy):
    """As eager PyTorch does, where it stands in for int8."""
    found = bundle.load(copy)
    golden = found.golden()
    far = golden.samples["int8"] + np.float32(1.0)
    variant = found.variant("int8")
    with Fixed(found, "int8", far, "fp32") as engine:
        assert verify_golden(found, engine, variant) == 0
    with (
        Fixed(found, "int8", far, "int8") as engine,
        pytest.raises(BundleError, match=r"golden samples differ .* engine 'fixed'"),
    ):
        verify_golden(found, engine, variant)


@pytest.mark.parametrize("what", ["samples", "rms", "graphs"])
def test_golden_file_that_lacks_something_of_one_variant_is_refused(what, copy):
    edit_golden(copy, **{f"{what}.fp32": None})
    assert f"golden.npz has no {what} of variant 'fp32'" in refused(copy)
    assert verify(copy, "int8") < 255


@pytest.mark.parametrize("shape", [(16,), (16, 3, 8, 8), (16, 1, 8, 7), (4, 1, 8, 8)], ids=str)
def test_samples_of_another_shape_are_refused(shape, copy):
    edit_golden(copy, **{"samples.fp32": np.zeros(shape, np.float32)})
    refused(copy)


def test_everything_of_each_variant_comes_back_as_it_was_written(tmp_path):
    golden = Golden(
        seeds=np.arange(2),
        labels=None,
        guidance=None,
        outputs=np.zeros((2, 3), np.float32),
        tolerance={"fp32": np.inf, "a-b.c": 0.5},
        samples={"fp32": np.ones((2, 3), np.float32), "a-b.c": np.zeros((2, 3), np.float32)},
        rms={"fp32": 1e-5, "a-b.c": 0.25},
        graphs={"fp32": "ab" * 32, "a-b.c": "cd" * 32},
        other_steps={"4": np.full((2, 3), 2, np.float32)},
    )
    golden.save(tmp_path / "golden.npz")
    found = Golden.load(tmp_path / "golden.npz")
    assert (found.tolerance, found.rms, found.graphs) == (
        golden.tolerance, golden.rms, golden.graphs)  # fmt: skip
    assert found.samples.keys() == golden.samples.keys()
    assert found.other_steps.keys() == {"4"}
    np.testing.assert_array_equal(found.other_steps["4"], golden.other_steps["4"])
    for name, samples in golden.samples.items():
        np.testing.assert_array_equal(found.samples[name], samples)
    golden.save(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "golden.npz").read_bytes()


def test_golden_file_of_an_export_holds_every_variant(exported):
    golden = exported.golden()
    names = {"fp32", "int8"}
    assert names == set(golden.tolerance) == set(golden.samples) == set(golden.rms)
    assert golden.graphs == {n: sha256(exported.path / f"model.{n}.onnx") for n in names}
    assert golden.seeds.tolist() == list(range(16))
    assert golden.outputs.shape == (16, 8, 8, 1)

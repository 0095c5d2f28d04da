"""Fixtures for every stage: tiny hand-made bundles, so that no test waits for a training run."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from mmf_deploy import bundle, images
from mmf_deploy.golden import Golden
from mmf_deploy.noise import gaussian_batch
from mmf_deploy.spec import SampleSpec

DIGITS = SampleSpec(shape=(1, 8, 8), classes=10)
GOLDEN_SEEDS = (0, 1, 2, 3, 123456789, 2**63 - 1)


def formula(spec, noise, label=None, guidance=None) -> NDArray[np.float32]:
    """What the tiny model computes: noise / 2 + label / 100 + guidance / 100, in float32."""
    sample = noise * np.float32(0.5)
    column = (-1,) + (1,) * len(spec.shape)
    for extra in (label, guidance):
        if extra is not None:
            sample = sample + extra.astype(np.float32).reshape(column) * np.float32(0.01)
    return sample.astype(np.float32)


def tiny_model(spec: SampleSpec) -> onnx.ModelProto:
    """The formula as a graph with the inputs and outputs of a real bundle."""
    half, hundredth = np.float32(0.5), np.float32(0.01)
    column = np.array((-1,) + (1,) * len(spec.shape), np.int64)
    constants = {"half": half, "hundredth": hundredth, "column": column}
    inputs = [helper.make_tensor_value_info("noise", TensorProto.FLOAT, ["B", *spec.shape])]
    nodes = [helper.make_node("Mul", ["noise", "half"], ["s"])]
    last = "s"
    for name, kind in _extras(spec):
        inputs.append(helper.make_tensor_value_info(name, kind, ["B"]))
        nodes += [
            helper.make_node("Cast", [name], [f"{name}_f"], to=TensorProto.FLOAT),
            helper.make_node("Reshape", [f"{name}_f", "column"], [f"{name}_c"]),
            helper.make_node("Mul", [f"{name}_c", "hundredth"], [f"{name}_h"]),
            helper.make_node("Add", [last, f"{name}_h"], [f"s_{name}"]),
        ]
        last = f"s_{name}"
    nodes.append(helper.make_node("Identity", [last], ["sample"]))
    outputs = [helper.make_tensor_value_info("sample", TensorProto.FLOAT, ["B", *spec.shape])]
    if spec.is_image:
        constants |= {"low": np.float32(-1), "one": np.float32(1), "scale": np.float32(127.5)}
        nodes += _to_uint8_nodes()
        c, h, w = spec.shape
        outputs.append(helper.make_tensor_value_info("image", TensorProto.UINT8, ["B", h, w, c]))
    stored = [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def _extras(spec: SampleSpec) -> list[tuple[str, int]]:
    label = [("label", TensorProto.INT64)] if spec.conditional else []
    return label + ([("guidance", TensorProto.FLOAT)] if spec.guided else [])


def _to_uint8_nodes() -> list[onnx.NodeProto]:
    return [
        helper.make_node("Clip", ["sample", "low", "one"], ["clipped"]),
        helper.make_node("Add", ["clipped", "one"], ["positive"]),
        helper.make_node("Mul", ["positive", "scale"], ["levels"]),
        helper.make_node("Round", ["levels"], ["rounded"]),
        helper.make_node("Cast", ["rounded"], ["bytes"], to=TensorProto.UINT8),
        helper.make_node("Transpose", ["bytes"], ["image"], perm=[0, 2, 3, 1]),
    ]


def tiny_golden(spec: SampleSpec) -> Golden:
    """Golden outputs by numpy, not by the graph that they will judge."""
    count = len(GOLDEN_SEEDS)
    labels = np.arange(count) % spec.classes if spec.conditional else None
    low, high = spec.guidance or (1.0, 1.0)
    guidance = np.linspace(low, high, count, dtype=np.float32) if spec.guided else None
    sample = formula(spec, gaussian_batch(GOLDEN_SEEDS, spec.shape), labels, guidance)
    return Golden(
        seeds=np.array(GOLDEN_SEEDS, np.int64),
        labels=labels,
        guidance=guidance,
        outputs=images.to_uint8(sample) if spec.is_image else sample,
        tolerance={"fp32": 1.0 if spec.is_image else 1e-5},
    )


def write_tiny_bundle(path: Path, spec: SampleSpec = DIGITS) -> Path:
    """Write a bundle of the tiny model; returns its directory."""

    def fill(directory: Path) -> None:
        onnx.save(tiny_model(spec), directory / "model.fp32.onnx")
        tiny_golden(spec).save(directory / bundle.GOLDEN)

    source = bundle.Source(
        run="tiny", step=0, weights="none", weights_sha256="0" * 64, parameters=2
    )
    manifest = bundle.Manifest(
        name="tiny",
        spec=spec,
        variants=[bundle.Variant(name="fp32", file="model.fp32.onnx", precision="fp32", opset=20)],
        source=source,
        recipe={},
    )
    bundle.write(path, manifest, fill)
    return path


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory) -> Path:
    """A bundle of 8 × 8 images in ten classes: image = bytes of noise / 2 + label / 100."""
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="session")
def make_tiny_bundle(tmp_path_factory) -> Callable[[SampleSpec], Path]:
    """Makes a tiny bundle of any SampleSpec: vectors, colours, guidance, no classes."""

    def make(spec: SampleSpec) -> Path:
        return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny", spec)

    return make


@pytest.fixture(scope="session")
def tiny_formula() -> Callable[..., NDArray[np.float32]]:
    """``formula(spec, noise, label, guidance)``: what the tiny bundles compute."""
    return formula


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """``shared(name, make)``: the path that ``make(path)`` wrote, once for all workers of a run.

    Nobody may change what lies there.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)

    def once(name: str, make: Callable[[Path], object]) -> Path:
        path, partial = folder / name, folder / f"partial-{name}"
        with (folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                make(partial)
                partial.rename(path)
        return path

    return once

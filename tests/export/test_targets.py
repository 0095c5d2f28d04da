"""One export for every target: each variant opens, reproduces its golden samples, says what it is.

The network is a small conditional UNet; what has no engine here is compared by its stand-in.
"""

from __future__ import annotations

import importlib.util
from itertools import cycle

import numpy as np
import onnx
import pytest
from mmf_deploy.export import build
from mmf_deploy.export.assemble import export_origin
from mmf_deploy.export.plan import Request, make_plan
from mmf_deploy.export.targets import FORMS, TARGETS, candidates

from mmf_deploy import bundle as bundles_module
from mmf_deploy.engines.base import EngineOptions, open_engine
from mmf_deploy.golden import verify_golden
from mmf_deploy.nn.judge import Judge, layers

OPENVINO = importlib.util.find_spec("openvino") is not None
NAMES = [
    f"{prefix}{precision}{steps}"
    for prefix, precisions in {
        "": ("fp32", "int8"),
        "openvino-": ("fp32", "int8", "bf16"),
        "onnxruntime-cuda-": ("fp32", "fp16"),
        "web-": ("fp32", "fp16"),
    }.items()
    for precision in precisions
    for steps in ("", "-2step")
]


@pytest.fixture(scope="module")
def bundle(bundles):
    return bundles_module.load(bundles("conditional").path)


@pytest.fixture(params=NAMES)
def variant(request, bundle):
    if request.param.startswith("openvino") and not OPENVINO:
        pytest.skip("openvino is not installed")
    return bundle.variant(request.param)


def opened(bundle, variant):
    """The engine that compared it, on the device that compared it."""
    engine, _, device = variant.verified.partition(" on ")
    return open_engine(engine, bundle, variant.name, EngineOptions(device=device))


def test_export_has_a_variant_for_all_that_its_targets_offer(bundle):
    expected = [n for n in NAMES if OPENVINO or not n.startswith("openvino")]
    assert [v.name for v in bundle.manifest.variants] == expected


def test_variant_reproduces_its_golden_samples_alone_and_in_a_batch(bundle, variant):
    golden = bundle.golden()
    with opened(bundle, variant) as engine:
        worst = verify_golden(bundle, engine, variant)
    assert worst <= golden.tolerance[variant.name] <= (1 if variant.precision == "fp32" else 20)
    assert golden.samples[variant.name].shape == (16, *bundle.spec.shape)
    rms, measured = golden.rms[variant.name], variant.parity["rms"]
    assert 2e-5 <= rms <= (1e-3 if variant.precision == "fp32" else 2.1 * measured + 1e-4)


def test_manifest_says_what_the_variant_is_and_where_it_was_compared(bundle, variant):
    target = TARGETS[variant.target]
    prefix = "" if variant.target == "onnxruntime-cpu" else f"{variant.target}-"
    steps = "" if variant.steps == 1 else f"-{variant.steps}step"
    assert variant.name == f"{prefix}{variant.precision}{steps}"
    assert (variant.engine, variant.device) == (target.engine, target.device)
    assert variant.verified in (f"{target.engine} on {target.device}", "onnxruntime on cpu")
    assert variant.form == {**target.form.as_dict(), "precision":
                            target.precisions[variant.precision]}  # fmt: skip
    assert variant.opset == target.form.opset
    assert variant.exceptions == ["samples: 80 compared, not 256"]
    assert {"max_abs", "rms", "max_levels", "psnr", "psnr_worst", "samples"} == set(variant.parity)
    assert variant.parity["samples"] == 80


def test_manifest_counts_what_is_in_the_file(bundle, variant):
    file = bundle.file(variant)
    graph = onnx.load(file).graph
    assert onnx.load(file).opset_import[0].version == variant.opset
    assert variant.graph["nodes"] == len(graph.node) == sum(variant.graph["operators"].values())
    assert variant.graph["bytes"] == file.stat().st_size
    assert sum(variant.graph["weights"].values()) == sum(
        int(np.prod(i.dims)) for i in graph.initializer
    )


def rms(a, b) -> float:
    return float(np.sqrt(np.mean((a.astype(np.float64) - b) ** 2)))


def test_reduced_precisions_are_really_reduced(bundle):
    golden, named = bundle.golden(), bundle.variant
    for name in ("int8", "web-fp16", "onnxruntime-cuda-fp16"):
        assert rms(golden.samples[name], golden.samples["fp32"]) > 1e-5
    # the fp32 graph would not pass for the quantised one
    assert rms(golden.samples["int8"], golden.samples["fp32"]) > golden.rms["int8"]
    weights = named("int8").graph["weights"]
    assert weights["int8"] > 4 * weights["float"]
    weights = named("onnxruntime-cuda-fp16").graph["weights"]
    assert weights["float16"] > 10 * weights["float"]


@pytest.mark.skipif(not OPENVINO, reason="openvino is not installed")
def test_openvino_computes_bf16_from_the_very_file_that_it_computes_fp32_from(bundle):
    golden = bundle.golden()
    assert bundle.variant("openvino-bf16").file == bundle.variant("openvino-fp32").file
    low, whole = golden.samples["openvino-bf16"], golden.samples["openvino-fp32"]
    # on a processor without bf16 both are fp32
    assert rms(low, whole) < 2e-2
    assert rms(whole, golden.samples["fp32"]) < 1e-5


def test_variants_with_equal_files_share_one(bundle):
    names = [v.name for v in bundle.manifest.variants]
    for steps in ("", "-2step"):
        for first, others in {
            "fp32": ("openvino-fp32", "openvino-bf16", "onnxruntime-cuda-fp32", "web-fp32"),
            "int8": ("openvino-int8",),
        }.items():
            for name in others:
                if f"{name}{steps}" in names:
                    file = bundle.variant(f"{name}{steps}").file
                    assert (
                        file
                        == bundle.variant(f"{first}{steps}").file
                        == f"model.{first}{steps}.onnx"
                    )
    # none is stored twice
    stored = [h for n, h in bundle.manifest.files.items() if n.endswith(".onnx")]
    assert len(set(stored)) == len(stored) == 2 * 4


def test_two_steps_are_two_evaluations(bundle):
    one, two = bundle.variant("fp32"), bundle.variant("fp32-2step")
    assert (one.steps, two.steps) == (1, 2)
    assert two.graph["operators"]["Conv"] == 2 * one.graph["operators"]["Conv"]
    # one set of weights for both
    assert two.graph["bytes"] < 1.5 * one.graph["bytes"]
    golden = bundle.golden()
    assert np.abs(golden.samples["fp32"] - golden.samples["fp32-2step"]).max() > 1e-2


def test_latency_is_measured_of_every_variant_and_belongs_to_no_hash(bundle):
    found = bundle.measured()
    assert list(found["latency"]) == sorted(v.name for v in bundle.manifest.variants)
    for v in bundle.manifest.variants:
        assert found["latency"][v.name]["batch1_ms"] > 0
        assert found["latency"][v.name]["on"] == v.verified
    assert found["versions"] == bundle.manifest.versions
    assert found["machine"]
    assert "measured.json" not in bundle.manifest.files


def test_versions_name_every_engine_that_compared(bundle):
    engines = {v.verified.split()[0] for v in bundle.manifest.variants}
    assert engines <= set(bundle.manifest.versions)


@pytest.fixture(scope="module")
def tensorrt(origins, tmp_path_factory):
    """Everything that TensorRT is offered, compared by its stand-ins."""
    precisions = ("fp32", "fp16", "int8", *(("bf16",) if OPENVINO else ()))
    request = Request(
        tmp_path_factory.mktemp("tensorrt"), tmp_path_factory.mktemp("tensorrt") / "bundle",
        targets=("tensorrt",), precisions=precisions, samples=32,
    )  # fmt: skip
    return export_origin(origins("conditional"), request)


def test_tensorrt_gets_files_of_its_own_in_its_form(tensorrt):
    kinds = {"fp16": "float16", "bf16": "bfloat16", "int8": "int8", "fp32": "float"}
    for variant in tensorrt.manifest.variants:
        assert variant.file == f"model.tensorrt-{variant.precision}.onnx"
        assert variant.opset == 22
        assert "GroupNormalization" in variant.graph["operators"]
        most = max(variant.graph["weights"], key=variant.graph["weights"].get)
        assert most == kinds[variant.precision]
        with opened(tensorrt, variant) as engine:
            verify_golden(tensorrt, engine, variant)


def test_stand_in_leaves_room_for_the_engine_it_stands_for(tensorrt):
    golden = tensorrt.golden()
    for variant in tensorrt.manifest.variants:
        if variant.verified == "tensorrt on cuda":
            pytest.skip("TensorRT itself compared")
        assert golden.rms[variant.name] >= 1.9 * variant.parity["rms"]


def test_judge_of_a_run_judges_every_variant(convolutions, tmp_path):
    from dataclasses import replace

    import torch

    with torch.random.fork_rng():
        torch.manual_seed(1)
        body, head = layers()
    Judge(body, head, 0.9, np.zeros(64), np.eye(64)).save(tmp_path / "judge")
    origin = replace(convolutions(), judge=tmp_path / "judge")
    # by a judge that was never trained the classes are arbitrary: only that they are asked counts
    request = Request(
        tmp_path, tmp_path / "bundle", precisions=("fp32", "int8"), samples=64,
        allow=("frechet", "classes"),
    )  # fmt: skip
    for variant in export_origin(origin, request).manifest.variants:
        assert variant.parity["frechet"] > 0
        assert 0 <= variant.parity["frechet_shift"] < 1
        assert 0.5 < variant.parity["same_class"] <= 1


def tuned(origin, folder, monkeypatch, milliseconds, **options):
    """A bundle exported with --tune, two forms timed by a clock that reads ``milliseconds``."""
    clock = cycle(milliseconds)
    monkeypatch.setattr(build, "latency_ms", lambda engine, seconds: next(clock))
    monkeypatch.setattr(build, "candidates", lambda target: (target.form, FORMS[1]))
    return export_origin(origin, Request(folder, folder / "b", samples=16, tune=True, **options))


@pytest.mark.parametrize(
    ("milliseconds", "best"),
    [
        ([5.0, 3.0], FORMS[1]),
        ([3.0, 5.0], FORMS[0]),
        ([5.0, 4.98], FORMS[0]),  # within the noise the default stays
        ([5.0, 3.0, 5.0, 9.0, 5.0, 3.0], FORMS[1]),  # one turn that something disturbed
    ],
)
def test_tuning_takes_the_form_that_is_fastest_here(
    milliseconds, best, origins, tmp_path, monkeypatch
):
    bundle = tuned(origins("vector"), tmp_path, monkeypatch, milliseconds)
    variant = bundle.variant()
    assert (variant.opset, variant.form["normalisation"]) == (best.opset, best.normalisation)
    tried = bundle.measured()["forms"]["onnxruntime-cpu"]
    assert [form["latency_ms"] for form in tried] == milliseconds[:2]
    assert [form["opset"] for form in tried] == [form.opset for form in FORMS[:2]]


def test_candidates_begin_with_the_targets_own_form_and_are_no_older_than_it():
    for target in TARGETS.values():
        first, *others = candidates(target)
        assert first == target.form
        assert first not in others
        assert all(form.opset >= first.opset for form in others)
    assert set(candidates(TARGETS["onnxruntime-cpu"])) == set(FORMS)


def test_tuning_of_what_does_not_run_here_keeps_its_default(origins, tmp_path, monkeypatch):
    targets = ("onnxruntime-cuda", "web")
    planned, _ = make_plan(Request(tmp_path, tmp_path, targets=targets), origins("vector").spec)
    assert not planned[1].runs_here
    if planned[0].runs_here:
        pytest.skip("there is a GPU")
    bundle = tuned(origins("vector"), tmp_path, monkeypatch, [5.0, 3.0], targets=targets)
    assert bundle.measured()["forms"] == {}
    for variant in bundle.manifest.variants:
        assert variant.opset == TARGETS[variant.target].form.opset

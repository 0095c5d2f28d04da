"""What an export will make is decided, or refused with the reason, before anything is computed."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from pathlib import Path

import pytest
from mmf_deploy.export.assemble import freeze
from mmf_deploy.export.build import images_to_make
from mmf_deploy.export.calibrate import images_for
from mmf_deploy.export.plan import (
    Request,
    check_frozen,
    describe,
    find_verifier,
    make_plan,
    refuse_to_overwrite,
    with_triton,
)
from mmf_deploy.export.targets import PRECISIONS, TARGETS, refusal, variant_name

from mmf_deploy.engines import ENGINES
from mmf_deploy.engines.base import engine_class
from mmf_deploy.errors import ConfigError, DependencyError
from mmf_deploy.spec import SampleSpec

IMAGE = SampleSpec(shape=(1, 8, 8), classes=3, guidance=(1.0, 4.0))
PLAIN = SampleSpec(shape=(1, 8, 8))
VECTOR = SampleSpec(shape=(2,))
NO_GPU = "no NVIDIA driver"


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine with every engine's package and without a GPU; ``machine[name]`` breaks one."""
    problems = {}

    def answers(name, cls):
        def unavailable(options):
            if name in problems:
                return problems[name]
            return NO_GPU if options.device == "cuda" or name == "tensorrt" else None

        monkeypatch.setattr(cls, "unavailable", staticmethod(unavailable))

    for name in set(ENGINES) - {"pytorch"}:
        answers(name, engine_class(name))
    return problems


def request(**options) -> Request:
    return Request(Path("run"), Path("out"), **options)


def refused(spec=IMAGE, **options) -> str:
    with pytest.raises(ConfigError) as caught:
        make_plan(request(**options), spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_default_is_one_step_of_fp32_for_onnx_runtime_on_the_cpu():
    (planned,), left_out = make_plan(request(), IMAGE)
    assert (planned.name, planned.file, left_out) == ("fp32", "model.fp32.onnx", [])
    assert planned.verifier == ("onnxruntime", "cpu")
    assert planned.verified == "onnxruntime on cpu"


def test_every_combination_that_is_offered_is_planned_and_every_other_has_its_line():
    names = ("onnxruntime-cpu", "onnxruntime-cuda", "openvino", "web", "plain", "tensorrt")
    asked = request(targets=names, precisions=PRECISIONS, steps=(1, 4))
    planned, left_out = make_plan(asked, IMAGE)
    expected = [
        variant_name(target, precision, steps)
        for target in names
        for precision in PRECISIONS
        if precision in TARGETS[target].precisions
        for steps in (1, 4)
    ]
    assert [p.name for p in planned] == expected
    assert len(set(expected)) == len(expected)
    missing = [(t, p) for t in names for p in PRECISIONS if p not in TARGETS[t].precisions]
    assert len(left_out) == len(missing)
    for line, (target, precision) in zip(left_out, missing, strict=True):
        assert line.startswith(f"--target {target} --precision {precision}: ")
        assert line.endswith(f"{target} offers {', '.join(TARGETS[target].precisions)}")


def test_names_say_what_differs_from_the_default():
    assert variant_name("onnxruntime-cpu", "int8", 1) == "int8"
    assert variant_name("onnxruntime-cpu", "fp32", 2) == "fp32-2step"
    assert variant_name("openvino", "bf16", 4) == "openvino-bf16-4step"


@pytest.mark.parametrize(
    ("target", "precision", "reason"),
    [
        ("onnxruntime-cpu", "bf16", "no bf16 convolution on the CPU; use --target openvino"),
        ("onnxruntime-cpu", "fp16", "no fp16 convolution on the CPU; use --target openvino"),
        ("onnxruntime-cuda", "int8", "no int8 convolution; use --target tensorrt"),
        ("openvino", "fp16", "use bf16"),
        ("web", "int8", "slower than fp32 ones in a browser; use fp16"),
        ("plain", "int8", "it is not offered there. plain offers fp32"),
    ],
)
def test_single_pair_that_is_not_offered_is_refused_with_the_reason(target, precision, reason):
    assert reason in refused(targets=(target,), precisions=(precision,))


def test_every_pair_is_offered_or_has_a_reason():
    for name, target in TARGETS.items():
        assert not set(target.precisions) & set(target.refused), name
        for precision in PRECISIONS:
            reason = refusal(name, precision)
            assert (reason is None) == (precision in target.precisions)


def test_unknown_names_are_refused_with_the_nearest():
    assert "--target 'openvin' (did you mean 'openvino'?)" in refused(targets=("openvin",))
    assert "--precision 'int4' (did you mean 'int8'?)" in refused(precisions=("fp32", "int4"))
    assert "triton" in refused(targets=("nothing like it",))
    assert "--allow 'clases' (did you mean 'classes'?)" in refused(allow=("clases",))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": (0,)}, "--steps 0: expected 1 or more"),
        ({"steps": (2, -1)}, "--steps -1: expected 1 or more"),
        ({"steps": (2, 1, 2)}, "--steps 2,1,2: expected each once"),
        ({"steps": ()}, "--steps : expected each once"),
        ({"precisions": ("fp32", "fp32")}, "--precision fp32,fp32: expected each once"),
        ({"targets": ("web", "web")}, "--target web,web: expected each once"),
        ({"targets": ()}, "--target : expected each once"),
        ({"samples": 15}, "--samples 15: expected at least 16"),
        ({"label": 3}, "--label 3: expected 0 … 2"),
        ({"label": -1}, "--label -1: expected 0 … 2"),
        ({"guidance": 0.5}, "--guidance 0.5: expected 1 … 4"),
        ({"guidance": 4.01}, "--guidance 4.01: expected 1 … 4"),
        ({"guidance": float("nan")}, "--guidance nan: expected 1 … 4"),
    ],
    ids=str,
)
def test_value_out_of_range_is_refused_with_what_was_expected(options, said):
    assert refused(**options) == said


def test_frozen_input_that_the_generator_does_not_have_is_refused():
    assert "this generator has no classes" in refused(PLAIN, label=0)
    assert "this generator takes none" in refused(PLAIN, guidance=1.0)
    check_frozen(request(label=2, guidance=4.0), IMAGE)


@pytest.mark.parametrize("precision", ["int8", "fp16", "bf16"])
def test_vectors_are_fp32(precision):
    message = refused(VECTOR, targets=("tensorrt",), precisions=("fp32", precision))
    assert f"--precision {precision}: for images; this generator makes vectors" in message
    make_plan(request(), VECTOR)


def test_frozen_inputs_leave_the_specification(make_origin):
    origin = make_origin(importlib.import_module("torch").nn.Identity(), IMAGE)
    one = freeze(origin, request(label=2))
    assert (one.spec.classes, one.spec.guidance) == (0, (1.0, 4.0))
    assert (one.source.label, one.source.guidance) == (2, None)
    both = freeze(origin, request(label=0, guidance=2.0))
    assert (both.spec, both.source.label, both.source.guidance) == (PLAIN, 0, 2.0)
    assert freeze(origin, request()) == origin


@pytest.mark.parametrize(
    ("target", "precision", "verifier"),
    [
        ("tensorrt", "fp32", ("onnxruntime", "cpu")),
        ("tensorrt", "fp16", ("onnxruntime", "cpu")),
        ("tensorrt", "int8", ("onnxruntime", "cpu")),
        ("tensorrt", "bf16", ("openvino", "cpu")),
        ("onnxruntime-cuda", "fp16", ("onnxruntime", "cpu")),
        ("web", "fp16", ("onnxruntime", "cpu")),
        ("openvino", "bf16", ("openvino", "cpu")),
        ("aoti", "fp32", ("aoti", "cpu")),
    ],
)
def test_engine_that_is_not_here_has_a_stand_in_that_reads_the_same_file(
    target, precision, verifier
):
    assert find_verifier(TARGETS[target], precision) == verifier


def test_engine_that_is_here_compares_its_own(machine, monkeypatch):
    for name in ("onnxruntime", "tensorrt"):
        monkeypatch.setattr(engine_class(name), "unavailable", staticmethod(lambda options: None))
    assert find_verifier(TARGETS["onnxruntime-cuda"], "fp16") == ("onnxruntime", "cuda")
    for precision in TARGETS["tensorrt"].precisions:
        assert find_verifier(TARGETS["tensorrt"], precision) == ("tensorrt", "cuda")


def test_engine_without_a_stand_in_is_asked_for(machine):
    machine["openvino"] = "the package openvino is not installed"
    with pytest.raises(DependencyError, match="needs engine 'openvino': the package openvino"):
        find_verifier(TARGETS["openvino"], "fp32")
    with pytest.raises(DependencyError, match="comparing bf16 here needs engine 'openvino'"):
        find_verifier(TARGETS["tensorrt"], "bf16")
    machine["aoti"] = "no compiler"
    with pytest.raises(DependencyError, match="needs engine 'aoti': no compiler"):
        find_verifier(TARGETS["aoti"], "fp32")
    machine["onnxruntime"] = "gone"
    with pytest.raises(DependencyError, match="needs engine 'onnxruntime': gone"):
        find_verifier(TARGETS["tensorrt"], "fp16")


def test_engine_whose_package_is_missing_is_not_here(monkeypatch):
    name, _, _ = ENGINES["tensorrt"].partition(":")
    monkeypatch.setitem(sys.modules, name, None)
    assert find_verifier(TARGETS["tensorrt"], "fp16") == ("onnxruntime", "cpu")


@pytest.mark.parametrize(
    ("given", "names", "triton"),
    [
        (("web",), ("web",), False),
        (("triton",), ("onnxruntime-cpu",), True),
        (("openvino", "triton"), ("onnxruntime-cpu", "openvino"), True),
        (("onnxruntime-cuda", "triton"), ("onnxruntime-cuda",), True),
    ],
)
def test_triton_takes_onnx_runtimes_variants(given, names, triton):
    assert with_triton(given) == (names, triton)


def test_description_has_one_line_a_variant_with_form_and_where_it_is_compared():
    asked = request(
        targets=("onnxruntime-cpu", "tensorrt", "plain", "aoti"), precisions=("fp32", "int8"),
        steps=(2,),
    )  # fmt: skip
    planned, _ = make_plan(asked, IMAGE)
    lines = describe(planned)
    assert [line.partition(":")[0] for line in lines] == [p.name for p in planned]
    said = dict(zip((p.name for p in planned), lines, strict=True))
    assert (
        "opset 20, instance normalisation, nearest upsampling, time folded, graph"
        in said["fp32-2step"]
    )
    assert "compared on onnxruntime on cpu" in said["tensorrt-int8-2step"]
    assert "qdq-s8s8" in said["tensorrt-int8-2step"]
    assert "time an input" in said["plain-fp32-2step"]
    assert "compiled package" in said["aoti-fp32-2step"]
    assert all("2 steps" in line for line in lines)


def test_images_to_make_count_references_comparisons_and_calibrations_once(make_origin):
    origin = make_origin(importlib.import_module("torch").nn.Identity(), IMAGE)
    asked = request(
        targets=("onnxruntime-cpu", "openvino"), precisions=("fp32", "int8"), steps=(1, 2)
    )
    planned, _ = make_plan(asked, IMAGE)
    # eight variants and two references; both targets quantise the same two graphs
    assert images_to_make(planned, 100, origin) == 100 * (8 + 2) + 2 * images_for(IMAGE)


def test_file_takes_the_ending_of_its_format():
    (planned,), _ = make_plan(request(targets=("aoti",)), IMAGE)
    assert planned.file == "model.aoti-fp32.pt2"
    assert dataclasses.replace(planned, target=TARGETS["web"]).file == "model.aoti-fp32.onnx"


def test_only_a_bundle_is_replaced_and_only_by_force(tmp_path):
    refuse_to_overwrite(tmp_path / "new", force=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="exists; choose another --out, or replace it with"):
        refuse_to_overwrite(tmp_path / "empty", force=False)
    refuse_to_overwrite(tmp_path / "empty", force=True)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("work of years")
    (tmp_path / "file").write_text("")
    for name in ("thesis", "file"):
        with pytest.raises(ConfigError, match="is not a bundle; --force replaces only bundles"):
            refuse_to_overwrite(tmp_path / name, force=True)
    (tmp_path / "thesis" / "bundle.json").write_text("{}")
    refuse_to_overwrite(tmp_path / "thesis", force=True)


@pytest.mark.parametrize("out", ["", ".", "..", "/", "a/.."])
def test_bundle_needs_a_name(out):
    with pytest.raises(ConfigError, match="give the bundle a name"):
        refuse_to_overwrite(Path(out), force=True)

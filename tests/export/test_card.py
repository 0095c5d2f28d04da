"""The model card says what the manifest says, and how to make the bundle again."""

from __future__ import annotations

import shlex

import pytest
from mmf_deploy.export.assemble import export_bundle
from mmf_deploy.export.card import render, reproduce
from mmf_deploy.export.plan import Request, options_of

from mmf_deploy.bundle import Manifest, Source, Variant
from mmf_deploy.spec import SampleSpec

IMAGE = SampleSpec(shape=(1, 8, 8), classes=10)
PARITY = {"max_abs": 1.4e-06, "rms": 2e-7, "max_levels": 1, "psnr": 86.98, "samples": 2000}
SOURCE = {"run": "digits", "step": 1500, "weights": "ema-0.995", "weights_sha256": "0" * 64,
          "parameters": 201233}  # fmt: skip
QUALITY = {"samples": 2000, "classifier_accuracy": 0.983, "class_accuracy": 0.9912,
           "frechet": 8.4123, "frechet_real": 7.6, "ratio": 1.107}  # fmt: skip


def variant(name="fp32", **changes) -> Variant:
    known = {"precision": "fp32", "parity": PARITY, "verified": "onnxruntime on cpu"}
    return Variant(name=name, file=f"model.{name}.onnx", **{**known, **changes})


def manifest(*variants, source=None, **changes) -> Manifest:
    known = {"name": "mine", "spec": IMAGE, "recipe": {"objective": {"name": "mmf"}}}
    return Manifest(
        variants=list(variants or [variant()]), source=Source(**{**SOURCE, **(source or {})}),
        **{**known, **changes},
    )  # fmt: skip


def row_of(card, name) -> list[str]:
    (line,) = (line for line in card.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_card_names_the_run_its_weights_and_its_size():
    card = render(manifest())
    for part in ("# mine", "1×8×8, 10 classes", "201,233", "run `digits`, step 1500",
                 "weights `ema-0.995`", "| Objective | `mmf` |", "2,000 seeds",
                 "![samples](samples.png)", "accept: image/png"):  # fmt: skip
        assert part in card


def test_card_of_vectors_has_no_picture():
    card = render(manifest(spec=SampleSpec(shape=(2,))))
    assert "samples.png" not in card
    assert "accept: application/x-npy" in card
    assert "classes" not in card
    assert ", its label" not in card


def test_each_variant_has_a_row_of_what_was_measured():
    reduced = variant(
        "tensorrt-int8", precision="int8", target="tensorrt", steps=2,
        parity={**PARITY, "max_abs": 0.0851, "psnr": 999.0, "max_levels": 10},
    )  # fmt: skip
    card = render(manifest(variant(), reduced))
    assert row_of(card, "fp32") == ["fp32", "onnxruntime-cpu", "fp32", "1", "1.4e-06", "1",
                                    "87.0", "onnxruntime on cpu"]  # fmt: skip
    assert row_of(card, "tensorrt-int8") == ["tensorrt-int8", "tensorrt", "int8", "2", "8.5e-02",
                                             "10", "equal", "onnxruntime on cpu"]  # fmt: skip


def test_what_a_judge_saw_has_its_columns_if_there_was_one():
    judged = variant("int8", parity={**PARITY, "frechet_shift": 0.0123, "same_class": 0.9975})
    card = render(manifest(variant(), judged))
    assert row_of(card, "int8")[-2:] == ["1.23%", "99.75%"]
    assert row_of(card, "fp32")[-2:] == ["", ""]
    assert "Fréchet shift" not in render(manifest())


def test_exceptions_that_a_person_allowed_are_listed():
    card = render(manifest(variant(), variant("int8", exceptions=["psnr: PSNR 12 dB"])))
    assert "Allowed although a gate failed:\n\n- int8: psnr: PSNR 12 dB\n" in card
    assert "Allowed" not in render(manifest())


def test_frozen_inputs_are_listed_and_are_no_inputs():
    card = render(manifest(source={"label": 3, "guidance": 2.5}, spec=SampleSpec(shape=(1, 8, 8))))
    assert "| Label | 3, frozen |" in card
    assert "| Guidance scale | 2.5, frozen |" in card
    assert "frozen" not in render(manifest())


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ((1,), "A one-step generator: one network evaluation turns noise"),
        ((2,), "A few-step generator: 2 network evaluations turn noise"),
        ((4, 1), "A few-step generator: 1 or 4 network evaluations turn noise"),
        ((1, 2, 4), "A few-step generator: 1, 2 or 4 network evaluations turn noise"),
    ],
)
def test_number_of_evaluations_is_said(steps, said):
    assert said in render(manifest(*(variant(f"v{n}", steps=n) for n in steps)))


def test_quality_of_the_training_is_shown_if_it_is_known():
    card = render(manifest(quality=QUALITY))
    for part in ("98.3%", "99.1%", "8.412", "7.600", "1.11×"):
        assert part in card
    assert "## Quality" not in render(manifest())


def test_commands_make_the_same_bundle_again():
    # the weights by name: which average is the default may change
    weights = "--weights ema-0.995"
    assert reproduce(manifest()) == f"mmf-export RUN {weights} --out mine"
    trained = {"command": "mmf train digits --seed 3"}
    assert reproduce(manifest(source=trained)) == (
        f"mmf train digits --seed 3 --out runs/digits\nmmf-export runs/digits {weights} --out mine"
    )
    # of a network of one's own the command itself names the file of its weights
    imported = {"command": "mmf-export --module net:make --shape 3,32,32", "options": ["--curve"]}
    assert reproduce(manifest(source=imported)) == (
        "mmf-export --module net:make --shape 3,32,32 --curve --out mine"
    )


def test_options_are_those_that_were_asked_for(tmp_path):
    request = Request(
        tmp_path, tmp_path / "b", targets=("onnxruntime-cpu", "openvino"), steps=(1, 2),
        precisions=("fp32", "int8"), label=3, guidance=1.5, min_psnr=35.5, curve=True, tune=True,
        allow=("psnr", "classes"), samples=64,
    )  # fmt: skip
    options = options_of(request)
    assert options_of(Request(tmp_path, tmp_path / "b")) == []
    command = reproduce(manifest(source={"options": options}, name="my bundle"))
    assert shlex.split(command) == [
        "mmf-export", "RUN", "--weights", "ema-0.995", "--target", "onnxruntime-cpu,openvino",
        "--precision", "fp32,int8", "--steps", "1,2", "--label", "3", "--guidance", "1.5",
        "--min-psnr", "35.5", "--allow", "psnr,classes", "--samples", "64", "--curve", "--tune",
        "--out", "my bundle",
    ]  # fmt: skip


def test_commands_of_an_export_name_its_weights_and_options(checkpoints, tmp_path):
    request = Request(checkpoints("vector"), tmp_path / "b", weights="model", samples=16)
    found = reproduce(export_bundle(request).manifest)
    assert found == "mmf-export RUN --weights model --samples 16 --out b"

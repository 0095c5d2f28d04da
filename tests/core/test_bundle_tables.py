"""The tables of `mmf inspect` say what manifest and measurements say."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from mmf_deploy import measured
from mmf_deploy.bundle import Bundle, Manifest, Source, Variant
from mmf_deploy.bundle_tables import (
    forms_table,
    operators_table,
    sensitivity_table,
    tradeoff_table,
    variants_table,
)
from mmf_deploy.spec import SampleSpec

PARITY = {"max_abs": 1.43e-6, "rms": 2.1e-7, "max_levels": 1, "psnr": 86.98, "samples": 2000}


def variant(name, **changes) -> Variant:
    known = {"file": f"model.{name}.onnx", "precision": "fp32", "parity": PARITY}
    return Variant(name=name, **{**known, **changes})


@pytest.fixture
def make(tmp_path):
    """``make(*variants, **measurements)``: a bundle with files of a known size."""

    def write(*variants, **content) -> Bundle:
        for v in variants:
            (tmp_path / v.file).write_bytes(bytes(1_234_567))
        if content:
            (tmp_path / measured.NAME).write_bytes(measured.render(content))
        source = Source(run="r", step=0, weights="w", weights_sha256="0" * 64, parameters=1)
        spec = SampleSpec(shape=(1, 8, 8))
        manifest = Manifest(name="m", spec=spec, variants=list(variants), source=source, recipe={})
        return Bundle(tmp_path, manifest, "")

    return write


def shown(table) -> str:
    out = io.StringIO()
    Console(file=out, width=160).print(table)
    return out.getvalue()


def rows(table) -> dict[str, list[str]]:
    """Cells by the first of their row."""
    lines = zip(*(column.cells for column in table.columns), strict=True)
    return {str(cells[0]): [str(cell) for cell in cells] for cells in lines}


def test_variant_has_its_size_nodes_quality_and_time(make):
    bundle = make(
        variant("fp32", graph={"nodes": 288}),
        variant("equal", steps=4, parity={**PARITY, "psnr": 999.0}),
        latency={"fp32": {"batch1_ms": 1.23456}},
    )
    found = rows(variants_table(bundle))
    assert found["fp32"] == ["fp32", "1", "1.23", "288", "1.4e-06", "2.1e-07", "87.0", "1.23"]
    assert found["equal"] == ["equal", "4", "1.23", "", "1.4e-06", "2.1e-07", "equal", ""]


def test_time_of_a_stand_in_is_not_shown_for_its_target(make):
    bundle = make(
        variant("gpu", device="cuda", verified="onnxruntime on cpu"),
        variant("trt", engine="tensorrt", device="cuda", verified="tensorrt on cuda"),
        variant("web", target="web"),
        latency={name: {"batch1_ms": 0.5} for name in ("gpu", "trt", "web")},
    )
    found = {name: row[-1] for name, row in rows(variants_table(bundle)).items()}
    # a browser is no ONNX Runtime on this processor
    assert found == {"gpu": "", "trt": "0.5", "web": ""}


def test_columns_of_the_judge_are_there_if_it_judged(make):
    judged = variant("a", parity={**PARITY, "frechet_shift": 0.0123, "same_class": 0.9975})
    found = rows(variants_table(make(judged, variant("b"))))
    assert found["a"][-3:-1] == ["1.23%", "99.75%"]
    assert found["b"][-3:-1] == ["", ""]
    assert len(rows(variants_table(make(variant("b"))))["b"]) == len(found["b"]) - 2


def test_variant_without_any_measurement_is_shown(make):
    found = rows(variants_table(make(variant("old", parity={}))))
    assert found["old"] == ["old", "1", "1.23", "", "", "", "", ""]


def test_operators_are_counted_by_variant_and_equal_files_share_a_column(make):
    one = {"operators": {"Conv": 16, "Mul": 1200}, "weights": {"float": 41245}}
    two = {"operators": {"Conv": 16, "QuantizeLinear": 30}, "weights": {"int8": 40000, "float": 9}}
    bundle = make(
        variant("fp32", graph=one),
        variant("web-fp32", graph=one, file="model.fp32.onnx"),
        variant("int8", graph=two),
        variant("aoti", file="model.pt2"),
    )
    found = rows(operators_table(bundle))
    heads = [str(column.header) for column in operators_table(bundle).columns]
    assert heads == ["", "fp32\nweb-fp32", "int8"]
    assert found["Mul"] == ["Mul", "1,200", ""]
    assert found["QuantizeLinear"] == ["QuantizeLinear", "", "30"]
    assert found["weights float"] == ["weights float", "41,245", "9"]
    assert found["weights int8"] == ["weights int8", "", "40,000"]
    # the most frequent first
    assert list(found)[:3] == ["Mul", "QuantizeLinear", "Conv"]


def test_most_sensitive_layers_come_first_with_those_that_stayed_in_fp32(make):
    alone = {f"layer{k}": 40.0 + k for k in range(20)} | {"worst": 21.39}
    about = {"kept_in_fp32": ["worst"], "psnr_alone": alone}
    bundle = make(variant("int8"), int8={"int8": about, "other": {"psnr_alone": {}}})
    (table,) = sensitivity_table(bundle)
    found = rows(table)
    assert len(found) == 12
    assert list(found)[:2] == ["worst", "layer0"]
    assert found["worst"] == ["worst", "21.4", "yes"]
    assert found["layer0"][2] == ""


def curve(*points) -> list:
    names = ("layers", "share", "psnr", "latency_ms")
    return [dict(zip(names, point, strict=True)) for point in points]


def test_trade_off_has_a_row_a_point_and_marks_the_one_chosen(make):
    points = curve((14, 1.0, 21.39, 0.8), (13, 0.92, 45.78, 0.9), (0, 0.0, 999.0, None))
    about = {"min_psnr": 42.0, "quantised": 13, "curve": points}
    nothing = {"min_psnr": 30.0, "quantised": 33, "curve": []}
    bundle = make(variant("int8"), int8={"int8": about, "openvino-int8": nothing})
    (table,) = tradeoff_table(bundle)
    assert "int8: quality against speed (floor 42 dB)" in shown(table)
    found = rows(table)
    assert list(found) == ["14", "13 ←", "0"]
    assert found["13 ←"] == ["13 ←", "92%", "45.8", "0.9"]
    assert found["0"] == ["0", "0%", "equal", ""]


def test_forms_have_a_row_each_and_the_fastest_is_marked(make):
    forms = [
        {"opset": 20, "normalisation": "instance", "upsampling": "nearest", "latency_ms": 2.5},
        {"opset": 21, "normalisation": "group", "upsampling": "nearest", "latency_ms": 1.25},
    ]
    (table,) = forms_table(make(variant("fp32"), forms={"openvino": forms}))
    assert "openvino: forms" in shown(table)
    assert rows(table)["20"] == ["20", "instance", "nearest", "2.5"]
    assert rows(table)["21"] == ["21", "group", "nearest", "1.25 ←"]


def test_bundle_without_measurements_has_no_such_tables(make):
    bundle = make(variant("fp32"))
    assert tradeoff_table(bundle) == []
    assert sensitivity_table(bundle) == []
    assert forms_table(bundle) == []


def test_time_of_pytorch_is_said_below(make):
    bundle = make(variant("fp32"), pytorch={"1": 12.345, "2": 24.0})
    said = " ".join(shown(variants_table(bundle)).split())
    assert "PyTorch eager on the CPU there: 12.3 ms with 1 step, 24 ms with 2 steps" in said

"""`mmf selftest`: an engine that is right passes, and every way to be wrong is found."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from mmf_deploy.export.gates import LIMITS

from mmf_deploy import bundle as bundles
from mmf_deploy import cli, images, results, selftest_cli
from mmf_deploy.engines.base import Engine, Output
from mmf_deploy.errors import BundleError, EngineError
from mmf_deploy.selftest import PSNR_DB, batches_to_test, run_selftest
from mmf_deploy.spec import SampleSpec

GUIDED = SampleSpec(shape=(1, 4, 4), classes=3, guidance=(1, 4))
VECTOR = SampleSpec(shape=(2,))


@pytest.fixture
def mmf(monkeypatch, capsys):
    def run(*args):
        monkeypatch.setattr(sys, "argv", ["mmf", *map(str, args)])
        code = 0
        try:
            cli.main()
        except SystemExit as e:
            code = e.code or 0
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def make(make_tiny_bundle, tiny_formula):
    """Makes an open engine that computes the formula, with a fault."""

    class FormulaEngine(Engine):
        name = "formula"
        sizes: list[int]

        def load(self):
            self.sizes = []

        def close(self):
            pass

        def fault(self, output: Output) -> Output:
            return output

        def _run(self, noise, label, guidance):
            self.sizes.append(len(noise))
            sample = tiny_formula(self.spec, noise, label, guidance)
            image = images.to_uint8(sample) if self.spec.is_image else None
            return self.fault(Output(sample, image))

    def build(spec=GUIDED, fault=None):
        engine = FormulaEngine(bundles.load(make_tiny_bundle(spec)))
        engine.buckets = (1, 2, 4)
        if fault is not None:
            engine.fault = fault
        return engine

    return build


def test_a_command_prints_a_table_and_ends_with_the_verdict(mmf, tiny_bundle, tmp_path):
    out = tmp_path / "result.json"
    code, said, err = mmf("selftest", tiny_bundle, "--engine", "onnxruntime", "--threads", 1,
                          "--seconds", 0.001, "--out", out)  # fmt: skip
    assert (code, err) == (0, "")
    lines = said.splitlines()
    assert lines[0] == "self-test of engine onnxruntime on cpu, variant fp32 with tiny"
    for column in ("batch", "bucket", "difference", "median ms", "images/s"):
        assert column in said
    assert lines[-2] == f"written: {out}, {tmp_path / 'result.md'}"
    assert lines[-1].startswith(
        "selftest passed: engine onnxruntime on cpu, variant fp32: golden within "
    )
    assert lines[-1].endswith(" ms at batch 1")
    assert "| 64 | 64 | 0 |" in (tmp_path / "result.md").read_text()
    assert results.read(out).kind == "selftest"
    record = json.loads(out.read_text())
    assert record["command"].startswith(f"mmf selftest {tiny_bundle} --engine onnxruntime")
    assert {"onnxruntime", "numpy", "python", "mmf-deploy"} <= set(record["versions"])
    assert record["digest"] == bundles.load(tiny_bundle).digest
    assert (record["device"], record["precision"]) == ("cpu", "fp32")
    assert record["machine"]["cpu"]
    rows = record["result"]["rows"]
    assert [row["batch"] for row in rows] == [1, 2, 3, 4, 8, 16, 32, 63, 64, 65]
    timed = [row["batch"] for row in rows if row["median_ms"] is not None]
    assert timed == [1, 2, 4, 8, 16, 32, 64]
    assert all(row["calls"] >= 3 for row in rows if row["median_ms"] is not None)


def test_the_embedded_digits_and_the_variants_own_engine_are_the_default(mmf):
    code, said, _ = mmf("selftest", "--seconds", 0.001)
    assert code == 0
    assert said.splitlines()[0].endswith("variant fp32 with digits")


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--engine", "tensorrt", "--device", "cpu"], 1, "engine 'tensorrt' cannot run here"),
        (["--engine", "tensort"], 1, "did you mean 'tensorrt'?"),
        (["--mode", "graph"], 1, "has no mode 'graph'"),
        (["--variant", "none"], 1, "no variant 'none'"),
        (["--seconds", "0"], 2, "--seconds 0: expected more than 0"),
        (["--out", "result.txt"], 2, "ends in .json"),
    ],
)
def test_an_error_is_one_line(args, code, message, mmf, tiny_bundle):
    found, _, err = mmf("selftest", tiny_bundle, *args)
    assert found == code
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_a_right_engine_passes_in_every_bucket_and_between_them(make):
    seen = []
    with make() as engine:
        result = run_selftest(engine, 1e-6, lambda what, done: seen.append((what, done)))
    assert (result.golden, result.allowed.largest, result.unit) == (0, 1, "of 255 levels")
    assert [(row.batch, row.bucket) for row in result.rows] == [(1, 1), (2, 2), (3, 4), (4, 4),
                                                                (5, 4)]  # fmt: skip
    assert {1, 2, 3, 4} == set(engine.sizes)
    assert [done for _, done in seen] == sorted(done for _, done in seen)
    assert (seen[0], seen[-1]) == (("golden outputs", 0), ("done", 100))


def test_vectors_pass_too(make):
    with make(VECTOR) as engine:
        assert run_selftest(engine, 1e-6).unit == "absolute"


def test_buckets_may_be_one():
    assert batches_to_test((1,)) == [1, 2, 3]


def test_no_larger_batch_is_formed_than_was_asked_for(mmf, tiny_bundle, tmp_path):
    out = tmp_path / "result.json"
    code, _, _ = mmf("selftest", tiny_bundle, "--max-batch", 4, "--seconds", 0.001, "--out", out)
    assert code == 0
    rows = json.loads(out.read_text())["result"]["rows"]
    assert [(row["batch"], row["bucket"]) for row in rows] == [(1, 1), (2, 2), (3, 4), (4, 4),
                                                               (5, 4)]  # fmt: skip


# on a device with a clock and memory of its own


def test_time_and_memory_of_a_device_are_reported(make, monkeypatch, capsys):
    with make() as engine:
        engine.device = "cuda"
        run = engine._run

        def with_clock(noise, label, guidance):
            if engine.record_device_time:
                engine._spent_on_device(0.25)
            return run(noise, label, guidance)

        engine._run = with_clock
        monkeypatch.setattr(engine, "device_memory_mb", lambda: 1234.5)
        result = run_selftest(engine, 1e-6)
    assert engine.record_device_time is False
    assert [row.device_ms for row in result.rows] == [0.25, 0.25, None, 0.25, None]
    selftest_cli._table(result).print()
    said = capsys.readouterr().out
    assert "device ms" in said
    assert "most device memory: 1,234 MB" in said


# an engine that rounds more than the variant


def noisy(deviation):
    """Adds noise of this standard deviation, in levels."""

    def fault(output):
        rng = np.random.default_rng(len(output.image))
        image = output.image + rng.normal(0, deviation, output.image.shape)
        return Output(output.sample, np.clip(image, 0, 255).round().astype(np.uint8))

    return fault


@pytest.mark.parametrize(
    ("precision", "deviation", "passes"),
    [("fp32", 2, False), ("bf16", 2, True), ("bf16", 12, False), ("fp16", 1, True),
     ("fp16", 5, False), ("tf32", 1, True), ("tf32", 5, False)],
)  # fmt: skip
def test_what_rounds_more_is_held_to_the_psnr_of_its_precision(precision, deviation, passes, make):
    with make(fault=noisy(deviation)) as engine:
        engine.precision = precision
        if passes:
            result = run_selftest(engine, 1e-6)
            assert result.golden > 1
            assert result.allowed.largest is None
            assert str(result.allowed).startswith("a PSNR of at least")
        else:
            expected = "differs by" if precision == "fp32" else r"have a PSNR of .* dB, expected"
            with pytest.raises(BundleError, match=expected):
                run_selftest(engine, 1e-6)


def test_the_psnr_of_a_precision_is_the_one_that_export_asks_for():
    for precision, psnr_db in PSNR_DB.items():
        # TF32 rounds factors as fp16 does
        assert psnr_db == LIMITS["fp16" if precision == "tf32" else precision].psnr


def test_rows_in_the_wrong_order_are_found_by_psnr_too(make):
    with make(fault=reversed_rows) as engine:
        engine.precision = "bf16"
        with pytest.raises(EngineError, match="a batch of 3 and the same ones computed alone have"):
            run_selftest(engine, 1e-6)


def shifted(output):
    return Output(output.sample, output.image + np.uint8(9))


def unlike_alone(output):
    """Right alone and in the golden batch of six, wrong in the last row of three."""
    if len(output.image) != 3:
        return output
    image = output.image.copy()
    image[2] ^= 128
    return Output(output.sample, image)


def reversed_rows(output):
    return Output(output.sample[::-1], output.image[::-1]) if len(output.image) == 3 else output


def not_finite(output):
    return Output(np.where(output.sample > 0.9, np.float32(np.nan), output.sample), output.image)


def too_few(output):
    return Output(output.sample[:3], output.image[:3]) if len(output.sample) == 4 else output


def floats(output):
    return Output(output.sample, output.image.astype(np.float32))


def doubles(output):
    return Output(output.sample.astype(np.float64), output.image)


def no_images(output):
    return Output(output.sample, None) if len(output.sample) == 3 else output


FAULTS = [
    (shifted, BundleError, "golden image of seed"),
    (unlike_alone, EngineError, "batch of 3 and the same ones computed alone differ by 128"),
    (reversed_rows, EngineError, "batch of 3 and the same ones computed alone differ by"),
    (not_finite, BundleError, "golden samples that are not finite"),
    (too_few, BundleError, "golden outputs of shape"),
    (floats, EngineError, r"images float32\[1, 4, 4, 1\] for a batch of 1; expected uint8"),
    (doubles, EngineError, "samples float64"),
    (no_images, EngineError, "images None for a batch of 3"),
]


@pytest.mark.parametrize(("fault", "kind", "message"), FAULTS)
def test_a_wrong_engine_is_found(fault, kind, message, make):
    with make(fault=fault) as engine, pytest.raises(kind, match=message):
        run_selftest(engine, 1e-6)

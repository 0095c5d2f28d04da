"""The benchmark: what it reports, and that it cannot flatter."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mmf_deploy.serve.bench.cli import _command
from mmf_deploy.serve.bench.measure import Plan, Report, Row, _rows, measure
from mmf_deploy.serve.bench.plot import best_rows, plot
from mmf_deploy.serve.bench.worker import Setting, Subject, Worker
from PIL import Image

from mmf_deploy import bundle as bundles
from mmf_deploy import machine
from mmf_deploy.embedded import digits_bundle
from mmf_deploy.errors import BundleError, ConfigError, EngineError

TORCH_1 = Subject("pytorch", "eager fp32", 1)
TORCH_2 = Subject("pytorch", "eager fp32", 2)
ORT = Subject("onnxruntime", "fp32", 1)


def test_rows_are_per_image_and_compared_with_the_fastest_baseline():
    turns = {
        TORCH_1: [[0.040, 0.040], [0.040]],
        TORCH_2: [[0.020], [0.024], [0.020]][:2],
        ORT: [[0.010, 0.010, 0.010], [0.008]],
    }
    rows = {(r.engine, r.threads): r for r in _rows(turns, batch=4)}
    ort = rows["onnxruntime", 1]
    assert ort.median_ms == pytest.approx(10 / 4)
    assert ort.images_per_s == pytest.approx(400)
    # 20/10 in one turn, 24/8 in the other: against two threads, not against the slower one
    assert ort.speedup == pytest.approx(2.5)
    assert rows["pytorch", 1].speedup < 1
    assert rows["pytorch", 2].speedup == 1
    assert ort.calls == 4


def test_without_a_baseline_there_is_no_ratio():
    assert _rows({ORT: [[0.01]]}, batch=1)[0].speedup is None


def test_the_embedded_bundle_is_measured_with_every_number_of_threads():
    bundle = bundles.load(digits_bundle())
    seen = []
    report = measure(
        bundle,
        Plan([1, 4], [1, 2], seconds=0.2, variants=["fp32"]),
        "mmf-bench",
        lambda what, done: seen.append((what, done)),
    )
    assert [(r.engine, r.threads, r.batch) for r in report.rows] == [
        ("onnxruntime", 1, 1),
        ("onnxruntime", 2, 1),
        ("onnxruntime", 1, 4),
        ("onnxruntime", 2, 4),
    ]
    assert all(0 < r.median_ms <= r.p90_ms <= r.p99_ms for r in report.rows)
    assert report.digest == bundle.digest
    assert seen[-1] == ("batch 4", 100)
    assert "torch" not in report.versions


@pytest.mark.parametrize("plan", [Plan([0], [1]), Plan([], [1]), Plan([1], [0])])
def test_impossible_plans_are_refused(plan):
    with pytest.raises(ConfigError, match="expected integers of at least 1"):
        measure(bundles.load(digits_bundle()), plan, "mmf-bench")


def test_an_engine_that_cannot_start_says_why_in_the_parent():
    setting = Setting(digits_bundle(), None)
    with (
        pytest.raises(EngineError, match="needs the checkpoint"),
        Worker(setting, TORCH_1),
    ):
        pass


def test_an_engine_whose_process_dies_is_an_error_and_not_a_hang():
    with Worker(Setting(digits_bundle(), None), ORT) as worker:
        worker._process.kill()
        worker._process.join()
        with pytest.raises(EngineError, match="died"):
            worker.turn(1, 0.01)


def row(engine, batch, median, speedup=None, threads=1):
    return Row(engine, "fp32", threads, batch, median, median * 1.1, median * 1.2, 1e3 / median,
               speedup, 10)  # fmt: skip


def report(rows):
    return Report("mmf-bench", "digits", "0" * 64, 192_545, machine.describe(), {}, rows)


def test_the_plot_is_a_picture_with_the_best_rows(tmp_path):
    rows = [row("pytorch", b, 2 / b, 1.0) for b in (1, 8)]
    rows += [row("onnxruntime", b, 1 / b, 2.0) for b in (1, 8)]
    rows += [row("onnxruntime", b, 5 / b, 0.4, threads=2) for b in (1, 8)]
    best = best_rows(report(rows))
    assert [r.threads for r in best["onnxruntime", "fp32"]] == [1, 1]
    plot(report(rows), tmp_path / "bench.png")
    pixels = np.asarray(Image.open(tmp_path / "bench.png"))
    assert pixels.shape[1] > 1000
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 20


def test_a_report_without_baseline_is_plotted_too(tmp_path):
    plot(report([row("onnxruntime", 1, 1.0)]), tmp_path / "bench.png")
    assert (tmp_path / "bench.png").stat().st_size > 5000


def test_the_recorded_command_repeats_the_run():
    command = _command(Path("my bundle"), Path("runs/x"), "1,2", "2", 3.0)
    assert command == (
        "mmf-bench 'my bundle' --baseline runs/x --batches 1,2 --threads 2 --seconds 3"
    )
    assert _command(None, None, "1,8,64", None, 4.0) == "mmf-bench"


def run(*args):
    return subprocess.run(
        [sys.executable, "-m", "mmf_deploy.cli", "bench", *args],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def test_the_command_writes_json_plot_and_table(tmp_path):
    done = run("--batches", "1", "--seconds", "0.2", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "milliseconds per image" in done.stdout
    assert "no --baseline" in done.stdout
    found = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert found["command"] == "mmf-bench --batches 1 --seconds 0.2"
    assert found["machine"]["cores"].isdecimal()
    assert (tmp_path / "out" / "bench.png").is_file()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--batches", "0"], "at least 1"),
        (["--batches", "one"], "expected integers such as 1,8,64"),
        (["--threads", "-1"], "at least 1"),
        (["/nowhere"], "no bundle here"),
        (["--baseline", "/nowhere"], "no such checkpoint"),
    ],
)
def test_nonsense_is_one_line_and_a_failure(args, message):
    done = run(*args)
    assert done.returncode != 0
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_ratios_are_also_against_other_modes_of_pytorch_and_a_plain_export():
    compiled = Subject("pytorch", "compile", 1, "compile")
    plain = Subject("onnxruntime", "plain-fp32", 1)
    turns = {TORCH_1: [[0.04]], compiled: [[0.03]], plain: [[0.02]], ORT: [[0.01]]}
    rows = {r.variant: r for r in _rows(turns, 1, {"plain-fp32"}, {ORT: 113.0})}
    assert rows["fp32"].speedup == pytest.approx(4)
    assert rows["fp32"].versus == {"compile": pytest.approx(3), "plain-fp32": pytest.approx(2)}
    assert rows["compile"].versus["plain-fp32"] == pytest.approx(0.667, abs=1e-3)
    assert rows["fp32"].memory_mb == 113.0
    assert rows["plain-fp32"].memory_mb is None


def test_memory_of_a_worker_is_its_own_process():
    with Worker(Setting(digits_bundle(), None), ORT) as worker:
        worker.turn(1, 0.01)
        assert 20 < worker.memory_mb() < 500


def test_unknown_variants_are_refused_with_what_there_is():
    with pytest.raises(BundleError, match="no variant 'int3'; it has fp32"):
        measure(bundles.load(digits_bundle()), Plan([1], [1], variants=["int3"]), "mmf-bench")

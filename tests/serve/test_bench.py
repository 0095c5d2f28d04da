"""The benchmark: what it reports, and that it cannot flatter."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from mmf_deploy.serve.bench import frontier
from mmf_deploy.serve.bench import plot as plotting
from mmf_deploy.serve.bench.measure import measure
from mmf_deploy.serve.bench.plot import best_rows, colours, hatches, markers, plot
from mmf_deploy.serve.bench.report import Rate, Report, read
from mmf_deploy.serve.bench.rows import Floors, Row, certain, rows
from mmf_deploy.serve.bench.subjects import LIMIT, Plan, Setting, Subject, dtype, subjects
from mmf_deploy.serve.bench.worker import Facts, Turn, Worker
from PIL import Image

from mmf_deploy import bundle as bundles
from mmf_deploy import figures, machine, results
from mmf_deploy.embedded import digits_bundle, digits_checkpoint
from mmf_deploy.errors import BundleError, ConfigError, EngineError

TORCH_1 = Subject("pytorch", "eager fp32", 1)
TORCH_2 = Subject("pytorch", "eager fp32", 2)
ORT = Subject("onnxruntime", "fp32", 1)


def made(times):
    """Turns of subjects from the seconds of their calls."""
    return {subject: [Turn(calls) for calls in every] for subject, every in times.items()}


def test_rows_are_per_image_and_compared_with_the_fastest_baseline():
    turns = {
        TORCH_1: [[0.040, 0.040], [0.040]],
        TORCH_2: [[0.020], [0.024], [0.020]][:2],
        ORT: [[0.010, 0.010, 0.010], [0.008]],
    }
    found = {(r.engine, r.threads): r for r in rows(made(turns), batch=4)}
    ort = found["onnxruntime", 1]
    assert ort.median_ms == pytest.approx(10 / 4)
    assert ort.images_per_s == pytest.approx(400)
    # 20/10 in one turn, 24/8 in the other: against two threads, not against the slower one
    assert ort.speedup == pytest.approx(2.5)
    assert found["pytorch", 1].speedup < 1
    assert found["pytorch", 2].speedup == 1
    assert ort.calls == 4


def test_without_a_baseline_there_is_no_ratio():
    assert rows(made({ORT: [[0.01]]}), batch=1)[0].speedup is None


def test_the_embedded_bundle_is_measured_with_every_number_of_threads():
    bundle = bundles.load(digits_bundle())
    seen = []
    report = measure(
        bundle,
        Plan([1, 4], [1, 2], seconds=0.2, variants=["fp32"], limit=False),
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
        worker.process.kill()
        with pytest.raises(EngineError, match="died"):
            worker.turn(1, 0.01)


def row(engine, batch, median, speedup=None, threads=1):
    return Row(engine, "fp32", threads, batch, median, median * 1.1, median * 1.2, 1e3 / median,
               speedup, 10)  # fmt: skip


def report(rows, **more):
    return Report("mmf-bench", "digits", "0" * 64, 192_545, machine.describe(), {}, rows, **more)


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


def run(*args):
    return subprocess.run(
        [sys.executable, "-m", "mmf_deploy.cli", "bench", *args],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_the_command_writes_json_pictures_and_tables(tmp_path):
    options = ["--variants", "fp32", "--batches", "1", "--threads", "1", "--seconds", "0.2"]
    done = run(str(digits_bundle()), *options, "--profile", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    for words in ("milliseconds per image", "of floor", "known to", "GFLOP/s", "convolution"):
        assert words in done.stdout
    assert "no --baseline CHECKPOINT given" in done.stdout
    found = results.read(tmp_path / "out" / "bench.json")
    assert found.command == (
        f"mmf-bench {digits_bundle()} --variants fp32 --batches 1 --threads 1 --seconds 0.2 "
        "--profile"
    )
    assert found.machine["cores"].isdecimal()
    assert [p.file for p in found.pictures] == ["bench.png"]
    assert all((tmp_path / "out" / p.file).stat().st_size > 5000 for p in found.pictures)
    assert [r["variant"] for r in found.content["rows"]] == ["fp32"]
    for row in found.content["rows"]:
        assert 0 < row["floor_ms"] < row["median_ms"]
        assert row["load_s"] > 0
        assert row["turns"] >= 6
    assert results.read(tmp_path / "out" / "profile.json").kind == "profile"
    assert "| onnxruntime fp32 | 1 | 1 |" in (tmp_path / "out" / "bench.md").read_text()


def test_the_embedded_digits_bring_their_baseline(tmp_path):
    options = ["--variants", "fp32", "--batches", "1", "--threads", "1", "--seconds", "0.2"]
    done = run(*options, "--no-limit", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "× eager" in done.stdout
    rows = results.read(tmp_path / "bench.json").content["rows"]
    assert [(r["engine"], r["speedup"] == 1.0) for r in rows] == [
        ("pytorch", True), ("onnxruntime", False)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--batches", "0"], "at least 1"),
        (["--batches", "one"], "expected integers such as 1,8,64"),
        (["--threads", "-1"], "at least 1"),
        (["/nowhere"], "no bundle here"),
        (["--baseline", "/nowhere"], "no such checkpoint"),
        (["--seconds", "-1"], "expected seconds above 0"),
        (["--within", "0"], "a share between 0 and 1"),
        (["--engines", "onnxrutime"], "did you mean 'onnxruntime'"),
        (["--pytorch", "compiled"], "did you mean 'compile'"),
        ([str(digits_bundle()), "--pytorch", "compile"], "goes with --baseline"),
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
    facts = {ORT: Facts(load_s=0.5, peak_memory_mb=113.0)}
    found = {r.variant: r for r in rows(made(turns), 1, {"plain-fp32"}, facts)}
    assert found["fp32"].speedup == pytest.approx(4)
    assert found["fp32"].versus == {"compile": pytest.approx(3), "plain-fp32": pytest.approx(2)}
    assert found["compile"].versus["plain-fp32"] == pytest.approx(0.667, abs=1e-3)
    assert (found["fp32"].peak_memory_mb, found["fp32"].load_s) == (113.0, 0.5)
    assert found["plain-fp32"].peak_memory_mb is None


def test_a_share_of_the_floor_is_that_within_a_turn():
    # the machine was twice as slow in the second turn: so was its limit
    times = made({ORT: [[0.010], [0.020], [0.010]]})
    floor = Floors([0.008, 0.016, 0.008], "compute")
    found = rows(times, batch=2, floors={ORT: floor})[0]
    assert found.of_floor == pytest.approx(0.8)
    assert found.floor_ms == pytest.approx(4.0)
    assert found.bound == "compute"


def test_energy_and_time_on_a_gpu_are_per_image():
    turns = {ORT: [Turn([0.01, 0.01], [8.0, 8.0], 4.0), Turn([0.01], [8.0], 2.0)]}
    found = rows(turns, batch=4)[0]
    assert found.device_ms == pytest.approx(2.0)
    assert found.joules == pytest.approx(6.0 / 12)


def test_it_goes_on_until_the_ratio_is_known_and_not_the_times():
    drifts = [0.01 * (1 + k % 4) for k in range(12)]
    noisy = [0.01 * (1 + (7 * k) % 5) for k in range(12)]
    same = made({TORCH_1: [[2 * d] for d in drifts], ORT: [[d] for d in drifts]})
    assert certain(same, 0.02)
    assert not certain(made({TORCH_1: [[2 * d] for d in noisy], ORT: [[d] for d in drifts]}), 0.02)
    assert not certain(made({ORT: [[d] for d in drifts]}), 0.02)
    limit = Subject(LIMIT, "fp32", 1)
    steady = made({ORT: [[0.01]] * 12, limit: [[d] for d in drifts]})
    assert certain(steady, 0.02)  # how the limit itself drifts does not matter


def test_every_variant_may_run_with_other_engines():
    bundle = bundles.load(digits_bundle())
    plan = Plan([1], [1], variants=["fp32"], engines=["onnxruntime", "aoti"])
    found, left_out = subjects(bundle, plan)
    assert [(s.engine, s.variant) for s in found] == [("onnxruntime", "fp32")]
    assert len(left_out) == 1
    assert left_out[0].startswith("fp32 with aoti: ")


def test_the_baseline_takes_as_many_steps_as_each_variant_and_never_compares_across():
    bundle = bundles.load(digits_bundle())
    baseline = {"checkpoint": digits_checkpoint(), "modes": ["eager", "bf16"]}
    few, left_out = subjects(bundle, Plan([1], [1], **baseline))
    assert [s.variant for s in few] == ["eager fp32", "bf16", "fp32", "int8"]
    assert left_out[0].startswith("fp32-2step, fp32-4step, int8-2step, int8-4step: other numbers")
    found, _ = subjects(bundle, Plan([1], [1], **baseline, variants=["all"]))
    names = [s.variant for s in found if s.engine == "pytorch"]
    assert names == ["eager fp32", "bf16", "eager fp32 2step", "bf16 2step", "eager fp32 4step",
                     "bf16 4step"]  # fmt: skip
    compared = rows(made({s: [[0.001 * s.steps]] for s in found}), 1)
    assert all(set(r.versus) <= {"bf16", "bf16 2step", "bf16 4step"} for r in compared)
    assert all(len(r.versus) == 1 and r.speedup == 1 for r in compared)


def test_arithmetic_is_in_the_dtype_of_the_mode_or_of_the_variant():
    bundle = bundles.load(digits_bundle())
    assert dtype(Subject("pytorch", "", 1, "compile-bf16"), None) == "bf16"
    assert dtype(Subject("pytorch", "", 1, "cudagraph"), None) == "fp32"
    assert dtype(Subject("onnxruntime", "int8", 1), bundle.variant("int8")) == "fp32"


def test_the_embedded_checkpoint_is_the_one_the_embedded_bundle_was_made_from():
    with Worker(Setting(digits_bundle(), digits_checkpoint()), TORCH_1) as worker:
        assert len(worker.turn(2, 0.0)) == 1
        facts = worker.facts()
    assert facts.load_s > 0
    assert 50 < facts.peak_memory_mb < 3000


def test_the_peak_of_memory_is_forgotten_between_batch_sizes():
    with Worker(Setting(digits_bundle(), None), ORT) as worker:
        worker.turn(64, 0.0)
        worker.fresh()
        worker.turn(1, 0.0)
        small = worker.memory_mb()
        assert 20 < small < 500
        worker.turn(2048, 0.0)
        assert worker.memory_mb() > small


def test_unknown_variants_are_refused_with_what_there_is():
    with pytest.raises(BundleError, match="no variant 'int3'; it has fp32"):
        measure(bundles.load(digits_bundle()), Plan([1], [1], variants=["int3"]), "mmf-bench")


def test_the_frontier_is_what_nothing_beats_in_latency_and_quality():
    quality = {"fast": {"frechet": 3.0}, "good": {"frechet": 1.0}, "bad": {"frechet": 4.0}}
    some = [dataclasses.replace(row("onnxruntime", 1, ms), variant=v)
            for v, ms in (("fast", 1.0), ("good", 2.0), ("bad", 3.0))]  # fmt: skip
    found = frontier.frontier_rows(report(some, quality=quality))
    assert {r.variant: top for r, _, top in found} == {"fast": True, "good": True, "bad": False}


def test_the_frontier_leaves_out_what_another_equals_in_one_and_beats_in_the_other():
    frechet = {"fast": 3.0, "slow": 3.0, "same": 3.0, "good": 1.0, "worse": 2.0}
    quality = {variant: {"frechet": q} for variant, q in frechet.items()}
    some = [dataclasses.replace(row("onnxruntime", 1, ms), variant=v)
            for v, ms in (("fast", 1.0), ("slow", 1.5), ("same", 1.0), ("good", 2.0),
                          ("worse", 2.0))]  # fmt: skip
    found = frontier.frontier_rows(report(some, quality=quality))
    # two that are equal in both stay: neither is worth less than the other
    assert [r.variant for r, _, top in found if top] == ["fast", "same", "good"]


def test_the_frontier_falls_back_to_psnr_where_one_has_no_frechet_distance(tmp_path):
    quality = {"a": {"psnr": 999.0, "frechet": 1.0}, "b": {"psnr": 40.0}}
    some = [dataclasses.replace(row("onnxruntime", 1, ms), variant=v)
            for v, ms in (("a", 2.0), ("b", 1.0))]  # fmt: skip
    one = report(some, quality=quality)
    assert [q for _, q, _ in frontier.frontier_rows(one)] == [100.0, 40.0]
    assert all(top for *_, top in frontier.frontier_rows(one))
    frontier.plot(one, tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").stat().st_size > 5000


def test_rows_known_less_well_than_asked_are_told():
    sure, vague = row("onnxruntime", 1, 1.0), row("onnxruntime", 8, 1.0)
    vague = dataclasses.replace(vague, within=0.5)
    nearly, just = (dataclasses.replace(sure, within=w) for w in (0.021, 0.0204))
    notes = report([sure, vague, nearly, just]).tables()[0].notes
    assert any(n.startswith("2 of 4 rows fell short of the ±2.0% asked for, the farthest is known "
                            "to ±50.0%") for n in notes)  # fmt: skip
    # what is printed as ±2.0% was asked for
    assert not any("fell short" in n for n in report([sure, just]).tables()[0].notes)
    to_eager = dataclasses.replace(sure, speedup=2.0, speedup_within=0.03, within=0.0)
    notes = report([to_eager]).tables()[0].notes
    assert any(n.startswith("1 of 1 rows fell short") for n in notes)


def many(count):
    """Series of an engine in many variants, and the baseline."""
    every = [row("pytorch", 1, 2.0, 1.0)]
    every[0] = dataclasses.replace(every[0], variant="eager fp32")
    every += [
        dataclasses.replace(row("onnxruntime", 1, 1.0), variant=f"v{k}") for k in range(count)
    ]
    return best_rows(report(every))


def test_series_differ_in_colour_and_more_than_there_are_colours_in_marker_or_hatch():
    found = colours(many(12))
    assert len(set(found.values())) == 13
    for count in (9, 23):
        series = many(count)
        look = [(colours(series)[k], markers(series)[k]) for k in series]
        bars = [(colours(series)[k], hatches(series)[k]) for k in series]
        assert len(set(look)) == len(set(bars)) == count + 1


def lab(colour):
    """CIE L*a*b* of a colour such as #1f6fb2."""
    rgb = np.array([int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)])
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    x, y, z = np.cbrt(to_xyz @ linear / np.array([0.9505, 1, 1.089]))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_no_two_colours_of_pictures_are_alike():
    found = [lab(colour) for colour in (*figures.COLOURS, figures.GREY)]
    apart = [np.linalg.norm(a - b) for k, a in enumerate(found) for b in found[:k]]
    assert min(apart) > 25  # about ten times what an eye tells apart


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0.5, 3000, [1, 10, 100, 1000]), (0.04, 3, [0.05, 0.1, 0.2, 0.5, 1, 2]),
     (27, 114, [30, 40, 50, 60, 80, 100]), (0.16, 0.32, [0.2, 0.25, 0.3]),
     (1.02, 1.31, [1.1, 1.2, 1.3])],
)  # fmt: skip
def test_an_axis_has_a_few_round_ticks_however_short_it_is(low, high, ticks):
    assert figures.log_ticks(low, high) == ticks


def test_pictures_name_engines_as_the_tables_do(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plotting, "save", lambda figure, path: drawn.append(figure))
    some = [dataclasses.replace(row("openvino", b, 1.0, 2.0), variant="openvino-fp32")
            for b in (1, 8)]  # fmt: skip
    for ours in (some, some[:1]):
        one = report([*(row("pytorch", r.batch, 2.0, 1.0) for r in ours), *ours])
        plot(one, tmp_path / "bench.png")
        names = {r[0] for r in one.tables()[0].rows}
        axis = drawn[-1].axes[0]
        shown = axis.get_legend_handles_labels()[1] or [
            t.get_text() for t in axis.get_yticklabels()
        ]
        assert names == {"openvino fp32", "pytorch fp32"} == set(shown)


def test_what_the_machine_can_do_stands_in_a_table():
    rate = [Rate("fp32", 2, 512.4, "torch"), Rate("memory", 2, 21.55, "numpy")]
    table = report([row("onnxruntime", 1, 1.0)], limit=rate).tables()[-1]
    assert [list(r) for r in table.rows] == [
        ["fp32 arithmetic", "torch", "2", "512 GFLOP/s"],
        ["memory, read", "numpy", "2", "21.6 GB/s"],
    ]


def test_a_report_read_from_its_file_says_the_same(tmp_path):
    one = report([row("pytorch", 1, 2.0, 1.0), row("onnxruntime", 1, 1.0, 2.0)])
    results.write(tmp_path, "bench", one.result())
    found = results.read(tmp_path / "bench.json")
    assert found.kind == "bench"
    assert found.content["rows"] == json.loads(json.dumps(one.as_dict()["rows"]))
    assert [list(map(str, r)) for r in found.tables[0].rows] == [
        list(r) for r in one.tables()[0].rows
    ]
    limit = [Rate("fp32", 2, 512.4, "torch")]
    both = dataclasses.replace(one, limit=limit)
    results.write(tmp_path, "bench", both.result())
    assert read(results.read(tmp_path / "bench.json")) == both


def test_ways_of_running_pytorch_that_this_machine_has_not_are_left_out():
    plan = Plan([1], [1], checkpoint=digits_checkpoint(), modes=["bf16", "cudagraph"])
    found, left_out = subjects(bundles.load(digits_bundle()), plan)
    assert [s.variant for s in found if s.engine == "pytorch"] == ["eager fp32", "bf16"]
    assert any(line == "PyTorch cudagraph: mode 'cudagraph' is for device 'cuda'"
               for line in left_out)  # fmt: skip

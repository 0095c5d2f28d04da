"""The step benchmark: what it reports, and that its baseline computes the same loss."""

import json
import shlex
import sys

import numpy as np
import pytest
import torch
import yaml
from mmf_deploy.training.bench_step import Plan, measure, rows, time_step
from mmf_deploy.training.bench_step_plot import plot
from mmf_deploy.training.bench_step_report import conclusions, table
from mmf_deploy.training.read_recipe import load_config
from mmf_deploy.training.step_variants import (
    BASELINE,
    NAIVE,
    Variant,
    build_learner,
    select,
    variants,
)
from mmf_deploy.training.training_step import TrainingStep
from PIL import Image

from mmf_deploy import cli, results
from mmf_deploy.errors import ConfigError
from mmf_deploy.spec import SampleSpec

IMAGES = SampleSpec(shape=(1, 8, 8), classes=3)


@pytest.fixture(autouse=True, scope="module")
def threads_of_others_stay():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


RECIPE = load_config("digits", ["network.model_channels=8", "network.channel_mult=[1]"])


def plan(**changed) -> Plan:
    given = {"recipe": RECIPE, "spec": IMAGES, "batch": 8, "gap_fractions": (0.25, 0.75)}
    return Plan(**{**given, "seconds": 1e-3, "min_rounds": 2, **changed})


@pytest.fixture(scope="module")
def report():
    seen = []
    found = measure(plan(), "mmf bench-step", lambda what, done: seen.append((what, done)))
    assert seen[0] == ("warm-up", 0)
    assert seen[-1] == ("timing", 100)
    assert [done for _, done in seen] == sorted(done for _, done in seen)
    return found


def test_every_kind_of_step_is_timed_in_every_round(report):
    found = [(r.objective, r.lam, r.derivative, r.gap_fraction) for r in report.rows]
    mmf = [
        ("mmf", lam, derivative, share)
        for share in (0.25, 0.75)
        for lam in (0.0, 0.5, 1.0)
        for derivative in ("jvp", "finite_difference")
    ]
    naive = [(NAIVE, lam, "jvp", None) for lam in (0.0, 1.0)]
    assert found == [(BASELINE, 0.0, None, None), *mmf, *naive]
    assert report.rounds == 2
    assert all(r.median_ms > 0 and r.ratio_p10 <= r.ratio <= r.ratio_p90 for r in report.rows)


def test_flow_matching_is_the_unit(report):
    assert (report.rows[0].ratio, report.rows[0].ratio_p10, report.rows[0].ratio_p90) == (1, 1, 1)


def test_the_report_says_what_it_takes_to_repeat_it(report):
    record = json.loads(json.dumps(report.result().as_dict()))
    assert (record["kind"], record["command"]) == ("step", "mmf bench-step")
    assert {"cpu", "cores"} <= record["machine"].keys()
    assert record["versions"]["torch"] == torch.__version__
    assert record["config"]["network"]["model_channels"] == 8
    assert record["config"]["parameters"] > 1000
    assert (record["config"]["batch"], record["config"]["shape"]) == (8, [1, 8, 8])


def test_ratios_are_taken_within_a_round():
    seconds = {
        Variant(BASELINE, 0.0): np.array([0.1, 0.4, 0.1]),
        Variant("mmf", 1.0, "jvp", 0.25): np.array([0.2, 0.8, 0.3]),
        Variant("mmf", 1.0, "finite_difference", 0.25): np.array([0.15, 0.6, 0.15]),
        Variant("mmf", 0.5, "jvp", 0.25): np.array([0.2, 0.8, 0.3]),
        Variant(NAIVE, 1.0, "jvp"): np.array([0.6, 2.4, 0.6]),
    }
    flow, jvp, fast, half, naive = rows(seconds)
    assert (flow.ratio, jvp.ratio, fast.ratio, naive.ratio) == (1, 2, 1.5, 6)
    assert jvp.median_ms == 300
    assert (jvp.naive_speedup, fast.naive_speedup) == (3, 4)
    assert flow.naive_speedup is half.naive_speedup is naive.naive_speedup is None
    assert conclusions([flow, jvp, fast, half, naive]) == [
        "λ=1, r ≠ t for 25%: 1.50× a flow-matching step, 4.0× faster than the naive step "
        "(finite_difference)"
    ]


def gradient(module, inputs, lam):
    module.zero_grad(set_to_none=True)
    loss, squared_error = module(inputs, lam, 0)
    loss.backward()
    return loss, squared_error, torch.cat([p.grad.flatten() for p in module.net.parameters()])


@pytest.mark.parametrize("lam", [0.0, 1.0])
@pytest.mark.parametrize("spec", [IMAGES, SampleSpec(shape=(2,))], ids=["images", "vectors"])
def test_naive_step_is_the_same_loss_with_the_same_gradient(spec, lam):
    mlp = load_config("digits", ["network={type: mlp, width: 32, depth: 2}"])
    learner = build_learner(RECIPE if spec.is_image else mlp, spec, 8, "cpu")
    select(learner, Variant("mmf", lam, "jvp", 0.75))
    ours, inputs = learner.step, learner.inputs(0, learner.draw(0))
    assert isinstance(ours, TrainingStep)
    assert bool((inputs.times.r < inputs.times.t).any() & (inputs.times.r == inputs.times.t).any())
    select(learner, Variant(NAIVE, lam, "jvp"))
    assert not isinstance(learner.step, TrainingStep)
    expected, found = gradient(ours, inputs, lam), gradient(learner.step, inputs, lam)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-5)
    other = gradient(learner.step, inputs, 1.0 - lam)[2]
    assert (other - expected[2]).norm() > 0.01 * expected[2].norm()  # λ does matter here


def test_a_timed_step_leaves_the_weights_as_they_were():
    learner = build_learner(RECIPE, IMAGES, 8, "cpu")
    before = [p.detach().clone() for p in learner.net.parameters()]
    assert learner.net(torch.ones(1, 1, 8, 8), torch.zeros(1), torch.ones(1)).abs().mean() > 0.01
    for variant in variants([0.5]):
        assert time_step(learner, variant) > 0
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in learner.net.parameters())
    assert all(map(torch.equal, before, learner.net.parameters()))


@pytest.mark.parametrize("changed", [{"batch": 0}, {"gap_fractions": (0.01,)}])
def test_plans_that_measure_nothing_are_refused(changed):
    with pytest.raises(ConfigError, match="expected"):
        measure(plan(**changed), "mmf bench-step")


def mmf(monkeypatch, *args) -> int:
    monkeypatch.setattr(sys, "argv", ["mmf", "bench-step", *map(str, args)])
    try:
        cli.main()
    except SystemExit as e:
        return int(e.code or 0)
    return 0


def test_the_table_has_every_row_and_what_follows_from_it(report):
    shown = table(report)
    assert [len(row) for row in shown.rows] == [len(shown.columns)] * len(report.rows)
    assert shown.title.startswith("One optimiser step, batch 8 of 1×8×8, 0.0M parameters, cpu")
    flow, first, *_, last = (dict(zip(shown.columns, row, strict=True)) for row in shown.rows)
    assert (flow["objective"], flow["derivative"], flow["λ"]) == ("flow-matching", "", "")
    assert (flow["× flow matching"], flow["p10–p90"]) == ("1.00", "1.00–1.00")
    assert (first["derivative"], first["r ≠ t"], first["λ"]) == ("jvp", "25%", "0")
    assert (last["objective"], last["r ≠ t"], last["× faster than naive"]) == (NAIVE, "", "")
    assert shown.notes[0].endswith("over 2 rounds")
    assert shown.notes[1:] == conclusions(report.rows)


def test_the_picture_has_a_bar_for_each_kind_of_step(report, tmp_path):
    plot(report, tmp_path / "step.png")
    pixels = np.asarray(Image.open(tmp_path / "step.png").convert("RGB"))
    assert min(pixels.shape[:2]) > 500
    for bar in ("8c8c8c", "1f6fb2", "d1652a", "2a8a57"):  # flow matching, jvp, difference, naive
        assert (pixels == np.frombuffer(bytes.fromhex(bar), np.uint8)).all(axis=2).sum() > 500


def test_the_command_ends_with_the_table_and_the_files(monkeypatch, capsys, tmp_path):
    recipe, out = tmp_path / "tiny.yaml", tmp_path / "out"
    recipe.write_text(yaml.safe_dump(RECIPE.model_dump(mode="json")))
    options = ["--shape", "1,4,4", "--gap-fraction", "0.5", "--batch", "4", "--seconds", "0.01",
               "--threads", "1", "--device", "cpu"]  # fmt: skip
    assert mmf(monkeypatch, recipe, *options, "--out", out) == 0
    said = capsys.readouterr().out
    for part in ("finite_difference", "λ=0, r ≠ t for 50%", "λ=1, r ≠ t for 50%", "than the naive"):
        assert part in said
    names = ("bench-step.json", "bench-step.md", "bench-step.png")
    assert said.endswith(f"written: {', '.join(str(out / name) for name in names)}\n")
    assert all((out / name).is_file() for name in names)
    found = results.read(out / "bench-step.json")
    assert found.command == shlex.join(["mmf", "bench-step", str(recipe), *options])
    assert len(found.content["rows"]) == len(found.tables[0].rows) == 1 + 6 + 2


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["digit"], "did you mean 'digits'?"),
        (["--shape", "a"], "expected integers such as 3,32,32"),
        (["--shape", "3,30,30"], "square with a side divisible by 4"),
        (["--shape", "5"], "does not fit samples of shape"),
        (["--shape", "4,8,8"], "1 or 3 channels"),
        (["--gap-fraction", "0"], "expected shares above 0"),
        (["--gap-fraction", "x"], "expected numbers such as"),
        (["--gap-fraction", "0.01"], "at least one sample"),
        (["--seconds", "0"], "expected more than 0"),
        (["--seconds", "nan"], "expected more than 0"),
        (["--device", "tpu"], "expected auto, cpu or cuda"),
    ],
)
def test_nonsense_is_one_line_and_a_failure(args, part, monkeypatch, capsys):
    assert mmf(monkeypatch, *args) != 0
    found = capsys.readouterr().err
    assert part in found
    assert found.startswith("error: ")
    assert found.count("\n") == 1

"""The experiments of the paper: what they plan, what probes find, what reports show."""

import json
import math
import subprocess
import sys
import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from mmf_deploy.training.data import digits
from mmf_deploy.training.experiments import EXPERIMENTS
from mmf_deploy.training.experiments.cells import mean_sd, percent
from mmf_deploy.training.experiments.lab import SIX, Found, Lab
from mmf_deploy.training.experiments.measure import Request, measure
from mmf_deploy.training.experiments.probes import PROBES
from mmf_deploy.training.experiments.reproduce import experiment
from mmf_deploy.training.experiments.runs import Run, Sessions
from mmf_deploy.training.experiments.scales import DIGITS, SCALES
from mmf_deploy.training.experiments.style import COLOURS
from mmf_deploy.training.experiments.subject import Weights
from mmf_deploy.training.experiments.work import Task, execute
from mmf_deploy.training.loop import Trainer
from mmf_deploy.training.metrics.digits_classifier import train_classifier
from mmf_deploy.training.read_recipe import load_config
from PIL import Image

from mmf_deploy.cli import main
from mmf_deploy.errors import ConfigError
from mmf_deploy.results import read

SMALL = replace(
    DIGITS,
    steps=12,
    samples=24,
    encoded=4,
    pairs=2,
    checkpoint_every=2,
    sets=(*DIGITS.sets, "loop.batch_size=16"),
)
VECTORS = {"plane": "ring2d", "motion": "control"}


def every_plan(lab):
    return {name: experiment(name).plan(lab) for name in EXPERIMENTS}


@pytest.mark.parametrize("scale", SCALES.values(), ids=lambda s: s.name)
def test_every_plan_asks_for_runs_that_can_be_trained_and_probes_that_exist(scale):
    lab, by_place = Lab(scale, Path("nowhere")), {}
    for name, plan in every_plan(lab).items():
        assert plan, name
        assert len(set(plan)) == len(plan)
        for run, probe in plan:
            assert probe in PROBES
            assert run.steps > 0
            # one directory never means two runs
            assert by_place.setdefault(run.directory, run) == run


def test_runs_are_shared_between_experiments():
    plans = every_plan(Lab(DIGITS, Path("nowhere")))
    measured = [m for plan in plans.values() for m in plan]
    assert len({m.run for m in measured}) < 0.5 * sum(
        len({m.run for m in plan}) for plan in plans.values()
    )
    assert {m.run for m in plans["table3"]} == {m.run for m in plans["table2"]}


def test_the_curriculum_rises_over_an_eighth_and_what_is_set_wins():
    lab = Lab(DIGITS, Path("nowhere"), sets=("optimizer.lr=0.5",))
    config = lab.image("mmf", 1).config
    assert config["objective"]["warmup_steps"] * 8 == pytest.approx(DIGITS.steps, abs=8)
    assert config["optimizer"]["lr"] == 0.5
    assert config["seed"] == 1
    assert config["objective"]["guidance"]["mode"] == "off"
    assert lab.vectors("ode", "mmf").config["optimizer"]["lr"] != 0.5


def test_a_part_of_the_data_stays_one_whatever_data_is_set():
    sets = ("data={source: huggingface, path: images}",)
    lab = Lab(SCALES["cifar10"], Path("nowhere"), sets=sets)
    data = [run.config["data"] for run, _ in experiment("fig3a").plan(lab)]
    assert {d["path"] for d in data} == {"images"}
    fractions = [d.get("subset", {}).get("fraction", 1.0) for d in data]
    assert set(fractions) == {0.01, 0.1, 0.5, 1.0}


def test_a_long_run_is_saved_often_and_keeps_a_few_checkpoints_to_look_back():
    lab = Lab(SCALES["cifar10"], Path("nowhere"))
    first, second = (lab.image("mmf", seed).config["loop"] for seed in (0, 1))
    assert first["checkpoint_every"] == 5_000
    assert first["keep_every"] % 5_000 == 0
    assert first["steps"] // first["keep_every"] == 6
    assert second["keep_every"] == 0
    others = Lab(replace(DIGITS, seeds=(3, 4)), Path("nowhere"))
    assert others.image("mmf", 3).config["loop"]["keep_every"] > 0


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A judge, and a short run of each kind."""
    root = tmp_path_factory.mktemp("reproduce")
    everything = digits.load(digits.Config()).batch(torch.arange(1797))
    train_classifier(everything.x0, everything.label, epochs=2).save(root / "judge")
    lab = Lab(SMALL, root)
    guided = ("objective.guidance={mode: input, max: 4}", "loop.keep=6")
    runs = {"image": lab.image("mmf", 0, "-guided", guided)}
    runs |= {r: lab.vectors(r, "mmf", more=("loop.steps=12",)) for r in VECTORS.values()}
    for run in runs.values():
        Trainer(load_config(run.recipe, run.sets), run.directory, threads=1).run()
    return root, runs


def request(root, run, probe):
    return Request(run.directory, probe, root, SMALL, "cpu", Weights())


@pytest.fixture(scope="module")
def numbers(root):
    """What every probe finds."""
    place, runs = root
    return {
        probe: measure(request(place, runs[VECTORS.get(probe, "image")], probe)) for probe in PROBES
    }


def finite(value):
    """Whether all numbers in it are."""
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    if isinstance(value, list):
        return all(map(finite, value))
    return not isinstance(value, float) or math.isfinite(value)


@pytest.mark.parametrize("probe", PROBES)
def test_a_probe_finds_plain_finite_numbers(probe, numbers):
    assert "failed" not in numbers[probe]
    assert finite(json.loads(json.dumps(numbers[probe])))


def test_what_probes_find_is_of_the_right_kind(numbers):
    quality = numbers["quality"]
    assert quality["frechet"] > quality["frechet_real"] > 0
    assert 0 <= quality["precision"] <= 1
    assert 0 <= quality["class_accuracy"] <= 1
    assert numbers["paths"]["images"] == SMALL.encoded
    assert numbers["paths"]["path_deviation"] > 0
    assert [c["step"] for c in numbers["history"]["checkpoints"]] == [2, 4, 6, 8, 10, 12]
    low, first, median, third, high = numbers["diversity"]["real"]["quantiles"]
    assert low < first < median < third < high
    assert all(a < b for a, b in pairwise(numbers["stability"]["curve"]["step"]))
    assert set(numbers["guidance"]["omega"]) == {"1", "1.5", "2", "3", "4"}
    assert numbers["motion"]["jerk_reference"] > numbers["motion"]["jerk"] > 0


def test_numbers_are_kept_until_weights_or_sizes_change(root, numbers):
    place, runs = root
    known = request(place, runs["image"], "quality")
    assert known.known() == numbers["quality"]
    assert replace(known, scale=replace(SMALL, samples=25)).known() == {}
    assert replace(known, scale=replace(SMALL, steps=999)).known() == numbers["quality"]
    known.kept.write_text("{")
    assert known.known() == {}


def test_weights_that_are_missing_fail_one_measurement_and_are_not_kept(root, tmp_path):
    place, runs = root
    photographs = replace(SMALL, features="inception")
    asked = replace(
        request(place, runs["image"], "quality"),
        scale=photographs,
        root=tmp_path,
        weights=Weights(inception=tmp_path / "nothing.pth"),
    )
    assert "--inception-weights" in measure(asked)["failed"]
    assert not asked.kept.exists()


def test_flow_matching_steps_with_its_own_velocity(root):
    from mmf_deploy.training.experiments.subject import Subject

    from mmf_deploy import checkpoint
    from mmf_deploy.nn.sampler import quantise

    place, runs = root
    found = checkpoint.read(runs["image"].directory)
    objective = found.config["objective"] | {"guidance": {"mode": "off"}}
    objective["time_pairs"] = objective["time_pairs"] | {"gap_fraction": 0.0}
    config = found.config | {"objective": objective}
    spec = found.spec.model_copy(update={"guidance": None})
    network = replace(found, config=config, spec=spec)
    subject = Subject(network, runs["image"].directory, SMALL, place / "judge")
    object.__setattr__(subject, "net", lambda x, r, t, label, guidance: 0.0 * x + (t - r) + 0.5)
    assert not subject.averages
    made = subject.generate(range(3), torch.tensor([0, 1, 2]), steps=2)
    # two Euler steps with v = u(x, t, t) = 0.5
    assert torch.equal(torch.from_numpy(made), quantise(subject.noise(range(3)) - 0.5))


def test_what_is_measured_again_follows_the_weights_of_the_run(root, tmp_path):
    _, runs = root
    run = runs["control"]
    assert run.known() == {}  # trained, but no session wrote a record
    run.record.write_text(json.dumps({"config": run.config, "seconds": 1.0}))
    assert run.known()["seconds"] == 1.0
    longer = replace(run, sets=(*run.sets, "loop.steps=13"))
    assert longer.outcome() == {}
    with pytest.raises(ConfigError, match=r"another configuration \(loop.steps 12 → 13"):
        Sessions().train(longer)
    # where checkpoints go and what is drawn makes no other run
    tidier = replace(run, sets=(*run.sets, "loop.keep=7", "loop.sample_every=0"))
    assert tidier.known()["seconds"] == 1.0
    run.record.write_text(json.dumps({"config": run.config, "seconds": 1.0, "failed": "no room"}))
    assert run.known() == {}  # it is tried again
    assert run.outcome()["failed"] == "no room"
    run.record.unlink()


def test_two_reproductions_in_one_place_are_refused(monkeypatch, capsys, tmp_path):
    import fcntl

    (tmp_path / "digits").mkdir()
    with (tmp_path / "digits" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        monkeypatch.setattr("sys.argv", ["mmf", "reproduce", "fig6", "--out", str(tmp_path)])
        with pytest.raises(SystemExit):
            main()
    assert "another mmf reproduce works there" in capsys.readouterr().err


@pytest.fixture
def lab():
    return Lab(replace(SMALL, seeds=(0, 1)), Path("nowhere"))


def drawn(report, folder):
    for picture, draw in report.pictures.items():
        draw(folder / picture.file)
        with Image.open(folder / picture.file) as image:
            assert len(image.convert("RGB").getcolors(10**6)) > 5
        assert picture.title


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_report_has_tables_without_gaps_and_pictures(name, lab, numbers, tmp_path):
    module = experiment(name)
    report = module.report(Found(lab, {m: numbers[m.probe] for m in module.plan(lab)}))
    assert report.tables
    for table in report.tables:
        assert table.rows
        assert not any("nan" in cell for row in table.rows for cell in row)
    drawn(report, tmp_path)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_report_says_what_failed_and_still_draws(name, lab, numbers, tmp_path):
    module, reason = experiment(name), "loss not finite"
    found = {
        m: {"failed": reason} if m.run.name.startswith("mmf-lambda1") else numbers[m.probe]
        for m in module.plan(lab)
    }
    report = module.report(Found(lab, found))
    drawn(report, tmp_path)
    asked = [
        m for m in found if m.run.name.startswith("mmf-lambda1") or "mmf-lambda1" in m.run.name
    ]
    if any("failed" in found[m] for m in asked) and name not in ("fig5", "baselines"):
        assert any(reason in note for table in report.tables for note in table.notes)


def test_with_nothing_measured_there_are_dashes_and_no_crash(lab, tmp_path):
    for name in EXPERIMENTS:
        module = experiment(name)
        report = module.report(Found(lab, {m: {"failed": "no"} for m in module.plan(lab)}))
        for picture, draw in report.pictures.items():
            draw(tmp_path / picture.file)


def test_every_objective_has_one_colour():
    assert set(SIX) < set(COLOURS)
    assert len(set(COLOURS.values())) == len(COLOURS)


def test_cells_are_mean_and_sample_deviation():
    assert mean_sd([1.0, 3.0]) == "2.00 ± 1.41"
    assert mean_sd([2.0]) == "2.00"
    assert mean_sd([]) == "—"
    assert percent([0.5, 0.5]) == "50.0% ± 0.0%"


def test_tasks_run_together_and_the_first_error_ends_all(capsys):
    gate, order = threading.Barrier(2, timeout=10), []

    def meet(name):
        gate.wait()  # passes only if both run at once
        order.append(name)
        return "met"

    execute("testing", [Task(n, 1.0, lambda n=n: meet(n)) for n in "ab"], jobs=2)
    assert sorted(order) == ["a", "b"]
    assert "a: met" in capsys.readouterr().out

    def fail():
        raise RuntimeError("broken")

    late = []
    tasks = [Task("x", 1, fail), Task("y", 1, lambda: late.append("y") or "")]
    with pytest.raises(RuntimeError, match="broken"):
        execute("testing", tasks, jobs=1, stop=lambda: late.append("stopped"))
    assert "stopped" in late


def test_a_run_that_fails_leaves_its_reason(tmp_path):
    run = Run("digits", ("loop.steps=3", "loop.batch_size=7", "loop.accumulate=2"), tmp_path / "r")
    record = Sessions().train(run)
    assert "does not divide" in record["failed"]
    assert run.outcome()["failed"] == record["failed"]
    assert run.known() == {}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tabel2"], "did you mean 'table2'"),
        (["all", "--scale", "digit"], "did you mean 'digits'"),
        (["all", "--seeds", "1,x"], "expected whole numbers"),
        (["all", "--test", "val"], "expected KEY=VALUE"),
        (["table2", "--set", "loop.stepz=3"], "unknown key 'loop.stepz'"),
        ([","], "no experiment named"),
    ],
)
def test_nonsense_is_one_line(arguments, said, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["mmf", "reproduce", *arguments, "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_file_in_the_place_of_the_directory_is_refused(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setattr("sys.argv", ["mmf", "reproduce", "fig6", "--out", str(tmp_path / "file")])
    with pytest.raises(SystemExit):
        main()
    assert "is a file; expected a directory" in capsys.readouterr().err


def test_where_every_run_fails_the_command_ends_with_the_reason(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", [
        "mmf", "reproduce", "fig2", "--seeds", "0", "--set-vectors", "init_from=nowhere",
        "--out", str(tmp_path),
    ])  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert "no run could be trained: nowhere" in capsys.readouterr().err
    assert not (tmp_path / "digits" / "results").exists()


@pytest.mark.slow
def test_a_signal_stops_everything_and_the_same_command_goes_on(start, tmp_path):
    import signal
    import time

    command = ["-m", "mmf_deploy.cli", "reproduce", "fig2", "--seeds", "0", "--set-vectors",
               "loop.steps=3000", "--out", tmp_path]  # fmt: skip
    begun = start(*command)
    runs = tmp_path / "digits" / "runs"
    deadline = time.monotonic() + 120
    while len(list(runs.glob("*/log.jsonl"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    begun.send_signal(signal.SIGTERM)
    ended = begun.end(timeout=60)
    assert ended.returncode == 130, ended.stderr
    assert "the same command goes on" in ended.stdout
    saved = sorted(p.name for p in runs.glob("*/checkpoints/*"))
    assert any(name != "step-00000000" for name in saved)
    assert not list(runs.glob("*.json"))
    shorter = [*command[:6], "--set-vectors", "loop.steps=8", "--out", tmp_path]
    refused = start(*shorter).end(timeout=60)
    assert refused.returncode == 2
    assert "another configuration" in refused.stderr


def reproduce(*arguments):
    """The command in a process that may have workers of its own, as those of ``start`` may not."""
    command = [sys.executable, "-m", "mmf_deploy.cli", "reproduce", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)


@pytest.mark.slow
def test_experiments_are_reproduced_and_resumed_by_the_command(tmp_path):
    command = ["table3,fig2", "--steps", "4", "--seeds", "0", "--encoded", "4",
               "--set-vectors", "loop.steps=4", "--out", tmp_path]  # fmt: skip
    ended = reproduce(*command)
    assert ended.returncode == 0, ended.stderr
    results = tmp_path / "digits" / "results"
    table = read(results / "table3.json")
    assert [row[0] for row in table.tables[0].rows] == list(SIX)
    assert (results / "fig2-field.png").is_file()
    run = json.loads((results / "runs" / "mmf-seed0.json").read_text())
    assert run["config"]["loop"]["steps"] == 4
    assert run["numbers"]["paths"]["one_step_error"] > 0
    again = reproduce(*command)
    assert "10 of them trained before" in again.stdout
    assert ": trained" not in again.stdout


@pytest.mark.slow
def test_the_scale_of_cifar10_runs_for_a_few_steps_and_says_what_it_lacks(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    write_parquet(images / "train.parquet", 60)
    write_parquet(images / "test.parquet", 20)
    ended = reproduce(
        "table2,fig3b", "--scale", "cifar10", "--steps", "2", "--seeds", "0", "--samples", "16",
        "--encoded", "2", "--set", f"data={{source: huggingface, path: {images}}}", "--set",
        "network={type: unet, model_channels: 8, channel_mult: [1, 1]}", "--set",
        "loop.batch_size=4", "--inception-weights", tmp_path / "nothing", "--out", tmp_path / "out",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    results = tmp_path / "out" / "cifar10" / "results"
    notes = " ".join(read(results / "table2.json").tables[0].notes)
    assert "--inception-weights" in notes
    row = read(results / "table2.json").tables[0].rows[0]
    assert row[1] == "—"
    assert row[9] != "—"  # the one-step error needs no weights
    assert "SVHN: " in " ".join(read(results / "fig3b.json").tables[0].notes)


def write_parquet(path, count):
    import io

    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = []
    for pixels in np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8):
        Image.fromarray(pixels).save(content := io.BytesIO(), "PNG")
        rows.append({"bytes": content.getvalue(), "path": None})
    table = pa.table({"img": rows, "label": [k % 10 for k in range(count)]})
    pq.write_table(table, path)

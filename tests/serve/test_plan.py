"""The capacity planner: the simulation against theory, the fit, the answer, the command."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from mmf_deploy.serve.load.report import Outcome, Run, Sent, level
from mmf_deploy.serve.plan import check as checking
from mmf_deploy.serve.plan import cli, cost, fit, observe, planner
from mmf_deploy.serve.plan.basis import Measured
from mmf_deploy.serve.plan.check import Checked, rates
from mmf_deploy.serve.plan.cli import app, milliseconds
from mmf_deploy.serve.plan.contradiction import warning
from mmf_deploy.serve.plan.cost import EngineCost, engine_cost
from mmf_deploy.serve.plan.fit import Fitted
from mmf_deploy.serve.plan.observe import Observed, Seen
from mmf_deploy.serve.plan.planner import Plan, Planner, Point, half_interval
from mmf_deploy.serve.plan.plot import plot
from mmf_deploy.serve.plan.replica import Replica
from mmf_deploy.serve.plan.report import about_check, next_command
from mmf_deploy.serve.plan.simulate import (
    capacity_per_s,
    closed_loop,
    open_loop,
    poisson,
    throughput,
)
from mmf_deploy.serve.plan.tables import check_table, plan_table
from PIL import Image

from mmf_deploy import bundle as bundles
from mmf_deploy import results
from mmf_deploy.errors import ConfigError, MMFError
from mmf_deploy.machine import available_cores
from tests.rendering import ROOT

BATCH_S = tuple(0.2e-3 + 0.1e-3 * n for n in range(1, 17))
REAL = Replica(
    BATCH_S,
    noise_s=tuple(10e-6 * n for n in range(1, 17)),
    front_s=0.3e-3,
    wake_s=50e-6,
    beside_s=0.1e-3,
    cold=2.0,
    settle_s=2e-3,
    batch_ratios=(1.0, 1.0, 1.1, 1.5),
    front_ratios=(0.9, 1.0, 1.3),
)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_image_at_a_time_waits_as_the_theory_of_the_m_d_1_queue_says(load):
    service_s = 1e-3
    trace = open_loop(Replica((service_s,)), poisson(load / service_s, 60_000))
    waited_s = (trace.latency_s[3000:] - service_s).mean()
    assert waited_s == pytest.approx(load * service_s / (2 * (1 - load)), rel=0.06)
    assert trace.engine_busy == pytest.approx(load, rel=0.02)
    assert trace.mean_batch == 1.0


@pytest.mark.parametrize("images", [1, 3])
def test_the_engine_follows_the_policy_of_the_batcher_exactly(images):
    """Against the policy in its plainest form: the engine alone, one batch after the other."""
    replica = Replica(tuple(1e-3 + 0.2e-3 * n for n in range(1, 9)))
    due = poisson(1600 / images, 3000)
    waiting = [k for k in range(len(due)) for _ in range(images)]
    done, free = np.zeros(len(due)), 0.0
    while waiting:
        began = max(free, due[waiting[0]])
        size = sum(due[k] <= began for k in waiting[:8])
        free = began + replica.batch_s[size - 1]
        for k in waiting[:size]:
            done[k] = free
        del waiting[:size]
    trace = open_loop(replica, due, images)
    assert trace.done_s == pytest.approx(done, abs=1e-9)
    assert trace.images == images * len(due)


def test_a_lone_request_takes_the_sum_of_its_parts():
    plain = replace(REAL, cold=0.0, batch_ratios=(1.0,), front_ratios=(1.0,))
    trace = open_loop(plain, np.arange(20) * 1.0)
    parts_s = plain.front_s + plain.batch_s[0] + 4 * plain.wake_s + plain.beside_s
    assert trace.latency_s == pytest.approx(parts_s)


def test_a_replica_that_was_idle_is_slow_and_wakes_up_in_a_burst():
    still = replace(REAL, batch_ratios=(1.0,), front_ratios=(1.0,))
    burst = np.concatenate([[t, t + 5e-3, t + 10e-3] for t in (1.0, 2.0)])
    latency_s = open_loop(still, burst).latency_s
    warm_s = open_loop(replace(still, cold=0.0), burst).latency_s
    assert 2 * warm_s[0] < latency_s[0] < (1 + still.cold) * warm_s[0]
    far = Replica((1e-9,), beside_s=1e-3, cold=2.0)
    assert open_loop(far, [1.0]).latency_s == pytest.approx(3e-3, rel=1e-3), "all of it is slow"
    hot = np.arange(1, 200) * 1.05e-3
    assert open_loop(still, hot).latency_s[100:].mean() < 1.2 * warm_s[0]


def test_batches_raise_the_capacity_to_a_full_batch_in_its_time():
    replica = Replica((2e-3,) * 8)
    assert capacity_per_s(replica) == pytest.approx(8 / 2e-3, rel=0.01)
    assert capacity_per_s(replica, images=4) == pytest.approx(2 / 2e-3, rel=0.01)
    front = replace(replica, front_s=1e-3)
    assert capacity_per_s(front) == pytest.approx(1 / 1e-3, rel=0.02), "the front is what limits"


def test_latency_rises_with_the_rate_and_repeats_by_seed():
    warm = replace(REAL, cold=0.0)
    p99 = [np.percentile(open_loop(warm, poisson(rate, 4000)).latency_s, 99)
           for rate in (100, 800, 1600, 2400)]  # fmt: skip
    assert p99 == sorted(p99)
    again = [open_loop(REAL, poisson(900, 500, seed), seed=seed).latency_s for seed in (3, 3, 4)]
    assert (again[0] == again[1]).all()
    assert (again[0] != again[2]).any()


def test_the_interpreter_is_shared_but_nobody_starves():
    """The engine needs it to make noise, and gets it although the front never rests."""
    greedy = Replica((1e-3,) * 64, noise_s=(0.5e-3,) * 64, front_s=1e-3)
    trace = closed_loop(greedy, 64, 640)
    alone = closed_loop(replace(greedy, noise_s=()), 64, 640)
    assert throughput(trace, 64) < throughput(alone, 64) < 1.01 / 1e-3
    assert trace.latency_s.max() < 0.2


def test_the_interval_of_a_percentile_narrows_with_the_root_of_the_length():
    random = np.random.default_rng(0)
    wide, narrow = (half_interval(random.exponential(size=n), 50) for n in (2_000, 200_000))
    assert wide == pytest.approx(10 * narrow, rel=0.6)
    assert 0 < narrow < 0.02


# The plan


@pytest.fixture
def short(monkeypatch):
    """Short simulations and measurements."""
    monkeypatch.setattr(planner, "REQUESTS", 1500)
    monkeypatch.setattr(planner, "FINAL", 2)
    monkeypatch.setattr(planner, "HALVINGS", 4)
    monkeypatch.setattr(checking, "RUNS", 4)
    monkeypatch.setattr(fit, "TRIES", 50)
    monkeypatch.setattr(cost, "SECONDS", 0.1)
    monkeypatch.setattr(observe, "TURNS", 1)
    for name in ("WARM_S", "ALONE_S", "MANY_S", "OPEN_S"):
        monkeypatch.setattr(observe, name, 0.1)


def test_the_fewest_replicas_that_keep_the_target_are_found(short):
    found = Planner(REAL, 1, target_ms=8.0).plan(9000)
    assert found.replicas > 1
    assert found.answer.p99_ms <= 8.0 < found.points[found.replicas - 1].p99_ms
    assert max(found.points) == found.replicas + 2
    assert found.points[1].load > 1
    assert found.points[1].p99_ms == math.inf
    assert 9000 / found.replicas <= 1.1 * found.highest.per_s < 1.1 * found.capacity_per_s
    assert found.answer.per_s == 9000 / found.replicas
    assert 0 <= found.answer.late < 0.01


def test_many_replicas_have_no_endless_table(short):
    found = Planner(REAL, 1, target_ms=8.0).plan(200_000)
    assert len(found.points) == 12
    assert max(found.points) == found.replicas + 2


def test_what_one_request_cannot_keep_no_number_of_replicas_does(short):
    slow = Planner(replace(REAL, batch_s=(0.1,), noise_s=()), 1, target_ms=50.0)
    with pytest.raises(
        ConfigError, match=r"takes 10\d\.\d ms .* no number of replicas keeps it; tr"
    ):
        slow.plan(1.0, "try --variant int8")


# The fit


def seen(replica, due_s=None, clients=None):
    """What would be observed of a simulated replica."""
    trace = closed_loop(replica, clients, 300) if clients else open_loop(replica, due_s)
    n = len(trace.due_s)
    due_s = trace.due_s
    return Seen(
        clients=clients, offered_per_s=n / (due_s[-1] - due_s[0]), sent_s=due_s - due_s[0],
        latency_s=trace.latency_s, queue_s=np.full(n, replica.wake_s),
        infer_s=np.full(n, replica.batch_s[0]), inside_s=trace.latency_s - replica.beside_s,
        per_s=throughput(trace, clients) if clients else n / (due_s[-1] - due_s[0]),
        front_cpu_s=0.8 * replica.front_s, cores=1.2, other_cores=0.0, bottleneck=None,
    )  # fmt: skip


def engine(batch_s=BATCH_S):
    sizes = [n for n in (1, 2, 4, 8, 16) if n <= len(batch_s)]
    return EngineCost(
        "fp32", "onnxruntime", tuple(sizes), (32,), False,
        {n: [batch_s[n - 1]] * 3 for n in sizes}, {n: 10e-6 * n for n in sizes},
    )  # fmt: skip


def observed(replica):
    opened = tuple(seen(replica, poisson(rate, 300)) for rate in (100, 1000, 1700))
    return Observed(seen(replica, clients=1), seen(replica, clients=33), opened, 1, "npy")


def test_a_replica_is_found_again_from_what_was_observed_of_it(short):
    real = replace(REAL, batch_ratios=(1.0,), front_ratios=(1.0,))
    found = fit.fit(engine(), observed(real))
    assert found.error < 0.05
    assert found.replica.front_s == pytest.approx(real.front_s, rel=0.25)
    for rate in (400, 1400):  # rates that it was not fitted to
        due_s = poisson(rate, 3000, 5)
        pair = [
            np.percentile(open_loop(r, due_s).latency_s, [50, 90]) for r in (real, found.replica)
        ]
        assert pair[1] == pytest.approx(pair[0], rel=0.3)


def test_costs_between_sizes_are_the_services_own_and_beyond_them_those_of_an_image():
    found = EngineCost("v", "e", (1, 2, 4, 8), (), False, {1: [1.0], 2: [2.0, 1.0, 1.5], 4: [2.0]},
                       {1: 0.1, 8: 0.8})  # fmt: skip
    assert found.batch_s == pytest.approx((1.0, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0))
    assert found.request_s(10) == pytest.approx(4.0 + 1.5)
    assert found.noise_by_size_s[3] == pytest.approx(0.4)
    assert sorted(found.ratios) == pytest.approx([2 / 3, 1, 1, 1, 4 / 3])
    pads = replace(found, pads=True)
    assert pads.batch_s == pytest.approx((1.0, 1.5, 2.0, 2.0, 4.0, 4.0, 4.0, 4.0))


def test_an_engine_is_timed_in_the_sizes_that_the_service_keeps(short, tiny_bundle):
    found = engine_cost(bundles.load(tiny_bundle))
    assert set(found.seconds) <= set(found.buckets)
    assert 1 in found.seconds
    assert all(len(every) >= cost.CALLS for every in found.seconds.values())
    assert len(found.batch_s) == found.largest == found.buckets[-1]
    assert sorted((*found.buckets, *found.dropped)) == [1, 2, 4, 8, 16, 32, 64]


# The report


def checked(target_ms=8.0):
    plan = Planner(REAL, 1, target_ms)
    run = Run(1.0, 0.0, images=1, per_s=900.0, client_cores=0.99)
    due = poisson(900, 900)
    run.sent = [Sent(t, t + 1e-3, t + 1e-3 + lat, Outcome.OK) for t, lat in
                zip(due, open_loop(REAL, due).latency_s, strict=True)]  # fmt: skip
    return plan, checking._compare(plan, level(run))


def test_simulated_and_measured_stand_side_by_side_from_when_a_request_was_sent(short):
    _, found = checked()
    assert abs(found.error("p50")) < 0.1
    assert found.due_ms["p50"] == pytest.approx(found.measured_ms["p50"] + 1.0)
    low, high = found.band_ms["p99"]
    assert 0.5 * low < found.measured_ms["p99"] < 2 * high
    table = check_table([found], target_ms=8.0)
    assert table.rows[0][0] == "900"
    assert any("the generator was the bottleneck" in note for note in table.notes)


def made_up(per_s, simulated_ms, measured_ms):
    both = {"p50": 1.0, "p99": simulated_ms}, {"p50": 1.0, "p99": measured_ms}
    return Checked(
        per_s, per_s / 1000, 5000, 0.0, both[0], dict.fromkeys(("p50", "p99"), (1.0, 2.0)),
        both[1], both[1], 0.5, None, 0.0,
    )  # fmt: skip


def made_up_plan(rate, replicas=1, target_ms=50.0):
    point = Point(rate / replicas, 0.5, p50_ms=1.0, p99_ms=3.0, within_ms=0.1)
    points = {replicas: point}
    return Plan(rate, target_ms, 1, 1000.0, replicas, points, Point(950.0, 0.95), point)


def test_a_bound_that_the_check_breaks_and_the_simulation_keeps_is_a_warning(short):
    kept = [made_up(300, 3, 5), made_up(700, 10, 24)]
    broken = [made_up(850, 20, 1158), made_up(950, 34, 5995)]
    plan = made_up_plan(500)
    assert warning(kept, plan) is None
    assert warning([], plan) is None
    line = warning([*kept, *broken], plan)
    assert line == (
        "the check kept a p99 under 50 ms only up to 700 requests/s a replica: at 850 it measured "
        "1,158 ms, where the simulation says 20.0 ms (the load generator shared the cores); plan "
        "for no more than that a replica, so 1 replica for 500 requests/s, or check with the load "
        "on another machine"
    )
    notes = plan_table(measured(), plan, [*kept, *broken]).notes
    assert f"warning: {line}" in notes
    assert "950 with a p99 under 50 ms by the simulation" in notes[0]
    assert not any("warning" in note for note in plan_table(measured(), plan, kept).notes)
    notes = check_table([*kept, *broken], 50.0).notes
    assert sum("breaks the 50 ms asked for" in note for note in notes) == 2


def test_the_warning_is_the_last_word_and_in_the_json(short, tmp_path, capsys):
    planner = Planner(REAL, 1, 50.0)
    plan, checked = planner.plan(500), [made_up(300, 3, 5), made_up(850, 20, 1158)]
    cli._show(measured(), planner, plan, checked, "mmf plan", tmp_path)
    said = capsys.readouterr().out.splitlines()
    assert said[-2] == f"warning: {warning(checked, plan)}"
    assert said[-1].startswith("written: ")
    found = results.read(tmp_path / "plan.json").content
    assert (found["warning"], found["kept_per_s"]) == (warning(checked, plan), 300)


def test_what_both_break_is_no_contradiction():
    assert warning([made_up(300, 3, 5), made_up(950, 60, 90)], made_up_plan(500)) is None


def test_a_warning_counts_the_replicas_for_what_was_kept():
    checked = [made_up(300, 3, 5), made_up(850, 20, 80)]
    assert "so 6 replicas for 1,700 requests/s" in warning(checked, made_up_plan(1700, 2))
    found = about_check(made_up_plan(1700, 2), checked)
    assert found["kept_per_s"] == 300
    nothing = [made_up(300, 3, 70), made_up(850, 20, 80)]
    line = warning(nothing, made_up_plan(500))
    assert "kept a p99 under 50 ms at no rate below 300 requests/s a replica" in line
    assert "plan with less" in line
    assert about_check(made_up_plan(500), nothing)["kept_per_s"] is None
    assert about_check(made_up_plan(500), []) == {"warning": None, "kept_per_s": None}


def test_the_committed_plan_says_what_its_own_check_contradicts():
    found = results.read(ROOT / "benchmarks" / "results" / "plan-cpu" / "plan.json")
    content = found.content
    bands = ({n: tuple(b) for n, b in c["band_ms"].items()} for c in content["check"])
    checked = [Checked(**{**c, "band_ms": b}) for c, b in zip(content["check"], bands, strict=True)]
    plan = replace(
        made_up_plan(content["rate_per_s"], content["replicas"], content["target_ms"]),
        capacity_per_s=content["capacity_per_s"],
    )
    again = check_table(checked, plan.target_ms)
    (table,) = [t for t in found.tables if t.title == again.title]
    assert [list(row) for row in table.rows] == again.rows
    assert list(table.notes) == again.notes
    line = warning(checked, plan)
    assert (content["warning"], content["kept_per_s"]) == tuple(about_check(plan, checked).values())
    assert (line is None) == (content["warning"] is None)
    assert line is None or f"warning: {line}" in found.tables[0].notes


def test_slow_networks_are_checked_at_few_rates_for_a_limited_time():
    assert len(rates(10.0)) == 3
    assert rates(1000.0)[0] == 300.0
    assert checking.seconds(10.0) == 30.0
    assert checking.seconds(5000.0) == 5.0


def measured(threads=None, **more):
    manifest = SimpleNamespace(name="digits")
    served = SimpleNamespace(
        bundle=SimpleNamespace(manifest=manifest, digest="0" * 64), images=1, threads=threads,
        embedded=True,
        arguments=lambda: ["/x", *([] if threads is None else ["--threads", str(threads)])],
    )  # fmt: skip
    return Measured(served, engine(), observed(REAL), Fitted(REAL, 1.0, 0.05, 2000.0), **more)


def test_the_table_says_who_keeps_the_target_and_what_cores_that_takes(short):
    found = Planner(REAL, 1, 8.0).plan(5000)
    table = plan_table(measured(threads=2), found)
    kept = [row[-1] for row in table.rows]
    assert kept == ["missed"] * (found.replicas - 1) + ["kept"] * 3
    assert table.rows[0][-3:] == ["grows", "all", "missed"]
    notes = " ".join(table.notes)
    assert (
        f"{found.replicas} replicas of 2 compute threads each: {2 * found.replicas} cores" in notes
    )
    assert f"this machine has {available_cores()}" in notes
    assert "Poisson" in notes


def test_the_next_command_fits_the_machine():
    assert next_command(measured(), 1) == "mmf-serve"
    assert next_command(measured(threads=1), 1) == "mmf-serve --threads 1"
    if available_cores() >= 2:
        assert next_command(measured(threads=1), 2) == "mmf-serve --threads 1 --ray 2"
    assert "--replicas 500" in next_command(measured(threads=1), 500)


def test_the_picture_is_drawn_with_and_without_a_check(short, tmp_path):
    plan, found = checked()
    answer = plan.plan(3000)
    curve = [plan.at(rate) for rate in (50, 500, 1000, 2000)]
    for k, points in enumerate(([], [found])):
        plot("digits", answer, curve, points, tmp_path / f"{k}.png")
        with Image.open(tmp_path / f"{k}.png") as drawn:
            assert drawn.size[0] > 600


# The command


def run(*args):
    app(list(args), prog_name="mmf plan", standalone_mode=False)


def test_times_are_read_in_milliseconds_and_seconds():
    assert milliseconds("50ms") == 50.0
    assert milliseconds("0.05 s") == pytest.approx(50.0)
    for text in ("50", "fast", "0ms", "-1s", "1e3ms", "ms"):
        with pytest.raises(ConfigError, match=r"such as 50ms or 0\.05s"):
            milliseconds(text)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--rate", "0", "--p99", "5ms"], "--rate 0: expected requests a second"),
        (["--rate", "5", "--p99", "soon"], "expected a time above 0"),
        (["/nowhere", "--rate", "5", "--p99", "5ms"], "no bundle here"),
        (["--rate", "5", "--p99", "5ms", "--images", "300"], "takes at most 256"),
        (["--rate", "5", "--p99", "5ms", "--format", "jpg"], "expected one of"),
        (["--rate", "5", "--p99", "5ms", "--variant", "int9"], "int9"),
        (["--rate", "5", "--p99", "0.0001ms"], "no number of replicas keeps it; try --variant"),
    ],
)
def test_nonsense_is_one_line_and_a_failure(short, args, message):
    with pytest.raises(MMFError) as caught:
        run(*args)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_measures_a_service_and_writes_the_plan(short, tiny_bundle, tmp_path, capsys):
    out = tmp_path / "out"
    run(str(tiny_bundle), "--rate", "40", "--p99", "5s", "--out", str(out))
    said = capsys.readouterr().out
    assert "one replica carries 40" in said
    assert f"next: mmf-serve {tiny_bundle}" in said
    found = json.loads((out / "plan.json").read_text())
    assert results.read(out / "plan.json").kind == "plan"
    assert found["command"] == f"mmf plan {tiny_bundle} --rate 40 --p99 5s"
    assert found["replicas"] == 1
    assert found["reply_format"] == "json"
    assert len(found["points"]) == 3
    assert found["front"]["front_ms"] > 0
    assert [load["clients"] for load in found["loads"]][:2] == [1, 64]
    assert (out / "plan.png").is_file()
    assert "what batches take" in (out / "plan.md").read_text()


@pytest.mark.slow
def test_the_check_loads_the_service_at_every_rate(short, monkeypatch, tiny_bundle, capsys):
    monkeypatch.setattr(checking, "SHORTEST_S", 0.5)
    monkeypatch.setattr(checking, "REQUESTS", 1)
    run(str(tiny_bundle), "--rate", "40", "--p99", "5s", "--check")
    said = capsys.readouterr().out
    assert "simulated and measured" in said
    assert said.count("%  ") >= 5

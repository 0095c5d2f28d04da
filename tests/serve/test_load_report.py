"""The accounts of a load test: what counts, from when on, and what is said about it."""

import numpy as np
import pytest
from mmf_deploy.serve.load.check import Tally
from mmf_deploy.serve.load.plot import plot
from mmf_deploy.serve.load.report import (
    Outcome,
    Report,
    Run,
    Sent,
    bottleneck,
    level,
    server_ms,
    summary,
)
from mmf_deploy.serve.load.table import notes, result, table
from PIL import Image


def sent(due_ms, took_ms, outcome=Outcome.OK, what="", late_ms=0.0):
    due = due_ms / 1e3
    return Sent(due, due + late_ms / 1e3, due + took_ms / 1e3, outcome, what)


def test_percentiles_are_those_of_the_sorted_values():
    found = summary([float(v) for v in range(101)])
    assert found == {"p50": 50.0, "p90": 90.0, "p99": 99.0, "max": 100.0}
    assert summary([7.0]) == {"p50": 7.0, "p90": 7.0, "p99": 7.0, "max": 7.0}
    assert summary([]) == {}


def test_every_request_is_accounted_for_once():
    run = Run(1.0, 0.0, images=2, per_s=8, deadline_ms=100.0)
    run.sent = [
        *(sent(100 * k, 50) for k in range(4)),
        sent(400, 150, late_ms=20),
        sent(500, 1, Outcome.REFUSED, "503 overloaded"),
        sent(600, 3, Outcome.REFUSED, "503 overloaded"),
        sent(700, 1, Outcome.FAILED, "500 internal"),
    ]
    found = level(run)
    assert (found.requests, found.ok) == (8, 5)
    assert found.refused == {"503 overloaded": 2}
    assert found.failed == {"500 internal": 1}
    assert found.shed == 0.25
    assert found.latency_ms["max"] == pytest.approx(150)
    assert found.sent_latency_ms["max"] == pytest.approx(130)
    assert found.refusal_ms["max"] == pytest.approx(3)
    assert found.deadline_met == 0.8, "of what was answered with images"
    assert (found.requests_per_s, found.images_per_s) == (5.0, 10.0)


def test_throughput_counts_only_while_the_load_lasts():
    opened = Run(1.0, 0.0, images=1, per_s=4, sent=[sent(900, took) for took in (50, 50, 500)])
    assert level(opened).requests_per_s == 2.0
    # replies at 1, 2, 3 s to a closed loop of 4 s: one a second, not three in four
    closed = Run(4.0, 0.0, images=1, concurrency=1, sent=[sent(1e3 * k, 1e3) for k in range(3)])
    assert level(closed).requests_per_s == pytest.approx(1.0)
    # two at 5 s, when the load had ended: the service needed 2.5 s each
    slow = Run(4.0, 0.0, images=1, concurrency=2, sent=[sent(0, 5e3), sent(0, 5e3)])
    assert level(slow).requests_per_s == pytest.approx(0.4)
    # one, and then no more: not one a millisecond
    once = Run(4.0, 0.0, images=1, concurrency=1, sent=[sent(0, 1)])
    assert level(once).requests_per_s == pytest.approx(0.5)
    assert level(Run(4.0, 0.0, images=1, concurrency=1)).requests_per_s == 0.0


def test_failures_of_probes_count_and_their_latency_is_told_in_order():
    run = Run(1.0, 0.0, images=1, per_s=1, sent=[sent(0, 5)])
    run.probes = [sent(1000, 9), sent(1010, 1, Outcome.REFUSED, "503"), sent(1020, 2),
                  sent(1030, 1, Outcome.FAILED, "timeout")]  # fmt: skip
    found = level(run)
    assert found.recovery == {"refused": 1, "first_ms": 9.0, "latency_ms": [9.0, 2.0]}
    assert found.failed == {"timeout": 1}
    assert found.requests == 1


@pytest.mark.parametrize(
    ("late", "latency", "cores", "said"),
    [
        ({"p99": 0.4}, {"p99": 3.0}, 0.3, None),
        ({"p99": 6.0}, {"p99": 9.0}, 0.3, "6.0 ms late"),
        ({"p99": 6.0}, {"p99": 900.0}, 0.3, None),
        ({"p99": 0.4}, {"p99": 3.0}, 0.97, "0.97 of the one core"),
        ({}, {}, 0.0, None),
    ],
)
def test_the_generator_says_when_it_was_the_bottleneck(late, latency, cores, said):
    found = bottleneck(late, latency, cores)
    assert found is None if said is None else said in found


def test_server_timings_are_medians_by_name():
    headers = ["queue;dur=1, infer;dur=2.5", "queue;dur=3,infer;dur=3.5", "", "queue;dur=2"]
    assert server_ms(headers) == {"queue": 2.0, "infer": 3.0}


def report(levels, **changed):
    given = {
        "command": "mmf bench-serve", "target": "x", "model": "digits", "digest": "0" * 64,
        "variant": "fp32", "protocol": "native", "reply_format": "npy", "checked_by": "an engine",
        "machine": {"cpu": "a CPU", "cores": "2"}, "versions": {},
        "client": {"cpu_ms": 0.1, "round_trip_ms": 0.2}, "levels": levels, **changed,
    }  # fmt: skip
    return Report(**given)


def opened(per_s, ms, refused=0):
    run = Run(1.0, 0.0, images=1, per_s=per_s, memory_mb=[100.0, 130.0, 110.0])
    run.sent = [sent(k, ms * (1 + k / 50)) for k in range(50)]
    run.sent += [sent(k, 1, Outcome.REFUSED, "503 overloaded") for k in range(refused)]
    run.tally = Tally(identical=50)
    return level(run)


def test_the_plot_shows_latency_and_refusals_against_the_load(tmp_path):
    levels = [opened(50, 2.0), opened(100, 5.0), opened(200, 80.0, refused=50)]
    plot(report(levels, capacity_per_s=120.0), tmp_path / "load.png")
    pixels = np.asarray(Image.open(tmp_path / "load.png").convert("RGB"))
    assert min(pixels.shape[:2]) > 500
    colours = {tuple(c) for c in np.unique(pixels.reshape(-1, 3), axis=0)}
    assert len(colours) > 50
    for line in ("1f6fb2", "d1652a", "2a8a57"):  # p50, p90, p99
        assert tuple(bytes.fromhex(line)) in colours


def test_the_plot_of_a_closed_loop_and_of_a_level_without_replies_is_drawn(tmp_path):
    closed = level(Run(1.0, 0.0, images=4, concurrency=4, sent=[sent(0, 5), sent(5, 5)]))
    plot(report([closed]), tmp_path / "closed.png")
    plot(report([opened(50, 2.0), level(Run(1.0, 0.0, 1, per_s=100))]), tmp_path / "empty.png")
    assert all((tmp_path / f"{n}.png").stat().st_size > 10_000 for n in ("closed", "empty"))


def test_notes_tell_refusals_failures_memory_and_wrong_images():
    found = opened(200, 80.0, refused=50)
    found.checked.wrong = 3
    text = "\n".join(notes(report([found])))
    assert "50 identical, 0 within one level, 3 wrong" in text
    assert "200 req/s: refused of 100: 50 × 503 overloaded" in text
    assert "100 MB before, 130 at most, 110 after" in text
    assert "0.100 ms of processor time a request" in text
    assert "FAILED" not in text


def test_notes_tell_bottlenecks_recovery_noise_and_how_the_server_ended():
    busy = Run(1.0, 0.0, images=1, per_s=1, sent=[sent(0, 5)], client_cores=0.95, other_cores=0.5)
    busy.probes = [sent(1000, 9)]
    ended = "the server ended with exit code 1: it said nothing"
    text = "\n".join(notes(report([level(busy)], ready_s=0.5, problem=ended)))
    assert "1.00 req/s: the generator was the bottleneck: it used 0.95" in text
    assert "1.00 req/s: images came 9 ms after the load had ended (0 refusals before)" in text
    assert "other processes used up to 0.50 cores" in text
    assert "ready after 0.50 s" in text
    assert text.endswith(ended)


def test_the_table_has_a_row_a_level_and_only_columns_that_something_is_in():
    first = level(Run(1.0, 0.0, images=1, concurrency=4, sent=[sent(0, 5)], deadline_ms=10.0))
    shown = table(report([first, opened(200, 80.0, refused=50)]))
    assert list(shown.columns) == ["load", "req/s", "img/s", "p50", "p90", "p99", "max", "shed",
                                   "in time", "MB"]  # fmt: skip
    assert [row[0] for row in shown.rows] == ["4 at once", "200 req/s"]
    assert [row[-3:] for row in shown.rows] == [["0.0%", "100.0%", ""], ["50.0%", "", "130"]]
    assert "in time" not in table(report([opened(50, 2.0)])).columns
    assert shown.title == (
        f"digits ({'0' * 12}), native npy, one image a request: milliseconds until the reply"
    )


def test_the_common_form_keeps_every_number():
    found = result(report([opened(50, 2.0)], capacity_per_s=70.0)).as_dict()
    assert found["format"] == 1
    assert (found["reply_format"], found["capacity_per_s"]) == ("npy", 70.0)
    assert found["levels"][0]["latency_ms"]["p50"] > 0
    assert found["levels"][0]["checked"] == {"identical": 50, "within_one": 0, "wrong": 0}

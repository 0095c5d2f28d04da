"""Medians, their intervals, energy counters."""

import math

import numpy as np
import pytest
from mmf_deploy.serve.bench.energy import meter
from mmf_deploy.serve.bench.statistics import ENOUGH, median, ranks, ratio


def test_the_interval_of_a_median_holds_it_as_often_as_it_says():
    random = np.random.default_rng(0)
    for n in (6, 15, 40):
        samples = random.exponential(size=(4000, n))  # skewed: its median is log 2
        found = [median(row) for row in samples]
        hit = np.mean([m.low <= math.log(2) <= m.high for m in found])
        assert hit >= 0.95 - 0.012  # never less than said; more, since ranks are whole numbers


def test_ranks_are_those_of_the_binomial_distribution():
    # textbook values for 95%: (1, 6) of 6, (2, 9) of 10, (6, 15) of 20, counted from 1
    assert [ranks(n) for n in (1, 2, 5, 6, 8, 9, 10, 20)] == [0, 0, 0, 0, 0, 1, 1, 5]
    assert ENOUGH == 6


def test_how_well_a_median_is_known_is_the_farther_end():
    found = median([9, 10, 10, 10, 10, 13])
    assert (found.value, found.low, found.high) == (10, 9, 13)
    assert found.within == pytest.approx(0.3)


def test_a_ratio_within_turns_is_free_of_what_both_met():
    slow_machine = np.array([1, 1, 3, 1, 1, 2.0])
    found = ratio(2 * slow_machine, slow_machine)
    assert (found.value, found.within) == (2.0, 0.0)


def zone(root, name, joules, overflow=1000):
    path = root / name
    path.mkdir(parents=True, exist_ok=True)
    (path / "energy_uj").write_text(f"{round(joules * 1e6)}\n")
    (path / "max_energy_range_uj").write_text(f"{round(overflow * 1e6)}\n")


def test_energy_is_that_of_all_sockets_and_survives_an_overflow(tmp_path):
    zone(tmp_path, "intel-rapl:0", 900)
    zone(tmp_path, "intel-rapl:1", 5)
    zone(tmp_path, "intel-rapl:0:0", 300)  # a part of socket 0, which would count twice
    read = meter("cpu", tmp_path)
    before = read()
    zone(tmp_path, "intel-rapl:0", 100)  # 200 J later, the counter began anew
    zone(tmp_path, "intel-rapl:1", 6)
    assert read() - before == pytest.approx(201)


def test_where_nothing_tells_the_energy_there_is_no_meter(tmp_path):
    assert meter("cpu", tmp_path) is None
    (tmp_path / "intel-rapl:0").mkdir()
    assert meter("cpu", tmp_path) is None

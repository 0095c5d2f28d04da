"""Metrics between sets of samples whose answers are known."""

import numpy as np
import pytest
import torch
from mmf_deploy.training.metrics.sets import compare, energy_distance, kid, manifold

from mmf_deploy.errors import ShapeError


@pytest.fixture
def cloud():
    return np.random.default_rng(0).normal(size=(600, 5))


def test_identical_sets_have_no_distance_and_recall_one(cloud):
    found = compare(cloud, cloud)
    assert found.frechet == pytest.approx(0, abs=1e-8)
    assert (found.precision, found.recall, found.coverage) == (1.0, 1.0, 1.0)
    # each sample is in its own neighbourhood and, on average, in k others
    assert found.density == pytest.approx(1.2, abs=0.02)


def test_samples_of_one_law_have_density_and_coverage_near_one(cloud):
    other = np.random.default_rng(1).normal(size=(600, 5))
    precision, recall, density, coverage = manifold(other, cloud)
    assert density == pytest.approx(1, abs=0.1)
    # Naeem et al. 2020, Eq. 9: 1 − (N−1)…(N−k)/((2N−1)…(2N−k)), which tends to 1 − 2^−k
    assert coverage == pytest.approx(1 - 2**-5, abs=0.02)
    assert min(precision, recall) > 0.8


def test_far_apart_sets_share_nothing(cloud):
    assert manifold(cloud + 100, cloud) == (0.0, 0.0, 0.0, 0.0)


def test_one_repeated_mode_is_precise_and_recalls_little(cloud):
    # all samples near one real sample
    near = cloud[:1] + 0.01 * np.random.default_rng(2).normal(size=(600, 5))
    precision, recall, _, coverage = manifold(near, cloud)
    assert precision == 1.0
    assert recall < 0.05
    assert coverage < 0.05


def test_kernel_distance_is_unbiased_for_one_law_and_exact_for_moved_points(cloud):
    other = np.random.default_rng(1).normal(size=(600, 5))
    assert abs(kid(other, cloud)) < 0.05
    assert kid(cloud + 1, cloud) > 1
    # constant features a and b: k(a, a) + k(b, b) − 2 k(a, b) with k = (a·b/d + 1)³
    ones, twos = np.ones((50, 4)), 2 * np.ones((50, 4))
    assert kid(twos, ones) == pytest.approx((1 + 1) ** 3 + (4 + 1) ** 3 - 2 * (2 + 1) ** 3)


def test_sets_that_do_not_fit_are_refused(cloud):
    with pytest.raises(ShapeError, match="N, M > 5"):
        manifold(cloud[:5], cloud)
    with pytest.raises(ShapeError, match=r"expected \[N, D\]"):
        manifold(cloud[:, :3], cloud)


def test_energy_distance_is_zero_for_one_law_and_known_for_two_points():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2000, 2, generator=generator) for _ in range(2))
    assert energy_distance(a, b) == pytest.approx(0, abs=0.01)
    # all of a at 0, all of b at distance 3
    assert energy_distance(torch.zeros(10, 2), torch.tensor([[3.0, 0.0]]).expand(10, 2)) == 6.0

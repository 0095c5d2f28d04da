"""Metrics of paths at fields whose answers are known."""

import pytest
import torch
from mmf_deploy.training.exact import GaussianField
from mmf_deploy.training.metrics import trajectories
from mmf_deploy.training.metrics.motions import end_error, jerk, path_error
from mmf_deploy.training.metrics.trajectories import (
    encode,
    heun,
    jump,
    one_step_error,
    path_deviation,
    reference_path,
    smoothness,
    walk,
)
from torch import Tensor

S = 0.5
EXACT = GaussianField(S)


@pytest.fixture
def x1():
    return torch.randn(64, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def straight(x: Tensor, r: Tensor, t: Tensor) -> Tensor:
    """Every sample moves along a constant vector of its own place: a straight path."""
    return torch.ones_like(x)


def test_the_solver_is_of_second_order_at_the_exact_field(x1):
    exact = S * x1  # the flow maps N(0, 1) to N(0, s²)
    errors = []
    for steps in (16, 32):
        times = tuple(1 - k / steps for k in range(steps + 1))
        errors.append(float((heun(EXACT, x1, times)[-1] - exact).abs().max()))
    assert errors[1] < 1e-2
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.35)


def test_encoding_the_exact_field_gives_noise_of_std_one(x1):
    assert torch.allclose(encode(EXACT, S * x1, steps=256), x1, atol=1e-3)


def test_the_exact_field_has_no_path_deviation_and_no_one_step_error(x1):
    walked, reference = walk(EXACT, x1), reference_path(EXACT, x1, steps=256)
    assert len(walked) == len(reference) == trajectories.POINTS + 1
    assert float(path_deviation(walked, reference).max()) < 1e-7
    assert float(one_step_error(EXACT, S * x1, steps=256).max()) < 1e-6
    assert float(trajectories.one_step_gap(EXACT, x1, reference[-1]).max()) < 1e-6


def test_a_field_that_is_wrong_by_a_constant_has_the_deviation_of_its_drift(x1):
    def wrong(x, r, t):
        # as v̂ it is exact; as an average over any interval it is off by 0.1
        return EXACT(x, r, t) + 0.1 * float(bool((t > r).all()))

    # after k of K steps the drift is 0.1 · k/K at t = 0 from the start, times how the flow shrinks
    deviation = path_deviation(walk(wrong, x1), reference_path(wrong, x1, steps=256))
    shares = [float(EXACT.sigma(torch.tensor(1 - k / 16))) for k in range(17)]
    drift, expected = 0.0, []
    for k in range(1, 17):
        drift = drift * shares[k] / shares[k - 1] - 0.1 / 16
        expected.append(drift**2)
    assert float(deviation.mean()) == pytest.approx(sum(expected) / 16, rel=1e-3)


def test_the_exact_field_keeps_path_consistency_and_another_does_not(x1):
    generator = torch.Generator().manual_seed(1)
    times = torch.rand(len(x1), 3, dtype=torch.float64, generator=generator).sort(dim=1).values
    r, s, t = times.unbind(1)
    assert float(trajectories.consistency_residual(EXACT, x1, r, s, t).max()) < 1e-20

    def instantaneous(x, r, t):
        return EXACT(x, t, t)

    assert float(trajectories.consistency_residual(instantaneous, x1, r, s, t).mean()) > 1e-5


def test_straight_paths_have_no_smoothness_cost_and_bent_ones_their_acceleration(x1):
    assert float(smoothness(walk(straight, x1)).max()) < 1e-20
    # x_t = x + a t²/2 has the second derivative a everywhere
    times = torch.linspace(0, 1, 17, dtype=torch.float64)
    bent = [x1 + 3.0 * t**2 / 2 for t in times]
    assert float(smoothness(bent).mean()) == pytest.approx(9.0)


def test_one_step_from_an_inner_time_is_where_the_flow_goes(x1):
    t = 0.3
    at = float(EXACT.sigma(torch.tensor(t, dtype=torch.float64)))
    assert torch.allclose(jump(EXACT, at * x1, t), S * x1)


def test_errors_of_motions_have_their_closed_forms():
    time = torch.linspace(0, 1, 11, dtype=torch.float64)[None, :, None]
    still, moved = torch.zeros(5, 11, 2).double(), time.expand(5, 11, 2)
    assert path_error(moved, moved) == 0
    assert end_error(moved, still) == pytest.approx(2**0.5)
    assert path_error(still + 1, still) == pytest.approx(2**0.5)
    # constant speed and constant acceleration have no jerk; t³ has 6 everywhere
    assert jerk(moved) == pytest.approx(0, abs=1e-9)
    assert jerk(time.square().expand(5, 11, 2)) == pytest.approx(0, abs=1e-9)
    assert jerk(time**3) == pytest.approx(6)
    assert jerk(time**3, duration=2.0) == pytest.approx(6 / 8)

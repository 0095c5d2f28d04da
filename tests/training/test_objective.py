"""The objective against exact solutions.

Gaussian data N(0, s²) has a closed-form average velocity (training/exact.py), so nothing
here is compared with a stored blob.
"""

import math

import pytest
import torch
from mmf_deploy.training.derivative import DERIVATIVES, finite_difference, jvp
from mmf_deploy.training.exact import GaussianField
from mmf_deploy.training.objective import (
    TANGENTS,
    TARGETS,
    modular_meanflow,
    stop_gradient,
)
from mmf_deploy.training.objective_config import OBJECTIVES, Objective
from mmf_deploy.training.paths import PATHS
from mmf_deploy.training.time_pairs import TimePairs, TimePairsConfig, draw
from torch import nn

from mmf_deploy.errors import ConfigError, ShapeError
from mmf_deploy.nn.config import MLPConfig, UNetConfig
from mmf_deploy.nn.dropout import Dropout, shared_masks
from mmf_deploy.nn.mlp import MLP
from mmf_deploy.nn.unet import UNet
from mmf_deploy.spec import SampleSpec

exact_u = GaussianField()
S = exact_u.s
UNWEIGHTED = {"power": 0.0}


def random_mlp(dtype=torch.float32, classes=0):
    torch.manual_seed(3)
    spec = SampleSpec(shape=(4,), classes=classes)
    return MLP(spec, MLPConfig(width=32, depth=2, zero_init=1.0)).to(dtype)


def batch(n=64, dim=4, gaps=48, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x0 = S * torch.randn(n, dim, generator=generator, dtype=dtype)
    x1 = torch.randn(n, dim, generator=generator, dtype=dtype)
    a, b = torch.rand(2, n, generator=generator, dtype=dtype)
    t, r = torch.maximum(a, b), torch.minimum(a, b)
    r = torch.cat([r[:gaps], t[gaps:]])
    return x0, x1, TimePairs(r, t, gaps)


def gradient(net, lam, objective, seed=0, **kw):
    x0, x1, times = batch(seed=seed, dtype=next(net.parameters()).dtype, **kw)
    net.zero_grad()
    terms = modular_meanflow(net, x0, x1, times, lam, objective)
    terms.loss.mean().backward()
    flat = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    return terms, flat.clone()


def test_the_exact_field_satisfies_the_meanflow_identity():
    # Eq. 4 and 5 with the model tangent: u + (t − r) du/dt = v
    x0, x1, (r, t, _) = batch(256, gaps=256, dtype=torch.float64)
    x = PATHS["linear"].point(x0, x1, r, t)
    v = exact_u(x, t, t)
    u, dudt = DERIVATIVES["jvp"](exact_u, x, r, t, v, False)
    torch.testing.assert_close(u + (t - r)[:, None] * dudt, v, rtol=1e-6, atol=1e-8)


def test_the_exact_field_is_path_consistent():
    # Eq. 6, following the flow: x_s = x_t − (t − s) u(x_t, s, t)
    x = torch.randn(128, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    r, s, t = (torch.full((128,), value, dtype=torch.float64) for value in (0.1, 0.4, 0.9))
    x_s = x - (t - s)[:, None] * exact_u(x, s, t)
    left = (t - r)[:, None] * exact_u(x, r, t)
    right = (s - r)[:, None] * exact_u(x_s, r, s) + (t - s)[:, None] * exact_u(x, s, t)
    torch.testing.assert_close(left, right)


def test_one_step_map_of_the_exact_field_has_the_data_std():
    x1 = torch.randn(4096, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    x0 = x1 - exact_u(x1, zero, one)
    torch.testing.assert_close(x0, S * x1)


@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.parametrize("tangent", TANGENTS)
def test_loss_value_does_not_depend_on_lambda(derivative, tangent):
    net = random_mlp(torch.float64)
    objective = Objective(derivative=derivative, tangent=tangent)
    values = [gradient(net, lam, objective)[0].loss for lam in (0.0, 0.3, 1.0)]
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(values[0], values[2])


@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.parametrize("tangent", TANGENTS)
def test_gradient_is_linear_in_lambda_and_lambda_reaches_the_weights(derivative, tangent):
    net = random_mlp(torch.float64)
    objective = Objective(derivative=derivative, tangent=tangent)
    _, stopped = gradient(net, 0.0, objective)
    _, full = gradient(net, 1.0, objective)
    for lam in (0.25, 0.7):
        _, mixed = gradient(net, lam, objective)
        torch.testing.assert_close(mixed, (1 - lam) * stopped + lam * full, rtol=1e-6, atol=1e-9)
    # a public implementation computes λ and then detaches everything: λ must change the gradient
    assert (full - stopped).norm() > 0.05 * stopped.norm()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_named_objective_gives_finite_loss_and_gradient(name):
    net = random_mlp()
    objective = Objective.model_validate({"name": name})
    torch.manual_seed(0)
    x0, x1, step = S * torch.randn(32, 4), torch.randn(32, 4), 50_000
    terms = modular_meanflow(
        net, x0, x1, objective.draw_times(32, "cpu", step), objective.lam_at(step), objective,
        levels=objective.levels_at(step),
    )  # fmt: skip
    terms.loss.mean().backward()
    assert terms.loss.shape == (32,)
    assert torch.isfinite(terms.loss).all()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def relative_error(net, x, r, t, w, **kw):
    def u(x, r, t, rows):
        return net(x, r, t)

    u_exact, exact = jvp(u, x, r, t, w, False)
    u_again, approximate = finite_difference(u, x, r, t, w, False, **kw)
    torch.testing.assert_close(u_again, u_exact)
    return float((approximate - exact).norm() / exact.norm())


def random_unet(zero_init=0.1):
    torch.manual_seed(0)
    spec = SampleSpec(shape=(1, 8, 8))
    config = UNetConfig(model_channels=8, channel_mult=(1, 2), num_blocks=1, zero_init=zero_init)
    return UNet(spec, config)


def test_derivatives_agree_on_a_random_vector_network():
    x0, x1, (r, t, _) = batch(gaps=64)
    x = PATHS["linear"].point(x0, x1, r, t)
    assert relative_error(random_mlp(), x, r, t, x1 - x0) <= 1e-3


@pytest.mark.parametrize(("zero_init", "bound"), [(0.1, 2e-3), (1.0, 5e-3)])
def test_derivatives_agree_on_a_random_image_network(zero_init, bound):
    _, _, (r, t, _) = batch(8, gaps=8)
    x, w = torch.randn(2, 8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert relative_error(random_unet(zero_init), x, r, t, w) <= bound


def test_finite_difference_converges_to_the_exact_derivative():
    _, _, (r, t, _) = batch(8, gaps=8, dtype=torch.float64)
    x, w = torch.randn(
        2, 8, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    errors = [
        relative_error(random_unet().double(), x, r, t, w, step=h) for h in (1e-3, 1e-4, 1e-5)
    ]
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.1)
    assert errors[2] == pytest.approx(errors[0] / 100, rel=0.1)


@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_every_pass_of_a_step_sees_the_same_dropout_mask(derivative, lam):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(4, 64), nn.SiLU(), Dropout(0.5), nn.Linear(64, 4)).train()

    def net(x, r, t):
        return body(x + (t - r)[:, None])

    x0, x1, times = batch(8, gaps=6)
    torch.manual_seed(7)
    found = modular_meanflow(net, x0, x1, times, lam, Objective(derivative=derivative))
    # with other masks a difference quotient would be of order 1/h = 1000
    assert found.squared_error.max() < 1000
    # and a sample without a gap has a mask too, the same in one pass or in two
    torch.manual_seed(7)
    other = modular_meanflow(net, x0, x1, times, 1.0 - lam, Objective(derivative="jvp"))
    torch.testing.assert_close(found.squared_error, other.squared_error, rtol=1e-2, atol=1e-2)


def test_dropout_outside_a_step_is_ordinary_and_off_in_evaluation():
    layer, x = Dropout(0.25), torch.ones(4, 10_000)
    dropped = layer(x)
    assert float((dropped == 0).float().mean()) == pytest.approx(0.25, abs=0.02)
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.02)
    assert torch.equal(layer.eval()(x), x)


def test_shared_masks_are_those_of_the_samples_whatever_the_order():
    layer, x = Dropout(0.5), torch.ones(4, 100)
    with shared_masks(4) as masks:
        whole = layer(x)
        masks.rows = torch.tensor([2, 0, 2])
        assert torch.equal(layer(x[:3]), whole[[2, 0, 2]])
        masks.rows = slice(1, 3)
        assert torch.equal(layer(x[:2]), whole[1:3])
    assert not torch.equal(whole[0], whole[1])


def passes(lam, gaps=16, derivative="finite_difference"):
    """(batch size, with a graph?) of every evaluation of the network in one step of 64."""
    found = []

    def recording(x, r, t):
        found.append((len(x), torch.is_grad_enabled()))
        return net(x, r, t)

    net = random_mlp()
    x0, x1, times = batch(64, gaps=gaps)
    modular_meanflow(recording, x0, x1, times, lam, Objective(derivative=derivative))
    return found


def test_no_graph_is_kept_for_the_derivative_where_lambda_is_zero():
    # tangent; u of the whole batch; the other point of the difference
    assert passes(lam=0.0) == [(16, False), (64, True), (16, False)]


def test_derivative_runs_only_on_the_samples_with_a_gap():
    # tangent; u of the whole batch together with the other point of the difference
    assert passes(lam=1.0) == [(16, False), (80, True)]
    assert passes(lam=1.0, derivative="jvp") == [(16, False), (16, True), (48, True)]


def test_a_batch_without_gaps_is_one_pass():
    assert passes(lam=1.0, gaps=0) == [(64, True)]


def test_conditions_follow_their_samples_into_the_parts_of_a_batch():
    net = random_mlp(classes=5)
    x0, x1, times = batch(16, gaps=8)
    label = torch.arange(16) % 5
    whole = modular_meanflow(net, x0, x1, times, 0.0, Objective(), {"label": label}).squared_error
    for k in (3, 12):  # one with a gap, one without
        one = TimePairs(times.r[k : k + 1], times.t[k : k + 1], int(k < 8))
        rows = slice(k, k + 1)
        alone = modular_meanflow(
            net, x0[rows], x1[rows], one, 0.0, Objective(), {"label": label[rows]}
        )
        # the difference quotient carries float32's rounding, which depends on the batch size
        torch.testing.assert_close(alone.squared_error, whole[rows], rtol=5e-3, atol=1e-3)


class LinearInTime(nn.Module):
    """u(x, 0, t) = c(t) x with c(t) = Σ θ_k T_k(2t − 1): every linear map of Gaussian data.

    Where r = t it is the exact velocity. The one-step map is x1 − u(x1, 0, 1) = (1 − c(1)) x1.
    """

    def __init__(self, degree=14):
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(degree + 1, dtype=torch.float64))

    def c(self, t):
        y = 2 * t - 1
        previous, current = torch.ones_like(t), y
        total = self.theta[0] * previous + self.theta[1] * current
        for k in range(2, len(self.theta)):
            previous, current = current, 2 * y * current - previous
            total = total + self.theta[k] * current
        return total

    def forward(self, x, r, t):
        return x * torch.where(r == t, exact_u.rate(t), self.c(t))[:, None]


def stationary_one_step_std(tangent, lam):
    """Std of one-step samples where the gradient of the objective vanishes; r = 0, t uniform.

    With a tangent that does not depend on θ the gradient is linear in θ, so the stationary
    point is one linear solve, with the gradients taken from the objective itself.
    """
    n = 100_000
    generator = torch.Generator().manual_seed(0)
    x0 = S * torch.randn(n, 1, dtype=torch.float64, generator=generator)
    x1 = torch.randn(n, 1, dtype=torch.float64, generator=generator)
    t = (torch.arange(n, dtype=torch.float64) + 0.5) / n  # stratified
    times = TimePairs(torch.zeros_like(t), t, n)
    objective = Objective(tangent=tangent, derivative="jvp", weighting=UNWEIGHTED)
    net = LinearInTime()

    def gradient_at(theta):
        with torch.no_grad():
            net.theta.copy_(theta)
        net.zero_grad()
        modular_meanflow(net, x0, x1, times, lam, objective).loss.mean().backward()
        return net.theta.grad.clone()

    size = len(net.theta)
    at_zero = gradient_at(torch.zeros(size, dtype=torch.float64))
    unit = torch.eye(size, dtype=torch.float64)
    matrix = torch.stack([gradient_at(row) - at_zero for row in unit], dim=1)
    theta = torch.linalg.solve(matrix, -at_zero)
    with torch.no_grad():
        net.theta.copy_(theta)
        return float(1 - net.c(torch.ones(1, dtype=torch.float64)))


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_model_tangent_keeps_the_data_std_for_every_lambda(lam):
    assert stationary_one_step_std("model", lam) == pytest.approx(S, abs=0.01)


def test_conditional_tangent_without_stop_gradient_collapses_as_predicted():
    predicted = 2 * S / (2 * S + math.pi)  # 0.241 for s = 0.5
    assert stationary_one_step_std("conditional", 1.0) == pytest.approx(predicted, abs=0.01)


def test_conditional_tangent_with_stop_gradient_keeps_the_data_std():
    assert stationary_one_step_std("conditional", 0.0) == pytest.approx(S, abs=0.01)


@pytest.mark.parametrize("path", PATHS)
def test_velocity_is_the_derivative_of_the_path(path):
    x0, x1, (r, t, _) = batch(dtype=torch.float64, gaps=64)
    r = r.clamp(max=0.9)
    h = 1e-6
    ends = [PATHS[path].point(x0, x1, r, t + d) for d in (-h, h)]
    v = PATHS[path].velocity(x0, x1, r, t)
    torch.testing.assert_close((ends[1] - ends[0]) / (2 * h), v, rtol=1e-5, atol=1e-6)


def test_displacement_target_is_the_printed_one():
    x0, x1, (r, t, _) = batch(gaps=64)
    found = TARGETS["displacement"](PATHS["linear"], x0, x1, r, t)
    torch.testing.assert_close(found, (x1 - x0) / (t - r)[:, None])


def test_displacement_target_needs_a_minimal_gap():
    with pytest.raises(ConfigError, match="infinite variance"):
        Objective(target="displacement")
    assert Objective(target="displacement", time_pairs={"min_gap": 0.05})


def test_stop_gradient_scales_the_gradient_and_keeps_the_value():
    z = torch.tensor([2.0], requires_grad=True)
    out = stop_gradient(z, 0.3)
    out.sum().backward()
    assert float(out.detach()) == 2.0
    assert float(z.grad) == pytest.approx(0.3)


@pytest.mark.parametrize("kind", ["logit_normal", "sorted_logit_normal", "uniform"])
@pytest.mark.parametrize("min_gap", [0.0, 0.1])
def test_time_pairs_are_ordered_and_the_gaps_come_first(kind, min_gap):
    torch.manual_seed(0)
    r, t, gaps = draw(TimePairsConfig(type=kind, gap_fraction=0.25, min_gap=min_gap), 4096)
    assert gaps == 1024
    assert ((r >= 0) & (r <= t) & (t <= 1)).all()
    assert torch.equal(r[gaps:], t[gaps:])
    assert (r[:gaps] < t[:gaps]).float().mean() > 0.9
    assert (t - r)[:gaps].min() >= min_gap - 1e-6


def test_logit_normal_times_have_the_configured_law():
    torch.manual_seed(0)
    r, t, gaps = draw(TimePairsConfig(gap_fraction=1.0), 20_000)
    assert torch.logit(t.double()).mean().item() == pytest.approx(-0.6, abs=0.05)
    assert torch.logit(t.double()).std().item() == pytest.approx(1.6, abs=0.05)
    assert torch.logit(r.double()).mean().item() < -3.9  # min(r, t) only lowers it
    assert gaps == 20_000


def test_mismatched_batches_are_refused():
    x0, x1, times = batch(8, gaps=4)
    with pytest.raises(ShapeError, match="expected x0 and x1 alike"):
        modular_meanflow(random_mlp(), x0, x1[:4], times, 0.0, Objective())


@pytest.mark.parametrize("given", [{"name": "mmff"}, {"lam": 1.5}, {"lam": -0.1}])
def test_impossible_objectives_are_refused(given):
    with pytest.raises(ConfigError):
        Objective.model_validate(given)

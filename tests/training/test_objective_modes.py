"""Every named objective at the exact field; guidance, consistency, trajectories, precision."""

import math

import pytest
import torch
from mmf_deploy.training.consistency import ConsistencyConfig, snap
from mmf_deploy.training.derivative import jvp
from mmf_deploy.training.exact import GaussianField
from mmf_deploy.training.guidance import GuidanceConfig, guided_velocity
from mmf_deploy.training.objective import modular_meanflow
from mmf_deploy.training.objective_config import OBJECTIVES, Objective
from mmf_deploy.training.paths import PATHS, TrajectoryPath
from mmf_deploy.training.time_pairs import TimePairs
from torch import nn

from mmf_deploy.errors import ConfigError, ShapeError
from mmf_deploy.nn.config import MLPConfig
from mmf_deploy.nn.mlp import MLP
from mmf_deploy.spec import SampleSpec

exact = GaussianField()
UNWEIGHTED = {"power": 0.0}


class AroundTheExactField(nn.Module):
    """u* + x Σ θ_k φ_k(r, t), at θ = 0: the gradient in θ says which way an objective leaves."""

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(6, dtype=torch.float64))

    def forward(self, x, r, t):
        h = t - r
        features = torch.stack([torch.ones_like(t), t, h, t * h, r, h * h], dim=-1)
        return exact(x, r, t) + x * (features @ self.theta)[:, None]


def pull(name, n=60_000, groups=30):
    """Largest |mean gradient| at the exact field, in standard errors of that mean."""
    objective = Objective.model_validate(
        {"name": name, "weighting": UNWEIGHTED, "derivative": "jvp",
         "consistency": {"first_levels": 2000, "last_levels": 2000}, "warmup_steps": 10}
    )  # fmt: skip
    torch.manual_seed(0)
    net = AroundTheExactField()
    gradients = []
    for _ in range(groups):
        x0 = exact.s * torch.randn(n // groups, 1, dtype=torch.float64)
        x1 = torch.randn_like(x0)
        times = objective.draw_times(len(x0), "cpu", step=5)
        times = TimePairs(times.r.double(), times.t.double(), times.gaps)
        net.zero_grad()
        terms = modular_meanflow(
            net, x0, x1, times, objective.lam_at(5), objective,
            averaged=exact, levels=objective.levels_at(5),
        )  # fmt: skip
        terms.loss.mean().backward()
        gradients.append(net.theta.grad.clone())
    each = torch.stack(gradients)
    error = each.std(0).clamp(min=1e-30) / math.sqrt(groups)  # r = 0 has no pull in φ = r
    return float((each.mean(0) / error).abs().max())


LEAVES_THE_EXACT_FIELD = {"meanflow-full", "paper-literal"}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_exact_field_is_where_a_sound_objective_stays(name):
    if name in LEAVES_THE_EXACT_FIELD:
        assert pull(name) > 10
    else:
        assert pull(name) < 5


def test_the_averaged_tangent_of_equation_9_leaves_the_exact_field():
    objective = Objective(tangent="average", derivative="jvp", weighting=UNWEIGHTED, lam=0.0)
    torch.manual_seed(0)
    net = AroundTheExactField()
    x0 = exact.s * torch.randn(20_000, 1, dtype=torch.float64)
    times = objective.draw_times(len(x0), "cpu", step=0)
    times = TimePairs(times.r.double(), times.t.double(), times.gaps)
    terms = modular_meanflow(net, x0, torch.randn_like(x0), times, 0.0, objective)
    terms.loss.mean().backward()
    assert net.theta.grad.abs().max() > 0.01


def test_the_ema_tangent_asks_the_averaged_network():
    asked = []

    def averaged(x, r, t):
        asked.append((len(x), bool((r == t).all()), torch.is_grad_enabled()))
        return exact(x, r, t)

    x0, x1 = torch.randn(2, 8, 1)
    times = TimePairs(torch.zeros(8), torch.full((8,), 0.5), 6)
    modular_meanflow(exact, x0, x1, times, 1.0, Objective(tangent="ema"), averaged=averaged)
    assert asked == [(6, True, False)]


@pytest.mark.parametrize("name", ["meanflow-full", "paper-literal", "mmf"])
def test_objectives_known_to_fail_say_so_and_sound_ones_say_nothing(name):
    warnings = Objective(name=name).warnings
    assert bool(warnings) == (name != "mmf")
    if name == "meanflow-full":
        assert "collapse" in warnings[0]
    if name == "paper-literal":
        assert "variance" in warnings[0]


def test_the_paper_printed_literally_needs_its_minimal_gap():
    assert Objective(name="paper-literal").time_pairs.min_gap > 0
    with pytest.raises(ConfigError, match="min_gap"):
        Objective.model_validate({"name": "paper-literal", "time_pairs": {"min_gap": 0.0}})


def test_the_paper_printed_literally_is_equation_11():
    objective = Objective(name="paper-literal", derivative="jvp")
    torch.manual_seed(0)
    spec = SampleSpec(shape=(3,))
    net = MLP(spec, MLPConfig(width=16, depth=1, zero_init=1.0)).double()
    x0, x1 = torch.randn(2, 10, 3, dtype=torch.float64)
    r = torch.linspace(0.0, 0.4, 10, dtype=torch.float64)
    t = r + torch.linspace(0.1, 0.5, 10, dtype=torch.float64)
    found = modular_meanflow(net, x0, x1, TimePairs(r, t, 10), 0.3, objective)
    alpha = ((t - r) / (1 - r))[:, None]
    displacement = (x1 - x0) / (t - r)[:, None]
    x = (1 - alpha) * x0 + alpha * x1
    u, dudt = torch.func.jvp(lambda x, t: net(x, r, t), (x, t), (displacement, torch.ones_like(t)))
    expected = (u + (t - r)[:, None] * dudt - displacement).square().sum(1)
    torch.testing.assert_close(found.squared_error, expected)


# --- consistency ---------------------------------------------------------------------------


def test_the_consistency_residual_is_that_of_two_neighbours_on_one_path():
    torch.manual_seed(0)
    net = MLP(SampleSpec(shape=(3,)), MLPConfig(width=16, depth=1, zero_init=1.0)).double()
    x0, x1 = torch.randn(2, 12, 3, dtype=torch.float64)
    levels = 6
    t = snap(torch.linspace(0.01, 1.0, 12, dtype=torch.float64), levels)
    zero = torch.zeros_like(t)
    objective = Objective(name="consistency", weighting=UNWEIGHTED)
    terms = modular_meanflow(net, x0, x1, TimePairs(zero, t, 12), 0.0, objective, levels=levels)
    terms.loss.mean().backward()
    found = [p.grad.clone() for p in net.parameters()]

    def f(t):
        x = x0 + t[:, None] * (x1 - x0)
        return x - t[:, None] * net(x, zero, t)

    net.zero_grad()
    expected = ((f(t) - f(t - 1 / levels).detach()) * levels).square().sum(1)
    torch.testing.assert_close(terms.squared_error, expected)
    expected.mean().backward()
    for a, p in zip(found, net.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad)


def test_levels_grow_geometrically_and_times_lie_on_them():
    config = ConsistencyConfig(first_levels=10, last_levels=160)
    assert [config.levels_at(k, 100) for k in (0, 25, 50, 100, 500)] == [10, 20, 40, 160, 160]
    t = snap(torch.tensor([0.0, 1e-6, 0.1, 0.1001, 1.0]), 10)
    torch.testing.assert_close(t, torch.tensor([0.1, 0.1, 0.1, 0.2, 1.0]))
    torch.manual_seed(0)
    times = Objective(name="consistency", warmup_steps=100).draw_times(64, "cpu", step=50)
    assert torch.equal(times.r, torch.zeros(64))
    torch.testing.assert_close(times.t * 40, (times.t * 40).round())


# --- guidance ------------------------------------------------------------------------------

MEANS = torch.tensor([-1.0, 1.0], dtype=torch.float64)


class TwoClasses:
    """Exact velocities of two Gaussian classes, and of their mixture, in one dimension."""

    def of_class(self, x, t, label):
        a = (1 - t)[:, None] * MEANS[label][:, None]
        return -MEANS[label][:, None] + exact.rate(t)[:, None] * (x - a)

    def mixture(self, x, t):
        logits = torch.stack(
            [-((x[:, 0] - (1 - t) * m) ** 2) / (2 * exact.sigma(t) ** 2) for m in MEANS], dim=1
        )
        posterior = logits.softmax(1)
        each = [self.of_class(x, t, torch.full((len(x),), k)) for k in range(2)]
        return posterior[:, :1] * each[0] + posterior[:, 1:] * each[1]

    def __call__(self, x, r, t, label=None, guidance=None):
        """The guided field: ω v(· | c) + (1 − ω) v(· | null)."""
        if label is None:
            return self.mixture(x, t)
        null = label == 2
        conditional = self.of_class(x, t, label.clamp(max=1))
        free = self.mixture(x, t)
        guided = guidance[:, None] * conditional + (1 - guidance[:, None]) * free
        return torch.where(null[:, None], free, guided)


def test_the_guided_field_is_where_guided_training_stays():
    torch.manual_seed(0)
    n, groups = 200_000, 40
    label = torch.randint(0, 2, (n,))
    x0 = MEANS[label][:, None] + exact.s * torch.randn(n, 1, dtype=torch.float64)
    x1 = torch.randn_like(x0)
    t = torch.rand(n, dtype=torch.float64)
    dropped, omega = GuidanceConfig(mode="input", max=4.0).draw(n, torch.device("cpu"))
    condition = {"label": torch.where(dropped, 2, label), "guidance": omega.double()}
    theta = torch.zeros(3, dtype=torch.float64, requires_grad=True)

    def net(x, r, t, label=None, guidance=None):
        base = TwoClasses()(x, r, t, label, guidance)
        side = (
            torch.zeros_like(x) if label is None else torch.tensor([-1.0, 1.0, 0.0])[label][:, None]
        )
        return base + theta[0] * side + theta[1] * x + theta[2] * side * t[:, None]

    times = TimePairs(t, t, 0)
    objective = Objective(name="flow-matching", weighting=UNWEIGHTED)
    terms = modular_meanflow(net, x0, x1, times, 0.0, objective, condition, omega=omega.double())
    parts = terms.loss.view(groups, -1).mean(1)
    each = torch.stack([torch.autograd.grad(p, theta, retain_graph=True)[0] for p in parts])
    assert (each.mean(0).abs() < 5 * each.std(0) / math.sqrt(groups)).all()
    # and without the guided target it does not stay
    plain = modular_meanflow(net, x0, x1, times, 0.0, objective, condition)
    parts = plain.loss.view(groups, -1).mean(1)
    each = torch.stack([torch.autograd.grad(p, theta, retain_graph=True)[0] for p in parts])
    assert (each.mean(0).abs() > 10 * each.std(0) / math.sqrt(groups)).any()


def test_the_guided_target_has_its_fixed_point_at_the_guided_velocity():
    v_c, v_null = torch.randn(2, 5, 3, dtype=torch.float64)
    omega = torch.tensor([1.0, 1.5, 2.0, 4.0, 8.0], dtype=torch.float64)
    guided = omega[:, None] * v_c + (1 - omega[:, None]) * v_null
    torch.testing.assert_close(guided_velocity(v_c, guided, v_null, omega), guided)


def test_labels_are_dropped_at_their_share_and_then_unguided():
    torch.manual_seed(0)
    config = GuidanceConfig(mode="input", max=4.0, label_dropout=0.2)
    dropped, omega = config.draw(20_000, torch.device("cpu"))
    assert float(dropped.float().mean()) == pytest.approx(0.2, abs=0.01)
    assert (omega[dropped] == 1).all()
    kept = omega[~dropped].log() / math.log(4.0)  # log-uniform on [1, 4]
    assert float(kept.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(kept.min()) >= 0
    assert float(kept.max()) <= 1
    fixed = GuidanceConfig(mode="fixed", scale=2.5).draw(1000, torch.device("cpu"))
    assert set(fixed[1].tolist()) == {1.0, 2.5}
    assert GuidanceConfig().draw(8, torch.device("cpu")) == (None, None)
    only = GuidanceConfig(label_dropout=0.5).draw(1000, torch.device("cpu"))
    assert only[1] is None
    assert 400 < int(only[0].sum()) < 600


def test_guidance_needs_label_dropout_and_not_the_consistency_objective():
    assert GuidanceConfig(mode="fixed").label_dropout == 0.1
    with pytest.raises(ConfigError, match="label dropout"):
        GuidanceConfig(mode="fixed", label_dropout=0.0)
    with pytest.raises(ConfigError, match="consistency"):
        Objective.model_validate({"name": "consistency", "guidance": {"mode": "fixed"}})


def test_the_tangent_of_a_guided_step_is_the_velocity_it_already_has():
    passes = []

    def net(x, r, t, label=None, guidance=None):
        passes.append((len(x), label is None))
        return exact(x, r, t)

    x0, x1 = torch.randn(2, 8, 1)
    times = TimePairs(torch.zeros(8), torch.full((8,), 0.5), 4)
    condition = {"label": torch.zeros(8, dtype=torch.int64)}
    objective = Objective(derivative="finite_difference")
    omega = torch.full((8,), 2.0)
    modular_meanflow(net, x0, x1, times, 0.0, objective, condition, omega=omega)
    # own and unconditional velocity; u; the other point of the difference
    assert passes == [(8, False), (8, True), (8, False), (4, False)]


# --- trajectories, precision ---------------------------------------------------------------


def test_a_trajectory_goes_through_its_points_and_is_exact_for_parabolas():
    times = torch.linspace(0, 1, 9, dtype=torch.float64)
    a, b, c = torch.randn(3, 5, 2, dtype=torch.float64)

    def at(t):
        return a[:, None] + b[:, None] * t[None, :, None] + c[:, None] * t[None, :, None] ** 2

    path = TrajectoryPath(at(times))
    for value in (0.0, 0.03, 0.5, 0.71, 1.0):
        t = torch.full((5,), value, dtype=torch.float64)
        x0 = x1 = a
        expected = a + b * value + c * value**2
        torch.testing.assert_close(path.point(x0, x1, t, t), expected)
        torch.testing.assert_close(path.velocity(x0, x1, t, t), b + 2 * c * value)


def test_a_given_trajectory_takes_the_place_of_the_straight_path():
    torch.manual_seed(0)
    states = torch.randn(6, 5, 2).cumsum(1)
    times = TimePairs(torch.rand(6) * 0.5, torch.rand(6) * 0.5 + 0.5, 0)
    seen = []

    def net(x, r, t):
        seen.append(x)
        return torch.zeros_like(x)

    objective = Objective(name="flow-matching")
    x0, x1 = states[:, 0], states[:, -1]
    terms = modular_meanflow(net, x0, x1, times, 0.0, objective, states=states)
    path = TrajectoryPath(states)
    assert torch.equal(seen[0], path.point(x0, x1, times.r, times.t))
    velocity = path.velocity(x0, x1, times.r, times.t)
    torch.testing.assert_close(terms.squared_error, velocity.square().sum(1))
    assert not torch.allclose(seen[0], PATHS["linear"].point(x0, x1, times.r, times.t))


def test_a_trajectory_too_short_for_a_cubic_is_refused():
    with pytest.raises(ShapeError, match="T >= 3"):
        TrajectoryPath(torch.zeros(4, 2, 3))


def test_the_average_velocity_along_a_curved_trajectory_satisfies_the_identity():
    # x_t = a + b t + c t²: v = b + 2 c t, u = b + c (t + r) for every pair of times
    a, b, c = torch.randn(3, 6, 2, dtype=torch.float64)
    times = torch.linspace(0, 1, 7, dtype=torch.float64)
    states = a[:, None] + b[:, None] * times[None, :, None] + c[:, None] * times[None, :, None] ** 2
    r = torch.linspace(0.0, 0.5, 6, dtype=torch.float64)
    pair = TimePairs(r, r + 0.4, 6)

    def net(x, r, t):
        return b + c * (t + r)[:, None]

    for tangent in ("model", "conditional"):
        objective = Objective(tangent=tangent, derivative="jvp")
        terms = modular_meanflow(net, states[:, 0], states[:, -1], pair, 1.0, objective,
                                 states=states)  # fmt: skip
        assert terms.squared_error.max() < 1e-20


@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_in_bfloat16_the_derivative_stays_in_float32(lam):
    torch.manual_seed(0)
    net = MLP(SampleSpec(shape=(4,)), MLPConfig(width=32, depth=2, zero_init=1.0))
    seen = []

    def recording(x, r, t):
        seen.append((len(x), torch.is_autocast_enabled("cpu")))
        return net(x, r, t)

    x0, x1 = torch.randn(2, 16, 4)
    times = TimePairs(0.3 * torch.rand(16), 0.4 + 0.6 * torch.rand(16), 4)
    objective = Objective(derivative="finite_difference")
    with torch.autocast("cpu", torch.bfloat16):
        found = modular_meanflow(recording, x0, x1, times, lam, objective)
    # tangent of 4 in bfloat16, their derivative in float32, the other 12 in bfloat16
    assert seen[0] == (4, True)
    assert [s for s in seen[1:] if not s[1]] == ([(4, False)] * 2 if lam == 0 else [(8, False)])
    assert seen[-1] == (12, True)
    exact_terms = modular_meanflow(net, x0, x1, times, lam, objective)
    torch.testing.assert_close(found.squared_error, exact_terms.squared_error, rtol=0.1, atol=0.1)
    assert found.loss.dtype == torch.float32


def test_the_exact_field_of_the_library_is_differentiated_by_jvp():
    x = torch.randn(7, 2, dtype=torch.float64)
    r, t = torch.full((7,), 0.2, dtype=torch.float64), torch.full((7,), 0.8, dtype=torch.float64)
    v = exact(x, t, t)
    u, dudt = jvp(exact, x, r, t, v, False)
    torch.testing.assert_close(u + (t - r)[:, None] * dudt, v)

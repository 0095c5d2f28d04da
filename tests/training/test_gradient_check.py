"""A faster way to the gradient is taken only when it is the same gradient."""

import functools

import pytest
import torch
from mmf_deploy.training import derivative as derivatives
from mmf_deploy.training.gradient_check import (
    check_derivative,
    choose_derivative,
    compile_step,
    relative_difference,
)
from mmf_deploy.training.learner import Learner
from mmf_deploy.training.loop import Trainer
from mmf_deploy.training.objective_config import Objective
from mmf_deploy.training.processes import OneProcess
from mmf_deploy.training.read_recipe import load_config

from mmf_deploy import checkpoint
from mmf_deploy.nn.build import build_network
from mmf_deploy.spec import SampleSpec

SPEC = SampleSpec(shape=(1, 8, 8), classes=10)
UNET = {"type": "unet", "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1}


def network():
    torch.manual_seed(0)
    return build_network(SPEC, UNET)


def test_in_float32_the_difference_quotient_is_chosen():
    name, why = choose_derivative(network(), SPEC, Objective())
    assert name == "finite_difference"
    assert "du/dt differs by" in why


def test_the_check_leaves_network_and_random_numbers_as_they_were():
    net = network()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    choose_derivative(net, SPEC, Objective())
    assert torch.equal(torch.randn(3), expected)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("step", [1e-6, 0.5])
def test_a_noisy_or_a_coarse_derivative_is_refused(monkeypatch, step):
    # 1e-6: float32 has no digits left, as with products rounded to TF32 at 1e-3
    worse = functools.partial(derivatives.finite_difference, step=step)
    monkeypatch.setitem(derivatives.DERIVATIVES, "finite_difference", worse)
    name, why = choose_derivative(network(), SPEC, Objective())
    assert name == "jvp"
    assert "fails its check" in why


def test_a_derivative_that_is_not_a_number_is_refused(monkeypatch):
    def broken(u, x, r, t, tangent, keep_graph):
        value, dudt = derivatives.jvp(u, x, r, t, tangent, keep_graph)
        return value, dudt * float("nan")

    monkeypatch.setitem(derivatives.DERIVATIVES, "finite_difference", broken)
    assert not check_derivative(network(), SPEC, Objective(), "finite_difference").passed


def test_the_exact_derivative_agrees_with_itself():
    found = check_derivative(network(), SPEC, Objective(), "jvp")
    assert (found.dudt, found.gradient) == (0.0, 0.0)


def test_nothing_is_checked_where_nothing_is_differentiated():
    assert choose_derivative(network(), SPEC, Objective(name="flow-matching"))[0] == "jvp"


def test_a_resumed_run_keeps_the_derivative_it_chose(tmp_path, monkeypatch):
    sets = ["loop.steps=2", "loop.batch_size=8", "network.model_channels=8", "evaluate=null",
            "loop.checkpoint_every=1", "loop.sample_every=0", "loop.tensorboard=false"]  # fmt: skip
    config = load_config("digits", sets)
    Trainer(config, tmp_path / "run").run()
    assert checkpoint.read(tmp_path / "run").meta["derivative"] == "finite_difference"
    newest = checkpoint.find_all(tmp_path / "run")[-1]
    newest.rename(newest.with_name("gone"))

    def never(*args):
        raise AssertionError("chosen again")

    monkeypatch.setattr("mmf_deploy.training.learner.choose_derivative", never)
    assert Trainer(config, tmp_path / "run").run().step == 2


def learner(*overrides):
    config = load_config(
        "digits",
        ["network.model_channels=8", "loop.batch_size=8", "evaluate=null",
         "objective.derivative=finite_difference", *overrides],
    )  # fmt: skip
    found = Learner(config, config.load_data(), OneProcess("cpu"))
    found.assemble(None)
    return found


def gradient(found, step):
    found.gradients(step, 0)
    return torch.cat([p.grad.flatten() for p in found.parameters])


@pytest.mark.parametrize(
    ("name", "dropout", "levels"),
    [
        ("mmf", 0.0, "[1, 2]"),
        ("mmf", 0.2, "[1, 2]"),
        # what differs between objectives lies outside the network
        ("mmf-lambda0", 0.2, "[1]"),
        ("meanflow", 0.2, "[1]"),
        ("consistency", 0.2, "[1]"),
    ],
)
def test_a_compiled_step_is_one_graph_with_the_same_gradient(monkeypatch, name, dropout, levels):
    # without the code generator, which takes half a minute; the slow test below has it
    torch._dynamo.reset()
    graphs = []

    def backend(module, inputs):
        graphs.append(module)
        return module.forward

    compiled = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile",
        lambda self, **kw: compiled(self, backend=backend, fullgraph=True, **kw),
    )  # fmt: skip
    sets = [f"objective.name={name}", f"network.dropout={dropout}",
            f"network.channel_mult={levels}"]  # fmt: skip
    eager = learner(*sets)
    fast = learner(*sets, "loop.compile=true")
    assert fast.compiled, fast.notes
    after_check = len(graphs)
    for step in (1, 50, 900):  # three values of a rising λ
        torch.testing.assert_close(gradient(fast, step), gradient(eager, step))
    assert after_check == 1
    assert len(graphs) == (2 if dropout else 1)  # masks are off during the check


def test_a_step_that_cannot_be_compiled_goes_on_without(monkeypatch):
    def fail(self, **kw):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch.nn.Module, "compile", fail)
    found = learner("loop.compile=true")
    assert not found.compiled
    assert any("not compiled: RuntimeError: no compiler" in note for note in found.notes)
    assert torch.isfinite(gradient(found, 1)).all()


def test_a_compiled_step_with_another_gradient_is_not_used():
    found = learner()
    inputs = found.inputs(0, found.draw(0))
    step = found.step
    before = [p.detach().clone() for p in step.parameters()]

    def wrong(**kw):
        step._compiled_call_impl = lambda *args: (step.forward(*args)[0] * 1.1, None)

    step.compile = wrong
    used, why = compile_step(step, inputs, 1.0, 0)
    assert not used
    assert "differs by 1.0e-01" in why
    assert step._compiled_call_impl is None
    assert all(torch.equal(a, b) for a, b in zip(step.parameters(), before, strict=True))


@pytest.mark.slow
def test_a_step_compiled_to_machine_code_has_the_same_gradient():
    fast, eager = learner("loop.compile=true"), learner()
    assert fast.compiled, fast.notes
    assert relative_difference(gradient(fast, 900), gradient(eager, 900)) < 1e-2

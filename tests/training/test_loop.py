"""What a run leaves behind, and how it refuses nonsense."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from mmf_deploy.training.config import load_config
from mmf_deploy.training.ema import EMA
from mmf_deploy.training.loop import Trainer
from mmf_deploy.training.order import batch_indices, derive
from mmf_deploy.training.schedules import curriculum, learning_rate
from PIL import Image

from mmf_deploy import checkpoint
from mmf_deploy.errors import TrainingError
from mmf_deploy.nn.build import network_from

SMALL = [
    "loop.steps=12", "loop.batch_size=16", "loop.checkpoint_every=4", "loop.sample_every=6",
    "loop.keep=2", "network.model_channels=8", "evaluate=null",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "small"
    return out, Trainer(load_config("digits", SMALL), out).run()


def test_a_run_ends_with_its_newest_checkpoints(run):
    out, result = run
    assert result.finished
    assert result.step == 12
    kept = [p.name for p in checkpoint.find_all(out)]
    assert kept == ["step-00000008", "step-00000012"]
    assert result.checkpoint.name == kept[-1]


def test_a_checkpoint_holds_config_weights_and_versions(run):
    found = checkpoint.read(run[0])
    assert found.config["loop"]["steps"] == 12
    assert found.spec.classes == 10
    assert found.emas == ["ema-0.995"]
    assert found.meta["versions"]["torch"] == torch.__version__
    assert network_from(found)(torch.zeros(1, 1, 8, 8), torch.zeros(1), torch.ones(1)).shape == (
        1, 1, 8, 8,
    )  # fmt: skip


def test_the_log_has_loss_lambda_and_speed(run):
    lines = [json.loads(line) for line in (run[0] / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 12]
    assert all(line["loss"] > 0 and line["images_per_s"] > 0 for line in lines)
    assert lines[0]["lam"] == pytest.approx(9 / load_config("digits").objective.warmup_steps)


def test_sample_grids_are_images_with_something_on_them(run):
    grids = sorted((run[0] / "samples").iterdir())
    assert [g.name for g in grids] == ["step-00000006.png", "step-00000012.png"]
    pixels = np.asarray(Image.open(grids[0]))
    assert pixels.shape[0] > 500
    assert len(np.unique(pixels)) > 10


def test_training_lowers_the_loss(tmp_path):
    config = load_config("digits", [*SMALL, "loop.steps=150", "loop.batch_size=32",
                                    "objective.weighting.power=0", "objective.lam=0"])  # fmt: skip
    Trainer(config, tmp_path / "run").run()
    log = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    losses = [json.loads(line)["squared_error"] for line in log]
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:2])


def test_a_run_that_is_not_finite_stops_and_every_checkpoint_it_leaves_is_good(tmp_path):
    config = load_config("digits", [*SMALL, "optimizer.lr=1e18", "optimizer.warmup_steps=0"])
    with pytest.raises(TrainingError, match=r"not finite at step .*lower optimizer.lr"):
        Trainer(config, tmp_path / "run").run()
    left = checkpoint.find_all(tmp_path / "run")
    assert left
    for path in left:
        for name in ("model", "ema-0.995"):
            assert all(np.isfinite(v).all() for v in checkpoint.read(path).tensors(name).values())


def test_a_run_of_no_steps_writes_the_initial_network(tmp_path):
    config = load_config("digits", [*SMALL, "loop.steps=0", "loop.ema=[]"])
    result = Trainer(config, tmp_path / "run").run()
    found = checkpoint.read(result.checkpoint)
    assert found.step == 0
    assert found.default_weights() == "model"


def test_every_sample_comes_once_an_epoch_in_a_new_order():
    batches = [batch_indices(seed=0, step=k, batch_size=7, size=20) for k in range(20)]
    stream = torch.cat(batches)
    assert all(len(b) == 7 for b in batches)
    epochs = stream.view(7, 20)
    assert all(sorted(epoch.tolist()) == list(range(20)) for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])


def test_a_batch_may_be_larger_than_the_data():
    assert len(batch_indices(seed=0, step=3, batch_size=50, size=20)) == 50


def test_derived_seeds_differ_by_purpose_and_step():
    seeds = {derive(0, purpose, k) for purpose in ("step", "epoch") for k in range(100)}
    assert len(seeds) == 200
    assert all(0 <= s < 2**63 for s in seeds)


def test_ema_follows_its_formula():
    net = torch.nn.Linear(1, 1, bias=False)
    ema = EMA(net, decay=0.9)
    expected = float(net.weight.detach())
    for step in range(60):
        with torch.no_grad():
            net.weight.fill_(float(step))
        ema.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert float(ema.state_dict()["weight"]) == pytest.approx(expected, rel=1e-5)


def test_curriculum_rises_to_one():
    assert [curriculum(k, 4) for k in (0, 1, 2, 4, 9)] == [0.0, 0.25, 0.5, 1.0, 1.0]
    assert curriculum(0, 0) == 1.0


def test_learning_rate_warms_up_and_decays_to_zero():
    rates = [learning_rate(k, peak=1.0, steps=100, warmup_steps=10) for k in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates[99] < 1e-3
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert learning_rate(99, peak=2.0, steps=100, decay="constant") == 2.0

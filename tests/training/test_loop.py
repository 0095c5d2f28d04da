"""What a run leaves behind, and how it refuses nonsense."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from mmf_deploy.training.ema import EMA
from mmf_deploy.training.learner import Learner
from mmf_deploy.training.loop import Trainer
from mmf_deploy.training.order import batch_indices, derive
from mmf_deploy.training.processes import OneProcess
from mmf_deploy.training.read_recipe import load_config
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
    return out, Trainer(load_config("digits", SMALL), out, threads=1).run()


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
                                    "loop.checkpoint_every=150", "loop.sample_every=0",
                                    "objective.weighting.power=0", "objective.lam=0"])  # fmt: skip
    Trainer(config, tmp_path / "run", threads=1).run()
    log = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    losses = [json.loads(line)["squared_error"] for line in log]
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:2])


def test_a_run_that_is_not_finite_stops_and_every_checkpoint_it_leaves_is_good(tmp_path):
    config = load_config("digits", [*SMALL, "optimizer.lr=1e18", "optimizer.warmup_steps=0"])
    with pytest.raises(TrainingError, match=r"not finite at step .*lower optimizer.lr"):
        Trainer(config, tmp_path / "run", threads=1).run()
    left = checkpoint.find_all(tmp_path / "run")
    assert left
    for path in left:
        for name in ("model", "ema-0.995"):
            assert all(np.isfinite(v).all() for v in checkpoint.read(path).tensors(name).values())


def test_checkpoints_to_look_back_on_are_kept_beside_the_newest(tmp_path):
    config = load_config("digits", [*SMALL, "loop.steps=10", "loop.checkpoint_every=2",
                                    "loop.keep=1", "loop.keep_every=4"])  # fmt: skip
    Trainer(config, tmp_path / "run", threads=1).run()
    kept = [checkpoint.step_of(path) for path in checkpoint.find_all(tmp_path / "run")]
    assert kept == [4, 8, 10]


def test_a_run_of_no_steps_writes_the_initial_network(tmp_path):
    config = load_config("digits", [*SMALL, "loop.steps=0", "loop.ema=[]"])
    result = Trainer(config, tmp_path / "run", threads=1).run()
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


@pytest.mark.parametrize("supervise", ["endpoints", "trajectory"])
@pytest.mark.parametrize("recipe", ["ode", "control"])
def test_low_dimensional_tasks_train_and_sample(tmp_path, recipe, supervise):
    sets = ["loop.steps=20", "loop.batch_size=32", "loop.tensorboard=false",
            f"data.supervise={supervise}", "data.size=256"]  # fmt: skip
    result = Trainer(load_config(recipe, sets), tmp_path / "run", threads=1).run()
    found = checkpoint.read(result.checkpoint)
    assert found.spec.shape == (2,)
    x1 = torch.randn(4, 2)
    assert torch.isfinite(network_from(found)(x1, torch.zeros(4), torch.ones(4))).all()


def test_the_ends_that_the_data_couples_reach_the_loss(tmp_path):
    config = load_config("ode", ["data.supervise=trajectory", "data.size=64", "loop.batch_size=16"])
    source = config.load_data()
    learner = Learner(config, source, OneProcess("cpu"))
    inputs = learner.inputs(3, learner.draw(3))
    indices = batch_indices(config.seed, 3, 16, len(source))
    batch = source.batch(indices)
    assert torch.equal(inputs.x1, batch.x1)
    assert torch.equal(inputs.states, batch.states)
    assert torch.equal(inputs.states[:, 0], inputs.x0)


def test_a_guided_recipe_trains_the_null_label_and_a_slider(tmp_path):
    sets = [*SMALL, "objective.guidance.mode=input", "objective.guidance.max=3", "loop.steps=4"]
    config = load_config("digits", sets)
    result = Trainer(config, tmp_path / "run", threads=1).run()
    found = checkpoint.read(result.checkpoint)
    assert found.spec.guidance == (1.0, 3.0)
    learner = Learner(config, config.load_data(), OneProcess("cpu"))
    inputs = learner.inputs(0, learner.draw(0))
    label, omega = inputs.condition["label"], inputs.condition["guidance"]
    assert (omega[label == 10] == 1).all()
    assert (omega[label < 10] > 1).any()


def test_augmented_images_come_with_their_labels(tmp_path):
    sets = [*SMALL, "augment={probability: 1.0}", "network.augment_dim=6", "loop.steps=2"]
    config = load_config("digits", sets)
    assert Trainer(config, tmp_path / "run", threads=1).run().finished
    learner = Learner(config, config.load_data(), OneProcess("cpu"))
    inputs = learner.inputs(0, learner.draw(0))
    plain = config.load_data().batch(batch_indices(config.seed, 0, 16, 1797)).x0
    assert inputs.condition["augment"].shape == (16, 6)
    assert inputs.condition["augment"].abs().sum(1).min() > 0
    assert not torch.equal(inputs.x0, plain)


def test_images_that_do_not_fit_into_memory_train_the_same_weights(tmp_path):
    from mmf_deploy.training.data.lazy_images import LazyImages

    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for k in range(40):
        pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{k:02d}.png")
    sets = [*SMALL, f"data={{source: folder, path: {images}, size: 8}}",
            "objective.guidance={mode: off}"]  # fmt: skip
    weights = []
    for more in ([], ["data.resident_mb=0"]):
        config = load_config("digits", [*sets, *more])
        assert isinstance(config.load_data(), LazyImages) == bool(more)
        result = Trainer(config, tmp_path / "runs" / str(len(more)), threads=1).run()
        weights.append(checkpoint.read(result.checkpoint).tensors("model"))
    assert all(np.array_equal(weights[0][k], weights[1][k]) for k in weights[0])

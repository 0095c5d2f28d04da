"""Losses that are not finite, full disks, fine-tuning: what a run does when left alone."""

import json
import math
import resource
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from mmf_deploy.training.config import TrainConfig
from mmf_deploy.training.data.base import Batch
from mmf_deploy.training.learner import Learner
from mmf_deploy.training.loop import Trainer
from mmf_deploy.training.processes import OneProcess
from mmf_deploy.training.read_recipe import load_config
from mmf_deploy.training.recovery import Recovery, RecoveryConfig
from mmf_deploy.training.training_step import TrainingStep

from mmf_deploy import checkpoint
from mmf_deploy.errors import CheckpointError, ConfigError, TrainingError

SMALL = [
    "loop.steps=30", "loop.batch_size=8", "loop.checkpoint_every=5", "loop.sample_every=0",
    "loop.keep=10", "network.model_channels=8", "network.channel_mult=[1]", "evaluate=null",
    "loop.tensorboard=false", "loop.recovery.max_skipped=3",
    "objective.derivative=finite_difference",
]  # fmt: skip


class Poisoned:
    """A source whose n-th batch is not a number, for n in ``bad``, and does ``then[n]`` first."""

    def __init__(self, source, bad, then):
        self._source, self._bad, self._then, self.calls = source, bad, then, 0
        self.spec, self.notes = source.spec, source.notes

    def __len__(self):
        return len(self._source)

    def prefetch(self, indices):
        pass

    def batch(self, indices):
        self._then.get(self.calls, lambda: None)()
        batch = self._source.batch(indices)
        if self.calls in self._bad:
            batch = Batch(batch.x0 * math.nan, batch.label)
        self.calls += 1
        return batch


@pytest.fixture
def poison(monkeypatch):
    load = TrainConfig.load_data

    def with_bad_batches(bad, then=None):
        def poisoned(self):
            return Poisoned(load(self), bad, then or {})

        monkeypatch.setattr(TrainConfig, "load_data", poisoned)

    return with_bad_batches


def train(out, *overrides):
    return Trainer(load_config("digits", [*SMALL, *overrides]), out, threads=1).run()


def log(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def recovery(out):
    return checkpoint.read(out).meta["recovery"]


def all_finite(out):
    return all(
        np.isfinite(v).all()
        for path in checkpoint.find_all(out)
        for name in ("model", "ema-0.995", "optimizer")
        for v in checkpoint.read(path).tensors(name).values()
    )


def test_a_step_that_is_not_finite_is_skipped_and_counted(tmp_path, poison):
    poison({7, 12, 13})
    result = train(tmp_path)
    assert result.finished
    assert [line["skipped"] for line in log(tmp_path)] == [1, 3, 3]
    assert recovery(tmp_path)["skipped"] == 3
    assert recovery(tmp_path)["rollbacks"] == 0
    assert all_finite(tmp_path)


def test_a_skipped_step_changes_nothing_that_is_saved(tmp_path, poison):
    poison({9})  # the last of ten steps, after which the run saves in any case
    train(tmp_path, "loop.steps=10", "loop.checkpoint_every=9", "optimizer.decay=constant")
    before, after = (
        checkpoint.read(checkpoint.step_path(tmp_path / "checkpoints", step)) for step in (9, 10)
    )
    for name in ("model", "ema-0.995", "optimizer"):
        expected, found = before.tensors(name), after.tensors(name)
        assert all(np.array_equal(found[k], expected[k]) for k in expected)


def test_a_checkpoint_that_is_due_in_a_bad_row_comes_after_it(tmp_path, poison):
    poison({4, 5})
    train(tmp_path, "loop.steps=12")
    names = [p.name for p in checkpoint.find_all(tmp_path)]
    assert names == ["step-00000000", "step-00000007", "step-00000010", "step-00000012"]


def test_a_gradient_whose_square_overflows_is_not_taken(tmp_path):
    config = load_config("digits", SMALL)
    learner = Learner(config, config.load_data(), OneProcess("cpu"))
    learner.assemble(None)
    found = learner.gradients(0, 0)
    assert found.finite
    assert not replace(found, norm=1e20).finite
    assert not replace(found, norm=math.nan).finite
    # and where it was taken all the same, nothing of it counts as good
    learner.update(0, 1.0)
    assert learner.finite()
    next(iter(learner.optimizer.state.values()))["exp_avg_sq"].fill_(math.inf)
    assert not learner.finite()


def test_the_log_is_valid_json_even_where_a_step_is_not_a_number(tmp_path, poison):
    poison({9})
    train(tmp_path, "loop.steps=10", "loop.tensorboard=true")

    def refuse(word):
        raise ValueError(word)

    line = json.loads((tmp_path / "log.jsonl").read_text(), parse_constant=refuse)
    assert line["loss"] is None
    assert line["skipped"] == 1


def test_a_row_of_bad_steps_sends_the_run_back_with_a_lower_rate(tmp_path, poison, capsys):
    poison({12, 13, 14})
    result = train(tmp_path)
    assert result.finished
    assert "back to step 10, learning rate × 0.5" in capsys.readouterr().out
    assert recovery(tmp_path)["rollbacks"] == 1
    assert recovery(tmp_path)["lr_scale"] == 0.5
    assert [line["step"] for line in log(tmp_path)] == [10, 20, 30]
    assert log(tmp_path)[1]["lr"] < 0.6 * log(tmp_path)[0]["lr"] * 2
    assert all_finite(tmp_path)


def test_a_run_that_stays_bad_stops_with_a_diagnosis_and_a_good_checkpoint(tmp_path, poison):
    poison(range(17, 10_000))
    with pytest.raises(TrainingError) as caught:
        train(tmp_path)
    message = str(caught.value)
    assert "not finite at step 17" in message
    assert "going back 3 times to step 15" in message
    assert "0.125 × 0.003" in message
    assert "lower optimizer.lr" in message
    assert "clip_norm" in message
    assert str(checkpoint.find_all(tmp_path)[-1]) in message
    assert checkpoint.read(tmp_path).step == 15
    assert all_finite(tmp_path)


def test_progress_between_two_returns_starts_the_count_again(tmp_path, poison):
    rows = (7, 8, 9), (22, 23, 24), (35, 36, 37), (48, 49, 50)
    poison({k for row in rows for k in row})
    assert train(tmp_path, "loop.recovery.max_rollbacks=1", "loop.steps=40").finished
    assert recovery(tmp_path)["rollbacks"] == 4


def test_weights_that_overflowed_are_never_saved(tmp_path):
    with pytest.raises(TrainingError, match=r"lower optimizer\.lr"):
        train(tmp_path, "optimizer.lr=1e30", "optimizer.warmup_steps=0",
              "loop.recovery.max_rollbacks=1")  # fmt: skip
    assert all_finite(tmp_path)


def test_a_diagnosis_names_an_objective_that_is_known_to_fail(tmp_path, poison):
    poison(range(3, 10_000))
    with pytest.raises(TrainingError, match=r"rewards a map that shrinks"):
        train(tmp_path, "objective.name=meanflow-full")


@pytest.fixture
def files_up_to():
    """Limits the size of a file, which stands for the room on a disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [20_000, 1000, 0])
def test_a_full_disk_ends_the_run_with_what_was_saved_whole(
    tmp_path, poison, monkeypatch, files_up_to, room
):
    train(tmp_path / "roomy", "loop.steps=20")
    poison({}, {7: lambda: files_up_to(room)})
    with pytest.raises(TrainingError, match=r"cannot write .*make room, and the same command"):
        train(tmp_path / "run", "loop.steps=20")
    files_up_to(resource.RLIM_INFINITY)
    left = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert left == ["step-00000000", "step-00000005"]
    monkeypatch.undo()
    assert train(tmp_path / "run", "loop.steps=20").step == 20
    found, expected = (checkpoint.read(tmp_path / k).tensors("model") for k in ("run", "roomy"))
    assert all(np.array_equal(found[k], expected[k]) for k in expected)
    assert [line["step"] for line in log(tmp_path / "run")] == [10, 20]


def test_a_gradient_is_clipped_and_its_true_norm_is_logged(tmp_path):
    train(tmp_path / "a", "optimizer.clip_norm=1e-6", "loop.steps=10")
    train(tmp_path / "b", "loop.steps=10")
    assert log(tmp_path / "a")[0]["gradient_norm"] > 0.01
    first, second = (checkpoint.read(tmp_path / k).tensors("optimizer") for k in "ab")
    assert max(np.abs(v).max() for k, v in first.items() if k.endswith("exp_avg")) < 1e-6
    assert max(np.abs(v).max() for k, v in second.items() if k.endswith("exp_avg")) > 1e-4


def test_the_loss_of_each_quarter_of_time_is_logged(tmp_path):
    train(tmp_path, "loop.steps=10", "loop.batch_size=64")
    line = log(tmp_path)[0]
    bins = line["by_time"]
    assert set(bins) == {"t 0.00-0.25", "t 0.25-0.50", "t 0.50-0.75", "t 0.75-1.00"}
    assert min(bins.values()) <= line["squared_error"] <= max(bins.values())


def test_tensorboard_gets_scalars_and_grids(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tmp_path, "loop.tensorboard=true", "loop.sample_every=10", "loop.steps=20")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    scalars = set(events.Tags()["scalars"])
    assert {"loss", "squared_error", "lam", "gradient_norm", "lr"} <= scalars
    assert any(name.startswith("squared_error/t ") for name in scalars)
    assert [e.step for e in events.Scalars("loss")] == [10, 20]
    assert [e.value for e in events.Scalars("loss")] == pytest.approx(
        [line["loss"] for line in log(tmp_path)]
    )
    assert [e.step for e in events.Images("samples")] == [10, 20]


def test_without_tensorboard_a_run_goes_on_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert train(tmp_path, "loop.tensorboard=true", "loop.steps=10").finished
    assert "tensorboard is not installed" in capsys.readouterr().out
    assert len(log(tmp_path)) == 1
    assert not (tmp_path / "tensorboard").exists()


# --- fine-tuning ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    out = tmp_path_factory.mktemp("pretrained") / "flow"
    train(out, "objective.name=flow-matching", "loop.steps=5")
    return out


def first_weights(out):
    return checkpoint.read(checkpoint.find_all(out)[0]).tensors("model")


def test_a_run_starts_with_the_average_of_another(tmp_path, pretrained):
    train(tmp_path, f"init_from={pretrained}", "loop.steps=1")
    expected = checkpoint.read(pretrained).tensors()
    found = first_weights(tmp_path)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[k], expected[k]) for k in found)


def test_a_fine_tuned_run_goes_on_when_its_source_is_gone(tmp_path, pretrained, capsys):
    source = tmp_path / "source"
    shutil.copytree(pretrained, source)
    train(tmp_path / "run", f"init_from={source}", "loop.steps=6")
    shutil.rmtree(source)
    newest = checkpoint.find_all(tmp_path / "run")[-1]
    shutil.rmtree(newest)
    capsys.readouterr()
    for again in (f"init_from={source}", "init_from=null"):
        assert train(tmp_path / "run", again, "loop.steps=6").step == 6
    assert "weights of" not in capsys.readouterr().out


def test_a_fine_tuned_run_needs_its_source_to_begin(tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint or run"):
        train(tmp_path / "run", f"init_from={tmp_path / 'nothing'}")
    assert not (tmp_path / "run").exists()


def test_the_rate_rises_again_after_a_calm_time():
    config, state = RecoveryConfig(), Recovery()
    state.roll_back(100, config)
    state.roll_back(200, config)
    assert state.lr_scale == 0.25
    for _ in range(10):
        state.saved(config)
    assert state.lr_scale == 0.5
    for _ in range(30):
        state.saved(config)
    assert state.lr_scale == 1.0


def test_how_often_a_run_may_go_back_is_counted_exactly():
    assert not Recovery().may_roll_back(0, RecoveryConfig(max_rollbacks=0))
    state, config = Recovery(), RecoveryConfig(max_rollbacks=2)
    for _ in range(2):
        assert state.may_roll_back(50, config)
        state.roll_back(50, config)
    assert not state.may_roll_back(50, config)
    assert state.may_roll_back(60, config)
    state.lr_scale = 1 / 64
    assert not state.may_roll_back(60, config)


def test_a_device_without_memory_is_a_sentence(tmp_path, monkeypatch):
    def too_large(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(TrainingStep, "forward", too_large)
    with pytest.raises(TrainingError, match=r"no memory left .*--set loop\.accumulate=2"):
        train(tmp_path)


def test_fresh_deletes_what_a_run_wrote_and_nothing_else(tmp_path):
    train(tmp_path, "loop.steps=5", "loop.sample_every=5")
    foreign = [tmp_path / "checkpoints" / "resnet.pt", tmp_path / "samples" / "mine.txt",
               tmp_path / "notes.md"]  # fmt: skip
    for path in foreign:
        path.write_text("keep me")
    config = load_config("digits", [*SMALL, "loop.steps=2", "seed=1"])
    Trainer(config, tmp_path, threads=1).run(fresh=True)
    assert all(path.read_text() == "keep me" for path in foreign)
    assert [p.name for p in checkpoint.find_all(tmp_path)] == ["step-00000000", "step-00000002"]
    assert not list((tmp_path / "samples").glob("*.png"))


def test_inputs_that_are_new_start_at_zero(tmp_path, pretrained, capsys):
    train(tmp_path, f"init_from={pretrained}", "loop.steps=1", "objective.guidance.mode=input")
    found = first_weights(tmp_path)
    assert not found["map_guidance.weight"].any()
    assert found["map_label.weight"].any()
    assert "new and zero: map_guidance.weight" in capsys.readouterr().out


def test_another_network_is_refused_before_anything_is_written(tmp_path, pretrained):
    with pytest.raises(CheckpointError, match=r"is \[[\d, ]+\] there and \[[\d, ]+\] here; set"):
        train(tmp_path / "run", f"init_from={pretrained}", "network.model_channels=16")
    assert not (tmp_path / "run").exists()


def test_guidance_without_classes_is_refused():
    config = load_config(
        "digits",
        [
            "data={source: noise, shape: [1, 8, 8]}",
            "evaluate=null",
            "objective.guidance.mode=fixed",
        ],
    )
    with pytest.raises(ConfigError, match="needs classes"):
        config.fit(config.load_data().spec)

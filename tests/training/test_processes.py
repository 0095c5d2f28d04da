"""Two processes over gloo: the gradients of one, one writer, and an end for all when one dies."""

import json
import signal
import socket
import time

import pytest
import torch
from mmf_deploy.training.learner import Learner
from mmf_deploy.training.processes import OneProcess, open_processes, peers_may_vanish
from mmf_deploy.training.read_recipe import load_config

from mmf_deploy import checkpoint
from mmf_deploy.errors import ConfigError, TrainingError

SMALL = [
    "loop.batch_size=16", "network.model_channels=8", "evaluate=null", "objective.lam=0.5",
    "objective.derivative=jvp", "objective.guidance.mode=input",
]  # fmt: skip

GRADIENTS = """
import sys, torch
from mmf_deploy.training.read_recipe import load_config
from mmf_deploy.training.learner import Learner
from mmf_deploy.training.processes import open_processes

torch.set_num_threads(1)
config = load_config("digits", sys.argv[2:])
processes = open_processes("cpu")
learner = Learner(config, config.load_data(), processes)
learner.assemble(None)
found = learner.gradients(1, 0)
flat = torch.cat([p.grad.flatten() for p in learner.parameters])
torch.save({"gradient": flat, "norm": found.norm, "own": len(found.t)},
           f"{sys.argv[1]}/{processes.rank}.pt")
processes.wait()
"""


@pytest.fixture
def start_pair(start):
    """``start_pair(*command)``: two processes as a launcher would start them."""

    def begin(*command):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                  "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}  # fmt: skip
        return [
            start(*command, environment={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(2)
        ]

    return begin


def finish(pair):
    return [process.end() for process in pair]


def gradient_of_one_process(*overrides):
    config = load_config("digits", [*SMALL, *overrides])
    learner = Learner(config, config.load_data(), OneProcess("cpu"))
    learner.assemble(None)
    norm = learner.gradients(1, 0).norm
    return torch.cat([p.grad.flatten() for p in learner.parameters]), norm


def test_two_processes_have_the_gradient_of_one_on_the_whole_batch(tmp_path, start_pair):
    ended = finish(start_pair("-c", GRADIENTS, tmp_path, *SMALL))
    assert [done.returncode for done in ended] == [0, 0], ended
    first, second = (torch.load(tmp_path / f"{k}.pt", weights_only=True) for k in range(2))
    expected, norm = gradient_of_one_process()
    assert first["own"] == second["own"] == 8
    assert torch.equal(first["gradient"], second["gradient"])
    torch.testing.assert_close(first["gradient"], expected, rtol=1e-4, atol=1e-6)
    assert first["norm"] == pytest.approx(norm, rel=1e-5)


def test_an_accumulated_batch_has_the_gradient_of_the_whole_one():
    whole, _ = gradient_of_one_process()
    parts, _ = gradient_of_one_process("loop.accumulate=4")
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


def test_a_batch_that_does_not_divide_is_refused():
    config = load_config("digits", ["loop.batch_size=10", "loop.accumulate=4"])
    with pytest.raises(ConfigError, match="10 does not divide into 8 equal parts"):
        config.check_parts(2)


def lines(out):
    try:
        return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    except (OSError, ValueError):
        return []


def test_one_process_writes_and_the_death_of_another_ends_both_with_a_message(tmp_path, start_pair):
    out = tmp_path / "run"
    command = ["-m", "mmf_deploy.cli", "train", "digits", "--device", "cpu", "--out", out,
               *(part for s in SMALL for part in ("--set", s)), "--set", "loop.steps=100000",
               "--set", "objective.derivative=finite_difference",
               "--set", "loop.checkpoint_every=10", "--set", "loop.keep=2"]  # fmt: skip
    pair = start_pair(*command)
    began = time.monotonic()
    while len(lines(out)) < 3:
        assert time.monotonic() - began < 90
        assert all(p.poll() is None for p in pair), finish(pair)
        time.sleep(0.05)
    pair[1].send_signal(signal.SIGKILL)
    first, second = finish(pair)
    assert first.returncode == 1
    assert "another process of this run ended" in first.stderr
    assert "Traceback" not in first.stderr
    assert first.stdout.count("training digits") == 1
    assert second.stdout == ""
    steps = [line["step"] for line in lines(out)]
    assert steps == [10 * (k + 1) for k in range(len(steps))]  # written once each
    kept = [p.name for p in checkpoint.find_all(out)]
    assert len(kept) == 2
    assert checkpoint.read(out).meta["setting"]["processes"] == 2
    assert not [p.name for p in (out / "checkpoints").iterdir() if p.name.startswith(".")]


BACK = """
import sys, torch
from pathlib import Path
from mmf_deploy.training.config import TrainConfig
from mmf_deploy.training.data.base import Batch
from mmf_deploy.training.loop import Trainer
from mmf_deploy.training.read_recipe import load_config

load, calls = TrainConfig.load_data, []

class Poisoned:
    def __init__(self, source):
        self.source, self.spec, self.notes = source, source.spec, source.notes
    def __len__(self):
        return len(self.source)
    def prefetch(self, indices):
        pass
    def batch(self, indices):
        calls.append(1)
        batch = self.source.batch(indices)
        # one process alone sees what is not a number; both have to go back
        bad = RANK == 1 and len(calls) in (8, 9)
        return Batch(batch.x0 * float("nan"), batch.label) if bad else batch

from mmf_deploy.training.processes import launched_rank
RANK = launched_rank()
TrainConfig.load_data = lambda self: Poisoned(load(self))
print(Trainer(load_config("digits", sys.argv[2:]), Path(sys.argv[1]), threads=1).run().step)
"""


def test_what_one_process_sees_sends_both_back_and_both_finish(tmp_path, start_pair):
    out = tmp_path / "run"
    sets = [*SMALL, "loop.steps=12", "loop.checkpoint_every=5", "loop.recovery.max_skipped=2",
            "loop.sample_every=0"]  # fmt: skip
    ended = finish(start_pair("-c", BACK, out, *sets))
    assert [done.returncode for done in ended] == [0, 0], ended
    assert [done.stdout.splitlines()[-1] for done in ended] == ["12", "12"]
    assert "back to step 5, learning rate × 0.5" in ended[0].stdout
    found = checkpoint.read(out)
    assert found.step == 12
    assert found.meta["recovery"]["rollbacks"] == 1


def test_alone_there_is_nobody_to_lose():
    alone = open_processes("cpu")
    assert (alone.rank, alone.count) == (0, 1)
    with pytest.raises(RuntimeError, match="gloo"), peers_may_vanish(alone):
        raise RuntimeError("gloo in the text of an ordinary error")

    class Two(OneProcess):
        count = 2

    with pytest.raises(TrainingError, match="another process"), peers_may_vanish(Two("cpu")):
        raise RuntimeError("Connection closed by peer [127.0.0.1]")

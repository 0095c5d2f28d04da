"""Kill -9 at any moment, then the same command: the same weights as without the kill."""

import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from mmf_deploy import checkpoint

STEPS = 40
COMMAND = [
    "-m", "mmf_deploy.cli", "train", "digits", "--threads", "1",
    "--set", f"loop.steps={STEPS}", "--set", "loop.batch_size=16", "--set", "evaluate=null",
    "--set", "loop.checkpoint_every=3", "--set", "loop.keep=2", "--set", "loop.sample_every=20",
    "--set", "network.model_channels=8", "--set", "objective.warmup_steps=20",
]  # fmt: skip


@pytest.fixture
def train(start):
    """``train(out, *more)``: the command to its end."""
    return lambda out, *more: start(*COMMAND, "--out", out, *more).end()


def fingerprint(run):
    found = checkpoint.read(run)
    assert found.step == STEPS
    digest = hashlib.sha256()
    for name in ("model", "ema-0.995", "optimizer"):
        for key, value in sorted(found.tensors(name).items()):
            digest.update(key.encode() + value.tobytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    # as a user starts it; the other runs fork from a process that has imported all this
    out = tmp_path_factory.mktemp("whole") / "run"
    done = subprocess.run(
        [sys.executable, *COMMAND, "--out", str(out)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return out, fingerprint(out)


def newest_step(out):
    found = checkpoint.find_all(out)
    return int(found[-1].name.removeprefix("step-")) if found else -1


@pytest.mark.parametrize("least", [0, 12, 24])
def test_a_run_killed_at_a_random_moment_ends_with_the_same_weights(
    tmp_path, start, train, uninterrupted, least
):
    out = tmp_path / "run"
    process = start(*COMMAND, "--out", out)
    began = time.monotonic()
    while newest_step(out) < least:
        assert time.monotonic() - began < 60
        time.sleep(0.001)
    # really random, so that over time every moment is tried, also within the writing of a
    # checkpoint: the assertions below must hold for each
    time.sleep(random.uniform(0.0, 0.05))
    process.send_signal(signal.SIGKILL)
    assert process.end().returncode == -signal.SIGKILL
    assert least <= newest_step(out) < STEPS
    again = train(out)
    assert again.returncode == 0, again.stderr
    assert fingerprint(out) == uninterrupted[1]
    steps = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert not [p.name for p in (out / "checkpoints").iterdir() if p.name.startswith(".")]


def test_a_run_stopped_by_sigterm_saves_and_resumes(tmp_path, start, train, uninterrupted):
    out = tmp_path / "run"
    process = start(*COMMAND, "--out", out, "--set", "loop.checkpoint_every=100000")
    while not (out / "log.jsonl").exists() and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    done = process.end()
    assert done.returncode == 130, done.stderr
    assert "the same command resumes it" in done.stdout
    assert 0 < checkpoint.read(out).step < STEPS
    assert train(out).returncode == 0
    assert fingerprint(out) == uninterrupted[1]


def test_a_finished_run_is_left_as_it_is(train, uninterrupted):
    out, expected = uninterrupted
    done = train(out)
    assert done.returncode == 0
    assert fingerprint(out) == expected


def test_another_configuration_in_the_same_directory_is_refused(train, uninterrupted):
    out, expected = uninterrupted
    done = train(out, "--set", "optimizer.lr=0.5")
    assert done.returncode == 2
    assert "optimizer.lr" in done.stderr
    assert "→ 0.5" in done.stderr
    assert "--fresh" in done.stderr
    assert fingerprint(out) == expected


def damage(directory):
    weights = directory / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)


def test_a_corrupt_newest_checkpoint_is_moved_aside_and_the_one_before_is_taken(
    tmp_path, train, uninterrupted
):
    out, expected = uninterrupted
    copy = tmp_path / "run"
    shutil.copytree(out, copy)
    damage(checkpoint.find_all(copy)[-1])
    done = train(copy)
    assert done.returncode == 0, done.stderr
    assert "corrupt" in done.stdout
    assert "moved aside, going back to step 39" in done.stdout
    assert fingerprint(copy) == expected
    assert (copy / "checkpoints" / f"corrupt-step-{STEPS:08d}").is_dir()


def test_a_run_without_any_whole_checkpoint_is_not_silently_started_over(
    tmp_path, train, uninterrupted
):
    copy = tmp_path / "run"
    shutil.copytree(uninterrupted[0], copy)
    for directory in checkpoint.find_all(copy):
        damage(directory)
    before = sorted(p.name for p in (copy / "checkpoints").iterdir())
    done = train(copy)
    assert done.returncode == 1
    assert "no older one is whole" in done.stderr
    assert sorted(p.name for p in (copy / "checkpoints").iterdir()) == before


def test_another_number_of_threads_is_said_aloud(tmp_path, train, uninterrupted):
    copy = tmp_path / "run"
    shutil.copytree(uninterrupted[0], copy)
    done = train(copy, "--threads", "2")
    assert done.returncode == 0, done.stderr
    assert "threads was 1, is 2" in done.stdout


def test_a_bad_recipe_deletes_and_writes_nothing(tmp_path, train, uninterrupted):
    copy = tmp_path / "run"
    shutil.copytree(uninterrupted[0], copy)
    done = train(copy, "--fresh", "--set", "data={source: nope}")
    assert done.returncode == 2
    assert fingerprint(copy) == uninterrupted[1]
    assert train(tmp_path / "new", "--set", "data={source: nope}").returncode == 2
    assert not (tmp_path / "new").exists()


def test_fresh_starts_over(tmp_path, train, uninterrupted):
    copy = tmp_path / "run"
    shutil.copytree(uninterrupted[0], copy)
    done = train(copy, "--fresh")
    assert done.returncode == 0, done.stderr
    assert fingerprint(copy) == uninterrupted[1]


def test_two_processes_cannot_train_one_run(tmp_path, train, uninterrupted):
    import fcntl

    copy = tmp_path / "run"
    shutil.copytree(uninterrupted[0], copy)
    with (copy / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = train(copy)
    assert done.returncode == 1
    assert "another process" in done.stderr

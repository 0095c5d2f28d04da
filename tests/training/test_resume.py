"""Kill -9 at any moment, then the same command: the same weights as without the kill."""

import hashlib
import json
import random
import signal
import subprocess
import sys
import time

import pytest

from mmf_deploy import checkpoint

STEPS = 40
COMMAND = [
    sys.executable, "-m", "mmf_deploy.cli", "train", "digits", "--threads", "1",
    "--set", f"loop.steps={STEPS}", "--set", "loop.batch_size=16", "--set", "evaluate=null",
    "--set", "loop.checkpoint_every=3", "--set", "loop.sample_every=20",
    "--set", "network.model_channels=8", "--set", "objective.warmup_steps=20",
]  # fmt: skip


def train(out, *more):
    return subprocess.run(
        [*COMMAND, "--out", str(out), *more], capture_output=True, text=True, timeout=120
    )


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
    out = tmp_path_factory.mktemp("whole") / "run"
    began = time.monotonic()
    done = train(out)
    assert done.returncode == 0, done.stderr
    return out, fingerprint(out), time.monotonic() - began


@pytest.mark.parametrize("moment", range(3))
def test_a_killed_run_ends_with_the_same_weights(tmp_path, uninterrupted, moment):
    _, expected, whole = uninterrupted
    out = tmp_path / "run"
    process = subprocess.Popen(
        [*COMMAND, "--out", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    began = time.monotonic()
    while not (out / "checkpoints" / "step-00000000").exists():
        assert time.monotonic() - began < 60
        time.sleep(0.01)
    # a moment between the first checkpoint and the end; really random, so that over time
    # every moment is tried: the assertion below must hold for each
    time.sleep(random.uniform(0.0, 0.6) * whole * 0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = train(out)
    assert again.returncode == 0, again.stderr
    assert fingerprint(out) == expected
    steps = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))


def test_a_run_stopped_by_sigterm_saves_and_resumes(tmp_path, uninterrupted):
    out = tmp_path / "run"
    command = [*COMMAND, "--out", str(out), "--set", "loop.checkpoint_every=100000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while not (out / "log.jsonl").exists() and process.poll() is None:
        time.sleep(0.01)
    process.terminate()
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command resumes it" in printed
    assert 0 < checkpoint.read(out).step < STEPS
    assert train(out).returncode == 0
    assert fingerprint(out) == uninterrupted[1]


def test_a_finished_run_is_left_as_it_is(uninterrupted):
    out, expected, _ = uninterrupted
    done = train(out)
    assert done.returncode == 0
    assert fingerprint(out) == expected


def test_another_configuration_in_the_same_directory_is_refused(uninterrupted):
    out, expected, _ = uninterrupted
    done = train(out, "--set", "optimizer.lr=0.5")
    assert done.returncode == 2
    assert "optimizer.lr" in done.stderr
    assert "→ 0.5" in done.stderr
    assert "--fresh" in done.stderr
    assert fingerprint(out) == expected


def test_a_corrupt_newest_checkpoint_falls_back_to_the_one_before(tmp_path, uninterrupted):
    import shutil

    out, expected, _ = uninterrupted
    copy = tmp_path / "run"
    shutil.copytree(out, copy)
    weights = checkpoint.find_all(copy)[-1] / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    done = train(copy)
    assert done.returncode == 0, done.stderr
    assert "corrupt" in done.stdout
    assert "going back" in done.stdout
    assert fingerprint(copy) == expected


def test_two_processes_cannot_train_one_run(tmp_path, uninterrupted):
    import fcntl
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(uninterrupted[0], copy)
    with (copy / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = train(copy)
    assert done.returncode == 1
    assert "another process" in done.stderr

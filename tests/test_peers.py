"""Our engines beside other tools: what the comparison computes, and how it talks to a peer.

Nothing is installed here: tools of a few lines stand in for the peers, behind the real protocol.
"""

import argparse
import importlib
import re
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from mmf_deploy import checkpoint
from mmf_deploy.errors import ConfigError, EngineError
from mmf_deploy.noise import gaussian_batch
from mmf_deploy.spec import SampleSpec

FOLDER = Path(__file__).parents[1] / "benchmarks" / "peers"
SPEC = SampleSpec(shape=(1, 4, 4), classes=3)


def load(*names):
    sys.path.insert(0, str(FOLDER))
    try:
        return [importlib.import_module(name) for name in names]
    finally:
        sys.path.pop(0)


comparison, contenders, environments, peer, peer_process, run = load(
    "comparison", "contenders", "environments", "peer", "peer_process", "run"
)
EAGER = comparison.EAGER


def contender(tool, precision, engine="", ours=False):
    return comparison.Contender(tool, "1.0", precision, engine, ours, 10**6, 0.5)


OURS = {
    EAGER: contender(EAGER, "fp32", "pytorch"),
    "ours fp32": contender("ours ort", "fp32", "onnxruntime", ours=True),
    "ours openvino-fp32": contender("ours ov", "fp32", "openvino", ours=True),
    "ours int8": contender("ours int8", "int8", "onnxruntime", ours=True),
}


def images(*shift):
    return np.linspace(-0.5, 0.5, 48, dtype=np.float32).reshape(1, 3, 4, 4) + np.float32(sum(shift))


def test_ratios_are_those_within_a_turn_so_that_drift_of_the_machine_cancels():
    drift = np.array([1.0, 3.0, 1.5, 8.0, 1.0])
    seconds = {EAGER: 0.4, "ours fp32": 0.1, "ours openvino-fp32": 0.08, "them": 0.15}
    turns = {name: [[s * d, s * d] for d in drift] for name, s in seconds.items()}
    who = {**OURS, "them": contender("them", "fp32", "onnxruntime")}
    samples = {name: images() for name in turns}
    found = {row.tool: row for row in comparison.rows(who, turns, samples, batch=2)}
    them = found["them"]
    assert them.rival == "ours ort"
    assert them.ours_faster == them.ours_faster_low == them.ours_faster_high == 1.5
    assert them.speedup == pytest.approx(0.4 / 0.15, abs=1e-3)
    assert found[EAGER].speedup == 1.0
    assert found[EAGER].rival is None
    assert found["ours ort"].rival is None
    assert them.median_ms == pytest.approx(150 * 1.5 / 2)
    assert them.p90_ms > them.median_ms
    assert (them.calls, them.turns, them.file_mb) == (10, 5, 1.0)


@pytest.mark.parametrize(
    ("precision", "engine", "expected"),
    [
        ("fp32", "onnxruntime", "ours fp32"),
        ("fp32", "", "ours openvino-fp32"),
        ("int8", "openvino", "ours int8"),
        ("bf16", "openvino", None),
    ],
)
def test_a_peer_meets_ours_of_its_precision_on_its_engine_or_else_the_fastest(
    precision, engine, expected
):
    middle = {"ours fp32": np.array([2.0]), "ours openvino-fp32": np.array([1.0]),
              "ours int8": np.array([0.5]), EAGER: np.array([0.1])}  # fmt: skip
    them = contender("them", precision, engine)
    assert comparison.rival_of(them, OURS, middle) == expected


def test_a_fast_wrong_answer_is_seen():
    assert comparison.difference(images(), images()) == (comparison.EQUAL_DB, 0)
    psnr, levels = comparison.difference(images(4 / 127.5), images())
    assert levels == 4
    assert psnr == pytest.approx(20 * np.log10(255 / 4), abs=0.01)
    table = comparison.table(
        comparison.rows(OURS, {EAGER: [[1.0]], "ours int8": [[0.1]]},
                        {EAGER: images(), "ours int8": images(1.0)}, 1),
        "title", ["left out: x: because"],
    )  # fmt: skip
    psnr, worst = (table.columns.index(name) for name in ("PSNR", "max Δ"))
    assert table.rows[0][psnr] == "equal"
    assert float(table.rows[1][psnr]) < 10
    assert int(table.rows[1][worst]) > 100
    assert table.notes[-1] == "left out: x: because"


class Steady:
    """Runs for as long as it is told to, and notes when."""

    def __init__(self, log, name, lasts=99):
        self.log, self.name, self.lasts = log, name, lasts

    def turn(self, batch, seconds):
        self.log.append(self.name)
        if self.log.count(self.name) > self.lasts:
            raise EngineError(f"{self.name} is out of breath")
        return [0.001 * batch]


def test_all_take_turns_in_changing_order_and_one_that_breaks_down_does_not_stop_the_others():
    log = []
    running = {name: Steady(log, name) for name in "abc"} | {"d": Steady(log, "d", lasts=2)}
    shares = []
    turns, broken = comparison.take_turns(running, 4, 1e-9, shares.append)
    assert broken == {"d": "d is out of breath"}
    assert {name: len(taken) for name, taken in turns.items()} == dict.fromkeys("abc", 5)
    assert turns["a"][0] == [0.004]
    assert len({tuple(log[4 * k : 4 * k + 4]) for k in range(3)}) > 1
    assert shares[-1] == 1.0


def test_peers_are_chosen_by_name_or_environment():
    assert contenders.chosen([]) == list(contenders.PEERS)
    some = contenders.chosen(["plain", "optimum"])
    assert {p.environment for p in some} == {"plain", "optimum"}
    assert len(some) > 2
    with pytest.raises(ConfigError, match=r"--only 'nncf-f23'.*nncf-f32"):
        contenders.chosen(["nncf-f23"])


def test_every_peer_has_a_worker_and_pinned_packages_of_its_own():
    for one in contenders.PEERS:
        (worker,) = load(one.script.removesuffix(".py"))
        pinned = environments.requirements(one.environment).read_text()
        assert {one.name, one.files or one.name} <= set(worker.TOOLS)
        own = worker.TOOLS[one.name].own
        assert one.package in (*own, "torch")
        for package in own:
            assert re.search(rf"^{package}==\S+$", pinned, re.MULTILINE), package
        assert "torch" not in re.findall(r"^([\w-]+)==", pinned, re.MULTILINE)


def test_an_environment_of_other_requirements_is_made_anew(tmp_path):
    stamp = tmp_path / "requirements.txt"
    assert not environments.is_ready(b"a==1\n", tmp_path)
    stamp.write_bytes(b"a==1\n")
    assert not environments.is_ready(b"a==1\n", tmp_path)  # of an environment that is not this one
    stamp.write_bytes(environments.stamp(b"a==1\n"))
    assert environments.is_ready(b"a==1\n", tmp_path)
    assert not environments.is_ready(b"a==2\n", tmp_path)


def test_the_command_is_what_was_typed_without_where_to_write():
    typed = ["--out", "x y", "--only", "plain,nncf", "--out=z", "--seconds", "9"]
    expected = "python benchmarks/peers/run.py --only plain,nncf --seconds 9"
    assert run.command(typed) == expected


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"threads": 0}, {"seconds": 0.0}])
def test_numbers_that_measure_nothing_are_refused(wrong):
    given = {"batch": 1, "threads": 1, "seconds": 1.0, **wrong}
    with pytest.raises(ConfigError, match=f"--{next(iter(wrong))}"):
        run.start(argparse.Namespace(**given))


WORKER = """
import os, sys
from pathlib import Path
import peer

class Tool:
    own = {own}

    def convert(self, given):
        print("libraries print what they like")
        print("again", file=open({log!r}, "a"))
        if {fails!r}:
            raise ValueError("this operator\\nis not known")
        noise = [arrays[0] for arrays in given.calibrating()]
        path = given.folder / "model"
        path.write_bytes(bytes(len(noise)))
        return [path]

    def open(self, given):
        print("and again")
        def velocity(arrays):
            x, r, t, label = arrays
            assert r.sum() == 0 and (t == 1).all()
            if {dies!r} and len(x) == 1:
                os._exit(7)
            return x / 2 - label.reshape(-1, 1, 1, 1)
        return velocity, "bf16"

peer.main({{"tool": Tool()}})
"""


@pytest.fixture
def task(tmp_path):
    path = checkpoint.write(tmp_path / "run", step=0, spec=SPEC, network={}, config={}, meta={},
                            weights={"model": {"w": np.zeros(1, np.float32)}})  # fmt: skip
    return peer_process.Task(path, "model", "digest", batch=2, threads=1, calibration=6)


@pytest.fixture
def worker(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(FOLDER))
    (tmp_path / "elsewhere.py").write_text("")

    def write(own=("numpy",), fails=False, dies=False):
        script = tmp_path / "worker.py"
        text = textwrap.dedent(WORKER)
        script.write_text(text.format(own=own, log=str(tmp_path / "log"), fails=fails, dies=dies))
        return contenders.Peer("tool", "a tool", "plain", str(script), "", "", "numpy")

    return write


def convert(one, task, tmp_path):
    return peer_process.convert(one, Path(sys.executable), task, tmp_path / "converted")


def test_a_peer_converts_once_then_runs_the_same_noise_and_labels(worker, task, tmp_path):
    one = worker()
    made = convert(one, task, tmp_path)
    assert convert(one, task, tmp_path) == made
    assert (tmp_path / "log").read_text() == "again\n"
    assert made.bytes == 3  # six samples in batches of two
    with peer_process.PeerProcess(one, Path(sys.executable), task, made) as process:
        assert process.precision == "bf16"
        assert process.versions == {"numpy": np.__version__}
        found = process.samples([0, 1, 2, 3])
        times = process.turn(2, 0.0)
    noise = gaussian_batch(range(4), SPEC.shape)
    label = np.array([0, 1, 2, 0], np.float32).reshape(4, 1, 1, 1)
    np.testing.assert_allclose(found, noise / 2 + label, rtol=0, atol=1e-6)
    assert len(times) == 1
    assert times[0] > 0
    assert process._process.poll() == 0


def test_what_a_tool_cannot_convert_is_told_in_its_own_words_and_not_tried_again(
    worker, task, tmp_path
):
    one = worker(fails=True)
    for _ in range(2):
        with pytest.raises(EngineError, match=r"^ValueError: this operator is not known$"):
            convert(one, task, tmp_path)
    assert (tmp_path / "log").read_text() == "again\n"


def test_a_package_that_is_not_the_peers_own_is_refused(worker, task, tmp_path):
    with pytest.raises(EngineError, match="elsewhere comes from another environment"):
        convert(worker(own=("elsewhere",)), task, tmp_path)


def test_a_peer_that_dies_says_how(worker, task, tmp_path):
    one = worker(dies=True)
    made = convert(one, task, tmp_path)
    with peer_process.PeerProcess(one, Path(sys.executable), task, made) as process:
        with pytest.raises(EngineError, match="exit code 7"):
            process.turn(1, 0.0)
        with pytest.raises(EngineError, match="exit code 7"):
            process.turn(1, 0.0)

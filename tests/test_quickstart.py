"""The quickstart as a whole, with a training that is far too short to be good."""

import json
import subprocess
import sys

import pytest

from mmf_deploy import bundle as bundles
from mmf_deploy.errors import MMFError
from mmf_deploy.quickstart_summary import check, fastest

GOOD = {"classifier_accuracy": 0.99, "class_accuracy": 0.985, "ratio": 1.9}


@pytest.mark.slow
def test_the_quickstart_goes_through_all_five_steps(tmp_path):
    out = tmp_path / "quick"
    done = subprocess.run(
        [sys.executable, "-m", "mmf_deploy.cli", "quickstart", "--out", str(out),
         "--set", "loop.steps=20"],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for step in range(1, 6):
        assert f"[{step}/5]" in done.stdout
    record = json.loads((out / "quickstart.json").read_text())
    assert record["command"] == "mmf quickstart --set loop.steps=20"
    assert record["levels"] <= 1
    assert {row["engine"] for row in record["latency"]} == {"pytorch", "onnxruntime"}
    assert (out / "samples.png").is_file()
    assert bundles.load(out / "digits").manifest.source.step == 20


def test_quality_within_the_targets_passes():
    check(GOOD)


@pytest.mark.parametrize(
    "worse", [{"class_accuracy": 0.97}, {"ratio": 2.1}, {"classifier_accuracy": 0.9}]
)
def test_quality_beyond_a_target_fails_the_quickstart(worse):
    with pytest.raises(MMFError, match="worse than they should be"):
        check(GOOD | worse)


def test_the_summary_shows_the_best_number_of_threads():
    rows = [
        {"engine": "a", "variant": "x", "batch": 1, "threads": t, "median_ms": ms}
        for t, ms in ((1, 2.0), (2, 1.0))
    ]
    assert [row["threads"] for row in fastest(rows)] == [2]

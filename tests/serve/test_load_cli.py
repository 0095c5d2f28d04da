"""`mmf bench-serve` as a person runs it."""

import json

import pytest
from mmf_deploy.serve.load.cli import app, verdict
from mmf_deploy.serve.load.report import Outcome, Run, level

from mmf_deploy import results
from mmf_deploy.errors import MMFError, ParityError, ServiceError

from .test_load_report import report, sent


def run(*args):
    app(list(args), prog_name="mmf bench-serve", standalone_mode=False)


def test_the_command_serves_a_bundle_and_writes_table_json_and_plot(tiny_bundle, tmp_path, capsys):
    out = tmp_path / "out"
    run(str(tiny_bundle), "--rate", "60,120", "--seconds", "0.3", "--pool", "16",
        "--deadline-ms", "2000", "--api-key", "secret", "--out", str(out))  # fmt: skip
    said = capsys.readouterr().out
    assert "0 wrong" in said
    assert "in time" in said
    found = json.loads((out / "load.json").read_text())
    assert found["command"] == (
        f"mmf bench-serve {tiny_bundle} --rate 60,120 --seconds 0.3 --deadline-ms 2000 --pool 16"
    )
    assert "secret" not in (out / "load.json").read_text()
    assert [f["offered_per_s"] for f in found["levels"]] == [60, 120]
    assert found["machine"]["cores"].isdecimal()
    assert found["versions"]["aiohttp"]
    assert said.rstrip().endswith(
        f"written: {out / 'load.json'}, {out / 'load.md'}, {out / 'load.png'}"
    )
    assert (out / "load.png").is_file()
    common = results.read(out / "load.json")
    assert common.kind == "load"
    assert [row[0] for row in common.tables[0].rows] == ["60.0 req/s", "120 req/s"]
    for line in common.tables[0].notes:
        assert f"{line}\n" in said


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["/nowhere"], "no bundle here"),
        (["http://127.0.0.1:9"], "no service there"),
        (["--concurrency", "0"], "expected whole numbers such as 1,4,16"),
        (["--rate", "fast"], "expected numbers such as 50,100, or auto"),
        (["--overload", "-1"], "expected more than 0"),
        (["--format", "pgn"], "did you mean 'png'?"),
        (["--seconds", "nan"], "--seconds nan: expected more than 0"),
        (["--server-options", "'"], '--server-options "\'": No closing quotation'),
        (["--check", "x"], "--check goes with the address"),
        (["http://127.0.0.1:9", "--threads", "1"], "--threads: for a server that is started here"),
    ],
)
def test_nonsense_is_one_line_and_a_failure(args, message):
    with pytest.raises(MMFError) as caught:
        run(*args)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_announced_refusals_are_fine_and_anything_else_is_an_error():
    def accounts(*outcomes):
        run = Run(1.0, 0.0, images=1, per_s=1)
        run.sent = [sent(k, 1, *o) for k, o in enumerate(outcomes)]
        run.tally.identical = 1
        return report([level(run)])

    verdict(accounts((Outcome.OK,), (Outcome.REFUSED, "503 overloaded")))
    lost = accounts((Outcome.OK,), (Outcome.FAILED, "503 without Retry-After"))
    with pytest.raises(ServiceError, match="1 × 503 without Retry-After"):
        verdict(lost)
    wrong = accounts((Outcome.OK,))
    wrong.levels[0].checked.wrong = 2
    with pytest.raises(ParityError, match="2 of 3 images are wrong"):
        verdict(wrong)
    with pytest.raises(ServiceError, match="exit code 1"):
        verdict(report([], problem="the server ended with exit code 1: it said nothing"))

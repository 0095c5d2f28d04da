"""The Dockerfile: what is in its targets, and how it is read without an engine."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

# of this environment, whether it is activated or not
BIN = Path(sys.executable).parent
ROOT = Path(__file__).parent.parent.parent


def load_reader():
    spec = importlib.util.spec_from_file_location("dockerfile", ROOT / "deploy" / "dockerfile.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["dockerfile"] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


reader = load_reader()
STAGES = reader.read(ROOT / "Dockerfile")


def steps(target):
    """The steps of the final image of a target: those of its bases first."""
    stage = STAGES.get(target)
    return [] if stage is None else [*steps(stage.base), *stage.steps]


def last(target, word):
    return [step for step in steps(target) if step.word == word][-1]


def test_a_dockerfile_is_read_into_stages(tmp_path):
    path = tmp_path / "Dockerfile"
    path.write_text(
        "ARG V=1\nFROM base:${V} AS a\n# a comment\nRUN x \\\n    # within\n    && y\n"
        'FROM base AS other\nFROM a AS b\nENV P=/opt:$P Q="two words"\n'
        'COPY --from=a --chown=1:1 /x /x\nCMD ["z", "1"]\n'
    )
    stages = reader.read(path)
    assert [(s.name, s.base) for s in stages.values()] == [
        ("a", "base:${V}"), ("other", "base"), ("b", "a"),
    ]  # fmt: skip
    assert [step.text for step in stages["a"].steps] == ["x  && y"]
    env, copy, cmd = stages["b"].steps
    assert reader.environment(env, {"P": "/bin"}) == {"P": "/opt:/bin", "Q": "two words"}
    assert (copy.flags, copy.words()) == ({"from": "a", "chown": "1:1"}, ["/x", "/x"])
    assert cmd.words() == ["z", "1"]
    assert [s.name for s in reader.needed(stages, "b")] == ["a", "b"]


def test_what_dockerignore_lets_through(tmp_path):
    for name in ("kept/a.py", "kept/__pycache__/a.pyc", "kept/deep/b.py", "left/c.py", "top.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / ".dockerignore").write_text("# only\n**\n!kept\n!top.txt\n**/__pycache__\n")
    found = {p.as_posix() for p in reader.context(tmp_path)}
    assert found == {"kept/a.py", "kept/deep/b.py", "top.txt"}


def test_hadolint_has_nothing_to_say():
    done = subprocess.run(
        [BIN / "hadolint", "--failure-threshold", "info", "--no-color", "Dockerfile"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_the_default_target_is_the_cpu_one():
    assert list(STAGES)[-1] == "cpu"
    assert "gpu" in STAGES


@pytest.mark.parametrize(("target", "extra"), [("cpu", "cpu"), ("gpu", "gpu")])
def test_a_target_installs_its_engine_without_torch(target, extra):
    (source,) = {s.flags["from"] for s in steps(target) if s.word == "COPY" and "from" in s.flags}
    (run,) = [s.text for s in STAGES[source].steps if s.word == "RUN"]
    extras = re.search(r"\[([a-z,]+)\]", run)[1].split(",")
    assert extras == ["serve", extra, "sign"]
    assert "-c constraints.txt" in run


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_an_image_runs_as_a_numbered_user_and_stops_by_sigterm(target):
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last(target, "USER").text)
    assert last(target, "STOPSIGNAL").text == "SIGTERM"
    assert last(target, "EXPOSE").text == "8000"
    assert last(target, "CMD").words() == ["mmf-serve", "/bundle"]
    assert "/readyz" in last(target, "HEALTHCHECK").text


def test_everything_that_is_copied_reaches_the_builder():
    names = {p.parts[0] for p in reader.context(ROOT)}
    for stage in STAGES.values():
        for step in stage.steps:
            if step.word == "COPY" and "from" not in step.flags:
                assert {Path(source).parts[0] for source in step.words()[:-1]} <= names
    assert not names & {".git", "runs", "tests", "docs", "bundles"}


@pytest.mark.slow
def test_the_cpu_image_holds_what_it_promises():
    done = subprocess.run([sys.executable, "deploy/check_image.py"], cwd=ROOT,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "wrote nothing outside /tmp" in done.stdout

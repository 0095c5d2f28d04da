"""The `mmf` command: quick, torch-free where it can be, and one readable line at every error."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module

import numpy as np
import pytest
import typer
from PIL import Image

from mmf_deploy import __version__, bundle, cli, images
from mmf_deploy.errors import ConfigError
from mmf_deploy.noise import gaussian_batch
from mmf_deploy.sample_cli import MAX_SEEDS, parse_seeds
from mmf_deploy.spec import SampleSpec


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def mmf(monkeypatch, capsys):
    """Runs `mmf` in this process, as its console script does."""

    def run(*args) -> Result:
        monkeypatch.setattr(sys, "argv", ["mmf", *map(str, args)])
        code = 0
        try:
            cli.main()
        except SystemExit as e:
            code = e.code or 0
        return Result(code, *capsys.readouterr())

    return run


def in_subprocess(*args, code="from mmf_deploy.cli import main; main()") -> Result:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, check=False
    )
    return Result(done.returncode, done.stdout, done.stderr)


def assert_one_line_error(result: Result, *parts: str, code: int = 1) -> None:
    assert result.code == code
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    for part in parts:
        assert part in result.err


def tiny_images(path, seeds, labels, tiny_formula) -> np.ndarray:
    spec = bundle.load(path).spec
    return images.to_uint8(tiny_formula(spec, gaussian_batch(seeds, spec.shape), labels))


def test_help_lists_every_command_with_its_line():
    result = in_subprocess("--help")
    assert (result.code, result.err) == (0, "")
    for name, (_, line) in cli.COMMANDS.items():
        assert name in result.out
        assert line in result.out


SHUN = """
import sys
for heavy in ("torch", "onnx", "onnxruntime", "fastapi", "matplotlib", "sklearn"):
    sys.modules[heavy] = None  # importing it raises
from mmf_deploy.cli import main
main()
"""


def test_help_imports_no_heavy_package():
    assert in_subprocess("--help", code=SHUN).code == 0


SHUN_TORCH = "import sys; sys.modules['torch'] = None; from mmf_deploy.cli import main; main()"


def test_bundle_is_inspected_and_sampled_without_torch(tiny_bundle, tmp_path):
    assert in_subprocess("inspect", tiny_bundle, code=SHUN_TORCH).code == 0
    out = tmp_path / "samples.png"
    args = ("sample", tiny_bundle, "--seeds", "0-3", "--out", out)
    result = in_subprocess(*args, code=SHUN_TORCH)
    assert (result.code, result.err) == (0, "")
    assert out.is_file()


def test_version_is_the_packages(mmf):
    assert mmf("--version") == Result(0, f"mmf-deploy {__version__}\n", "")


def test_no_command_shows_the_help(mmf):
    result = mmf()
    assert result.code == 2
    assert "quickstart" in result.out + result.err


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_an_app_and_its_own_help(name, mmf):
    assert isinstance(import_module(cli.COMMANDS[name][0]).app, typer.Typer)
    result = mmf(name, "--help")
    assert result.code == 0
    assert f"mmf {name}" in result.out


@pytest.mark.parametrize("args", [("smaple",), ("sample", "--sed", "3"), ("inspect", "a", "b")])
def test_misspelt_command_line_fails_with_code_two_and_no_traceback(args, mmf):
    result = mmf(*args)
    assert (result.code, result.out) == (2, "")
    assert "Usage: mmf" in result.err
    assert "Traceback" not in result.err


def test_misspelt_command_is_answered_with_the_nearest(mmf):
    assert "Did you mean 'sample'" in mmf("smaple").err


def test_error_is_one_line_and_debug_adds_the_traceback(mmf, tmp_path):
    missing = tmp_path / "missing"
    plain = mmf("inspect", missing)
    assert_one_line_error(plain, f"{missing}: no such checkpoint or run")
    for debug in (mmf("inspect", missing, "--debug"), mmf("--debug", "inspect", missing)):
        assert debug.code == 1
        assert "Traceback" in debug.err
        assert debug.err.endswith(plain.err)


def test_bundle_is_inspected_after_verifying_it(mmf, tiny_bundle):
    result = mmf("inspect", tiny_bundle)
    found = bundle.load(tiny_bundle)
    assert (result.code, result.err) == (0, "")
    for part in (found.digest, "1×8×8 image, 10 classes", "variant fp32", "every hash verified"):
        assert part in result.out


def test_run_is_inspected_through_its_newest_checkpoint(mmf, unet_run):
    result = mmf("inspect", unet_run)
    assert (result.code, result.err) == (0, "")
    for part in ("step-00000012", "1×8×8 image, 3 classes", "ema-0.99", "every hash verified"):
        assert part in result.out.replace("\n", "")


def test_corrupt_bundle_is_refused_with_both_hashes(mmf, make_tiny_bundle):
    path = make_tiny_bundle(SampleSpec(shape=(1, 8, 8)))
    expected = bundle.load(path).manifest.files["model.fp32.onnx"]
    with (path / "model.fp32.onnx").open("ab") as f:
        f.write(b"x")
    for command in ("inspect", "sample"):
        result = mmf(command, path)
        assert_one_line_error(result, "model.fp32.onnx: corrupt", expected, "found")


def test_samples_are_written_as_a_png_grid(mmf, tiny_bundle, tiny_formula, tmp_path):
    out = tmp_path / "new" / "samples.png"
    result = mmf("sample", tiny_bundle, "--seeds", "3,0-2", "--out", out)
    assert (result.code, result.err) == (0, "")
    assert f"4 samples from {tiny_bundle}: {out}" in result.out
    shown = np.asarray(Image.open(out))[:, :, None]
    expected = tiny_images(tiny_bundle, [3, 0, 1, 2], np.array([3, 0, 1, 2]), tiny_formula)
    grid = images.grid(expected, scale=8)
    assert shown.shape == grid.shape
    assert np.abs(shown.astype(int) - grid).max() <= 1


def test_samples_of_one_class_are_written_as_an_array(mmf, tiny_bundle, tiny_formula, tmp_path):
    out = tmp_path / "samples.npy"
    assert mmf("sample", tiny_bundle, "--seeds", "5-9", "--label", "7", "--out", out).code == 0
    expected = tiny_images(tiny_bundle, range(5, 10), np.full(5, 7), tiny_formula)
    assert np.abs(np.load(out).astype(int) - expected).max() <= 1


def test_class_may_be_named(mmf, make_tiny_bundle, tmp_path):
    spec = SampleSpec(shape=(1, 8, 8), classes=2, class_names=("cat", "dog"))
    path, out = make_tiny_bundle(spec), tmp_path / "samples.npy"
    found = []
    for label in ("dog", "1", "cat"):
        assert mmf("sample", path, "--seeds", "0-3", "--label", label, "--out", out).code == 0
        found.append(np.load(out))
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0] != found[2]).any()


def test_checkpoint_and_its_bundle_give_the_same_samples(mmf, unet_run, unet_bundle, tmp_path):
    found = []
    for source in (unet_run, unet_bundle.path):
        out = tmp_path / f"{source.name}.npy"
        assert mmf("sample", source, "--seeds", "0-15", "--out", out).code == 0
        found.append(np.load(out).astype(int))
    assert found[0].shape == (16, 8, 8, 1)
    assert np.abs(found[0] - found[1]).max() <= 1


def test_vectors_are_written_as_an_array_only(mmf, make_tiny_bundle, tmp_path):
    path = make_tiny_bundle(SampleSpec(shape=(5,)))
    assert mmf("sample", path, "--seeds", "0-3", "--out", tmp_path / "x.npy").code == 0
    assert np.load(tmp_path / "x.npy").shape == (4, 5)
    result = mmf("sample", path, "--out", tmp_path / "x.png")
    assert_one_line_error(result, "vectors", ".npy", code=2)
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("option", "value", "part", "code"),
    [
        ("--seeds", "", "expected integers such as", 2),
        ("--seeds", "a", "expected integers such as", 2),
        ("--seeds", "1.5", "expected integers such as", 2),
        ("--seeds", "-1", "expected integers such as", 2),
        ("--seeds", "1-", "expected integers such as", 2),
        ("--seeds", "1-2-3", "expected integers such as", 2),
        ("--seeds", "1,,2", "expected integers such as", 2),
        ("--seeds", "5-4", "rising ranges", 2),
        ("--seeds", "0-99999999999999", "1 … 4096 seeds", 2),
        ("--seeds", "9223372036854775808", "out of range", 1),
        ("--label", "11", "expected 0 … 9", 2),
        ("--label", "-1", "expected 0 … 9", 2),
        ("--label", "seven", "expected 0 … 9", 2),
        ("--label", "1.0", "expected 0 … 9", 2),
        ("--out", "samples.jpg", ".png or .npy", 2),
        ("--out", "samples", ".png or .npy", 2),
    ],
)
def test_nonsense_is_refused_in_one_line_and_nothing_is_written(
    option, value, part, code, mmf, tiny_bundle, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert_one_line_error(mmf("sample", tiny_bundle, option, value), part, code=code)
    assert list(tmp_path.iterdir()) == []


def test_label_for_a_generator_without_classes_is_refused(mmf, make_tiny_bundle, tmp_path):
    path = make_tiny_bundle(SampleSpec(shape=(1, 8, 8)))
    result = mmf("sample", path, "--label", "1", "--out", tmp_path / "x.png")
    assert_one_line_error(result, "no classes", code=2)


def test_place_that_cannot_be_written_is_one_line(mmf, tiny_bundle, tmp_path):
    (tmp_path / "file").write_text("")
    result = mmf("sample", tiny_bundle, "--seeds", "0", "--out", tmp_path / "file" / "x.png")
    assert_one_line_error(result, str(tmp_path / "file"))


def test_reader_that_has_enough_ends_the_command_quietly(tiny_bundle):
    code = "from mmf_deploy.cli import main; main()"
    args = [sys.executable, "-c", code, "inspect", str(tiny_bundle)]
    with subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("0", [0]),
        ("0-2", [0, 1, 2]),
        (" 3, 1,4 ", [3, 1, 4]),
        ("7-7,1-2", [7, 1, 2]),
        ("9223372036854775806-9223372036854775807", [2**63 - 2, 2**63 - 1]),
    ],
)
def test_seeds_are_read_in_the_order_given(text, seeds):
    assert parse_seeds(text) == seeds


def test_as_many_seeds_as_allowed_and_no_more():
    assert len(parse_seeds(f"0-{MAX_SEEDS - 1}")) == MAX_SEEDS
    with pytest.raises(ConfigError, match=f"{MAX_SEEDS} seeds"):
        parse_seeds(f"0-{MAX_SEEDS - 1},7")

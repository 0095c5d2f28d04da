"""`mmf-export` and `mmf inspect` as a person runs them."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass

import numpy as np
import pytest

from mmf_deploy import bundle as bundles
from mmf_deploy import cli

NETWORK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1) for a, b in ((1, 12), (12, 12), (12, 12), (12, 1)))
        self.label = nn.Embedding(4, 12)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(2.0)

    def forward(self, x, r, t, label):
        h = self.layers[0](x) + self.label(label)[:, :, None, None] * t.reshape(-1, 1, 1, 1)
        for layer in self.layers[1:]:
            h = layer(torch.relu(h))
        return h
"""


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs a command in this process as its console script does, in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def command(*args) -> Result:
        main = cli.main_export if args[0] == "mmf-export" else cli.main
        monkeypatch.setattr(sys, "argv", list(map(str, args)))
        code = 0
        try:
            main()
        except SystemExit as e:
            code = e.code or 0
        return Result(code, *capsys.readouterr())

    return command


@pytest.fixture
def module(tmp_path):
    """A network of one's own in the current directory."""
    (tmp_path / "users_net.py").write_text(NETWORK)
    yield ("--module", "users_net:Net", "--shape", "1,8,8", "--classes", "3")
    sys.modules.pop("users_net", None)


def error(result, code=2) -> str:
    assert result.code == code, result
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    return result.err


def test_dry_run_prints_the_variants_and_what_is_left_out_and_writes_nothing(
    run, checkpoints, tmp_path
):
    result = run(
        "mmf-export", checkpoints("guided"), "--dry-run", "--target", "onnxruntime-cpu,web",
        "--precision", "fp32,int8,fp16", "--steps", "1,2", "--out", "b/mine",
    )  # fmt: skip
    assert (result.code, result.err) == (0, "")
    first, *lines = result.out.splitlines()
    assert first.startswith("exporting guided, step 1, weights ema-0.9 to b/mine: 8 variants, ")
    assert "2,000 seeds" in first
    names = [line.strip().partition(":")[0] for line in lines]
    assert names == ["fp32", "fp32-2step", "int8", "int8-2step", "web-fp32", "web-fp32-2step",
                     "web-fp16", "web-fp16-2step", "left out", "left out",
                     "no judge beside the checkpoint"]  # fmt: skip
    assert "--target onnxruntime-cpu --precision fp16" in lines[-3]
    assert "--target web --precision int8" in lines[-2]
    assert list(tmp_path.iterdir()) == []


def test_export_says_what_it_does_where_the_bundle_lies_and_what_comes_next(run, checkpoints):
    source = checkpoints("vector")
    result = run("mmf-export", source, "--out", "made", "--samples", "16")
    assert result.code == 0
    found = bundles.load(bundles.Path("made"))
    assert [v.name for v in found.manifest.variants] == ["fp32"]
    for part in ("1 variant, ", "variants", "fp32", f"(digest {found.digest[:12]})",
                 "next: mmf-serve made", f"mmf-bench made --baseline {source}"):  # fmt: skip
        assert part in result.out
    again = run("mmf-export", source, "--out", "made", "--samples", "16")
    assert "made exists; choose another --out, or replace it with --force" in error(again)
    assert run("mmf-export", source, "--out", "made", "--samples", "16", "--force").code == 0


def test_bundle_of_a_run_takes_its_name(run, checkpoints):
    result = run("mmf-export", checkpoints("vector").parents[1], "--dry-run")
    assert "to bundles/vector: 1 variant, each" in result.out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--target", "openvin"), "did you mean 'openvino'?"),
        (("--precision", "fp32,"), "--precision 'fp32,': expected names with commas"),
        (("--precision", "int8"), "this generator makes vectors"),
        (("--steps", "1,two"), "--steps 'two': expected integers such as 1,2"),
        (("--steps", "0"), "--steps 0: expected 1 or more"),
        (("--label", "0"), "this generator has no classes"),
        (("--guidance", "2"), "this generator takes none"),
        (("--samples", "3"), "expected at least 16"),
        (("--allow", "frechett"), "did you mean 'frechet'?"),
        (("--shape", "3,4,4"), "--shape, --classes and --guidance-range go with --module only"),
        (("--module", "a:b"), "give a checkpoint or a run"),
        (("--out", ".."), "give the bundle a name"),
        (("--sign", "nowhere.key"), "nowhere.key"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_mistake_in_the_command_line_is_one_line_and_exit_code_two(
    args, said, run, checkpoints, tmp_path
):
    assert said in error(run("mmf-export", checkpoints("vector"), *args))
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_export_and_no_checkpoint_are_told_apart(run):
    assert "give a checkpoint or a run" in error(run("mmf-export"))
    assert "nowhere" in error(run("mmf-export", "nowhere"), code=1)
    assert "--module needs --shape" in error(run("mmf-export", "--module", "a:b"))


def test_gate_that_fails_has_exit_code_one_and_leaves_nothing(run, module, tmp_path):
    result = run(
        "mmf-export", *module, "--target", "web", "--precision", "fp16", "--min-psnr", "150",
        "--label", "2", "--samples", "16", "--out", "b/made",
    )  # fmt: skip
    said = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert result.code == 1
    assert len(said) == 1
    assert "Nothing was written; --allow psnr" in said[0]
    assert not (tmp_path / "b").exists()


def test_network_of_ones_own_is_exported_and_inspected(run, module, tmp_path):
    made = run(
        "mmf-export", *module, "--precision", "fp32,int8", "--samples", "16", "--label", "2",
        "--min-psnr", "20", "--curve",
    )  # fmt: skip
    assert made.code == 0, made.err
    path = tmp_path / "bundles" / "users_net"
    found = bundles.load(path)
    source = found.manifest.source
    assert (source.run, source.label, source.weights) == ("users_net:Net", 2, "model")
    assert found.spec.classes == 0
    assert "--baseline" not in made.out
    assert "quality against speed (floor 20 dB)" in made.out

    shown = run("mmf", "inspect", path)
    assert (shown.code, shown.err) == (0, "")
    for part in ("frozen", "label 2", "every hash verified", found.digest, "variant fp32",
                 "model.int8.onnx, for onnxruntime-cpu, opset 20", "16 samples compared by",
                 "operators, and weights by dtype", "Conv", "weights int8",
                 "quality against speed"):  # fmt: skip
        assert part in shown.out
    (row,) = re.findall(r"^\W*int8\W+1\W.*$", shown.out, re.MULTILINE)
    cells = re.findall(r"[\w.+-]+", row)
    assert cells[3] == str(found.variant("int8").graph["nodes"])
    assert float(cells[-1]) > 0


def test_weights_of_ones_own_network_are_read_from_the_file(run, module, tmp_path):
    missing = run("mmf-export", *module, "--weights", "none.safetensors", "--dry-run")
    assert "none.safetensors" in error(missing, code=1)
    wrong = run("mmf-export", *module[:3], "8", "--dry-run")
    assert wrong.code == 2


def test_triton_repository_lies_where_it_was_asked_for(run, checkpoints, tmp_path):
    result = run(
        "mmf-export", checkpoints("vector"), "--target", "triton", "--triton", "repository",
        "--samples", "16", "--out", "b/made",
    )  # fmt: skip
    assert result.code == 0, result.err
    (model,) = (tmp_path / "repository").iterdir()
    assert f"Triton model: repository/{model.name}" in result.out
    graph = bundles.load(tmp_path / "b" / "made").path / "model.fp32.onnx"
    assert (model / "1" / "model.onnx").read_bytes() == graph.read_bytes()


def test_signed_export_is_verified_with_the_key_alone(run, checkpoints, tmp_path):
    pytest.importorskip("cryptography")
    assert run("mmf", "keygen", "mine").code == 0
    secret, public = sorted(tmp_path.iterdir(), key=lambda p: p.suffix == ".pub")
    args = ("--samples", "16", "--out", "made", "--sign", secret)
    assert run("mmf-export", checkpoints("vector"), *args).code == 0
    assert bundles.load(tmp_path / "made", verify_key=public).path.name == "made"


def test_inspection_of_a_checkpoint_and_of_nothing(run, checkpoints, tmp_path):
    shown = run("mmf", "inspect", checkpoints("guided"))
    assert shown.code == 0
    assert "3 classes, guidance 1 … 4" in shown.out
    assert run("mmf", "inspect", tmp_path).code == 1


def test_a_low_dimensional_recipe_is_exported_and_sampled_like_images(run, tmp_path):
    from mmf_deploy.training.loop import Trainer
    from mmf_deploy.training.read_recipe import load_config

    sets = ["loop.steps=3", "network.width=16", "network.depth=2", "loop.tensorboard=false"]
    Trainer(load_config("control", sets), tmp_path / "run", threads=1).run()
    done = run("mmf-export", "run", "--out", "bundle")
    assert done.code == 0, done.err
    assert "mmf-serve bundle" in done.out
    assert "mmf-demo" not in done.out  # it shows images
    for source in ("bundle", "run"):
        made = run("mmf", "sample", source, "--seeds", "0-4", "--out", f"{source}.npy")
        assert made.code == 0, made.err
    exported, trained = (np.load(tmp_path / f"{name}.npy") for name in ("bundle", "run"))
    assert exported.shape == (5, 2)
    assert np.allclose(exported, trained, atol=1e-5)

"""Weights under any names come in by a map, and every entry is accounted for."""

import json

import numpy as np
import pytest
import torch
import yaml
from mmf_deploy.export.importers.cli import app
from mmf_deploy.export.importers.key_map import Rule, rename
from safetensors.torch import save_file
from typer.testing import CliRunner

from mmf_deploy import checkpoint, cli, files
from mmf_deploy.errors import CheckpointError, ConfigError
from mmf_deploy.nn.build import build_network, network_from
from mmf_deploy.spec import SampleSpec

SPEC = SampleSpec(shape=(1, 8, 8), classes=3)
UNET = {"type": "unet", "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1,
        "attn_resolutions": [4]}  # fmt: skip


def state():
    torch.manual_seed(0)
    return build_network(SPEC, {**UNET, "zero_init": 1.0}).state_dict()


def run_import(*arguments):
    """`mmf import safetensors …`; raises what the command raises."""
    command = ["safetensors", *map(str, arguments)]
    return CliRunner().invoke(app, command, catch_exceptions=False).output


@pytest.fixture
def network(tmp_path):
    """--network FILE with the sample in it."""
    path = tmp_path / "network.yaml"
    path.write_text(yaml.safe_dump({"network": UNET, "spec": {"shape": [1, 8, 8], "classes": 3}}))
    return path


@pytest.fixture
def out(tmp_path):
    return tmp_path / "runs" / "mine"


def save(tensors, path):
    save_file({k: v.contiguous() for k, v in tensors.items()}, path)
    return path


def write_map(path, rules):
    path.write_text(yaml.safe_dump(rules, sort_keys=False))
    return path


def assert_imported(out):
    found = checkpoint.read(out)
    assert found.spec == SPEC
    torch.testing.assert_close(
        dict(network_from(found).state_dict()), dict(state()), rtol=0, atol=0
    )


def test_file_that_already_fits_needs_no_map(tmp_path, network, out):
    file = save(state(), tmp_path / "w.safetensors")
    said = run_import(file, "--network", network, "--out", out)
    assert f"next: mmf sample {out}" in said
    assert_imported(out)
    source = checkpoint.read(out).config["imported"]
    assert source == {
        "format": "safetensors",
        "file": "w.safetensors",
        "sha256": files.sha256(file),
    }


def test_map_renames_by_prefix_wildcard_and_name_and_drops(tmp_path, network, out):
    foreign = {}
    for name, value in state().items():
        first, _, rest = name.partition(".")
        if first in ("enc", "dec"):
            place, _, layer = rest.partition(".")
            foreign[f"model.{first}oder.{place}.layers.{layer}"] = value
        else:
            foreign["model.labels" if first == "map_label" else f"model.{name}"] = value
    foreign["step"] = torch.zeros(1)
    rules = {
        "model.labels": "map_label.weight",
        "model.encoder.*.layers.**": "enc.*.**",
        "model.decoder.*.layers.**": "dec.*.**",
        "model.**": "**",
        "step": None,
    }
    map_file = write_map(tmp_path / "map.yaml", rules)
    file = save(foreign, tmp_path / "w.safetensors")
    run_import(file, "--map", map_file, "--network", network, "--out", out)
    assert_imported(out)


@pytest.mark.parametrize("legacy", [False, True])
def test_state_dict_of_torch_save_comes_in_by_its_dotted_names(legacy, tmp_path, network, out):
    content = {"epoch": 3, "ema": {"net": state()}, "optimizer": {"state": {0: torch.ones(2)}}}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    map_file = write_map(tmp_path / "map.yaml", {"ema.net.**": "**", "optimizer.**": None})
    run_import(tmp_path / "w.pth", "--map", map_file, "--network", network, "--out", out)
    assert_imported(out)


def test_constants_of_the_network_may_be_missing(tmp_path, network, out):
    tensors = {k: v for k, v in state().items() if "resample_filter" not in k}
    assert len(tensors) < len(state())
    file = save(tensors, tmp_path / "w.safetensors")
    run_import(file, "--network", network, "--out", out)
    assert_imported(out)


def test_missing_unused_and_misshapen_entries_are_one_line(tmp_path, network, out):
    tensors = state()
    missing = [k for k in tensors if k.startswith("enc.8x8_block0.conv")]
    for name in missing:
        del tensors[name]
    tensors["head.weight"] = torch.zeros(2)
    tensors["map_layer0.bias"] = torch.zeros(5)
    file = save(tensors, tmp_path / "w.safetensors")
    expected = (
        f"{file}: does not fit the network: 4 missing ({', '.join(missing[:3])} and 1 more), "
        "1 unused (head.weight), 1 of another shape (map_layer0.bias: found [5], expected [32]); "
        "rename or drop entries with --map, and look at the result with --dry-run"
    )
    for arguments in (("--out", out), ("--dry-run",)):
        with pytest.raises(CheckpointError) as caught:
            run_import(file, "--network", network, *arguments)
        assert str(caught.value) == expected
    assert not out.exists()


def test_dry_run_shows_what_would_become_of_every_entry(tmp_path, network, out):
    tensors = {f"net.{k}": v for k, v in state().items()} | {"step": torch.zeros(1)}
    file = save(tensors, tmp_path / "w.safetensors")
    rules = write_map(tmp_path / "m.yaml", {"net.**": "**", "step": None, "vae.**": None})
    said = run_import(file, "--map", rules, "--network", network, "--dry-run", "--out", out)
    lines = {line.split()[0]: line.split()[1:] for line in said.splitlines()}
    assert lines["net.map_layer0.weight"] == ["32×32", "->", "map_layer0.weight"]
    assert lines["step"] == ["1", "->", "dropped"]
    assert 'note: no entry fits "vae.**"' in said
    assert "every entry fits" in said
    assert not out.exists()
    wrong = {**tensors, "net.extra": torch.zeros(1), "net.map_layer0.bias": torch.zeros(5)}
    del wrong["net.map_layer1.bias"]
    result = CliRunner().invoke(
        app, ["safetensors", str(save(wrong, file)), "--map", str(rules), "--network", str(network),
              "--dry-run"]
    )  # fmt: skip
    lines = [line.split() for line in result.output.splitlines()]
    assert ["net.extra", "1", "->", "extra", "unused"] in lines
    assert ["net.map_layer0.bias", "5", "->", "map_layer0.bias", "expected", "32"] in lines
    assert ["32", "->", "map_layer1.bias", "missing"] in lines
    assert isinstance(result.exception, CheckpointError)


def test_network_of_a_recipe_needs_the_sample(tmp_path, out):
    file = save(state(), tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=r"digits\.yaml: does not say what a sample is; give --s"):
        run_import(file, "--recipe", "digits", "--out", out)
    with pytest.raises(CheckpointError, match="does not fit the network"):
        run_import(file, "--recipe", "digits", "--shape", "1,8,8", "--classes", 10, "--out", out)
    with pytest.raises(ConfigError, match=r"digts: no such recipe \(did you mean 'digits'\?\)"):
        run_import(file, "--recipe", "digts", "--shape", "1,8,8")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(yaml.safe_dump({"name": "mine", "data": {"size": 8}, "network": UNET}))
    run_import(file, "--recipe", recipe, "--shape", "1,8,8", "--classes", 3, "--out", out)
    assert_imported(out)


def test_network_of_another_checkpoint_is_taken_with_its_sample(tmp_path, network, out):
    file = save(state(), tmp_path / "w.safetensors")
    run_import(file, "--network", network, "--out", tmp_path / "first")
    meta = checkpoint.read(tmp_path / "first").path / "meta.json"
    assert json.loads(meta.read_text())["spec"]["classes"] == 3
    run_import(file, "--network", meta, "--out", out)
    assert_imported(out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "what are the weights for"),
        (["--network", "n.yaml", "--recipe", "digits"], "what are the weights for"),
        (["--network", "absent.yaml"], r"absent\.yaml: not a readable YAML file"),
        (["--network", "n.yaml", "--map", "absent.yaml"], "--map absent.yaml: not a readable text"),
        (["--network", "n.yaml", "--classes", "3"], "expected --shape with them"),
        (["--network", "n.yaml", "--shape", "8x8"], "--shape 8x8: expected channels,height,width"),
        (["--network", "empty.yaml", "--shape", "1,8,8"], "found no network: section"),
        (["--network", "odd.yaml"], r"odd\.yaml: spec\.colour: Extra inputs are not permitted"),
        (["--network", "typo.yaml"], "network: .*chanels"),
        (["--network", "n.yaml", "--map", "star.yaml"], r"not valid YAML.*put names with \* into"),
        (["--network", "n.yaml", "--map", "list.yaml"], "expected lines such as"),
        (["--network", "n.yaml", "--map", "number.yaml"], "'a': 3: expected a name or null"),
        (["--network", "n.yaml", "--map", "uneven.yaml"], "expected the same wildcards on both"),
        (["--network", "n.yaml", "--map", "same.yaml"], "would both be map_layer0.bias"),
    ],
)
def test_what_a_person_wrote_wrong_is_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written = {
        "n": {"network": UNET, "spec": {"shape": [1, 8, 8], "classes": 3}},
        "empty": {"spec": {"shape": [1, 8, 8]}},
        "odd": {"network": UNET, "spec": {"shape": [1, 8, 8], "colour": 1}},
        "typo": {"network": {**UNET, "chanels": 3}, "spec": {"shape": [1, 8, 8]}},
        "list": ["a"],
        "number": {"a": 3},
        "uneven": {"a.*": "b"},
        "same": {"map_layer1.bias": "map_layer0.bias"},
    }
    for name, value in written.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(value))
    (tmp_path / "star.yaml").write_text("net.**: **\n")
    save(state(), tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=message) as caught:
        run_import("w.safetensors", *arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "not a readable .safetensors file"),
        (b"\xff" * 64, "not a readable .safetensors file"),
    ],
)
def test_unreadable_weights_are_one_line(content, message, tmp_path, network):
    file = tmp_path / "w.safetensors"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        run_import(file, "--network", network, "--out", tmp_path / "run")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.full((32,), torch.inf), "map_layer0.bias: found numbers that are not finite"),
        (torch.zeros(32, dtype=torch.int64), "map_layer0.bias: found torch.int64"),
    ],
)
def test_weights_that_cannot_be_weights_are_refused(value, message, tmp_path, network, out):
    file = save({**state(), "map_layer0.bias": value}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=message):
        run_import(file, "--network", network, "--out", out)
    assert not out.exists()


def test_imported_run_is_sampled_by_the_command(tmp_path, network, out, monkeypatch, capsys):
    run_import(save(state(), tmp_path / "w.safetensors"), "--network", network, "--out", out)
    target = tmp_path / "x.npy"
    commands = (["sample", out, "--seeds", "0-2", "--out", target], ["inspect", out])
    for arguments in commands:
        monkeypatch.setattr("sys.argv", ["mmf", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
    assert np.load(target).shape == (3, 8, 8, 1)
    assert "every hash verified" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("pattern", "name", "entry", "expected"),
    [
        ("a.b", "c", "a.b", (True, "c")),
        ("a.b", "c", "axb", (False, None)),
        ("a.*", "b.*", "a.x", (True, "b.x")),
        ("a.*", "b.*", "a.x.y", (False, None)),
        ("a.**", "b.**", "a.x.y", (True, "b.x.y")),
        ("*.w.*", "*-*", "a.w.b", (True, "a-b")),
        (
            "block*.**",
            "enc.8x8_block*.**",
            "block3.conv.weight",
            (True, "enc.8x8_block3.conv.weight"),
        ),
        ("a.**", None, "a.x", (True, None)),
        ("a[0-9]", "c", "a1", (False, None)),
    ],
)
def test_pattern(pattern, name, entry, expected):
    assert Rule(pattern, name).apply(entry) == expected


def test_first_pattern_that_fits_decides():
    rules = [Rule("a.b", "x"), Rule("a.**", "y.**")]
    assert rename(["a.b", "a.c", "d"], rules).names == {"a.b": "x", "a.c": "y.c", "d": "d"}
    assert rename(["a.b"], rules).idle == ["a.**"]

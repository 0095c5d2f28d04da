"""A checkpoint file is data: whatever its pickle asks for, nothing in it runs."""

import argparse
import builtins
import os
import pickle
import shutil
import sys
import zipfile

import pytest
import torch
from mmf_deploy.export.importers import torch_file
from mmf_deploy.export.importers.weights_file import read_tensors

from mmf_deploy import cli
from mmf_deploy.errors import CheckpointError


class Evil:
    """Pickles to a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def touch(path):
    return Evil(os.system, f"touch {path}")


def legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def protocol4(content, path):
    torch.save(content, path, pickle_protocol=4)


def bare(content, path):
    path.write_bytes(pickle.dumps(content, protocol=2))


def bare4(content, path):
    path.write_bytes(pickle.dumps(content, protocol=4))


def smuggled(path):
    """Opcodes that give a Namespace a __setstate__, and then call it with a state."""
    command = f"touch {path}".encode()
    return (
        b"\x80\x02cargparse\nNamespace\n)\x81}X\x0c\x00\x00\x00__setstate__cposix\nsystem\nsb"
        + b"X" + len(command).to_bytes(4, "little") + command + b"b."
    )  # fmt: skip


WRITERS = [torch.save, legacy, protocol4, bare, bare4]
CARRIERS = {
    "as args": lambda evil: {"model": {}, "args": evil},
    "in a Namespace": lambda evil: {"model": {}, "args": argparse.Namespace(lr=1e-4, hook=evil)},
    "in place of a weight": lambda evil: {"model": {"net.weight": evil}},
    "as everything": lambda evil: evil,
}


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("write", WRITERS, ids=lambda w: w.__name__)
def test_pickled_call_is_named_and_never_made(write, carrier, tmp_path):
    marker, path = tmp_path / "ran", tmp_path / "evil.pth"
    write(CARRIERS[carrier](touch(marker)), path)
    with pytest.raises(CheckpointError, match=r"refused: its pickle asks for posix\.system") as e:
        torch_file.read(path)
    assert "\n" not in str(e.value)
    assert not marker.exists()


@pytest.mark.parametrize("write", WRITERS, ids=lambda w: w.__name__)
def test_the_trap_of_the_test_above_works(write, tmp_path):
    marker, path = tmp_path / "ran", tmp_path / "evil.pth"
    write(touch(marker), path)
    if write in (bare, bare4):
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize(
    ("evil", "named"),
    [
        (Evil(builtins.eval, "1"), "eval"),
        (Evil(builtins.exec, "1"), "exec"),
        (Evil(builtins.getattr, "x", "upper"), "getattr"),
        (Evil(shutil.rmtree, "x"), r"shutil\.rmtree"),
        (Evil(torch.hub.load_state_dict_from_url, "x"), r"torch\.hub\.load_state_dict_from_url"),
        (Evil(torch.load, "x"), r"torch\.serialization\.load"),
        (Evil(argparse.FileType, "w"), r"argparse\.FileType"),
        (Evil(argparse.ArgumentParser), r"argparse\.ArgumentParser"),
    ],
    ids=lambda p: p if isinstance(p, str) else "",
)
def test_every_other_function_is_refused_by_name(evil, named, tmp_path):
    torch.save({"args": argparse.Namespace(x=evil)}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=f"asks for {named}, and a checkpoint needs"):
        torch_file.read(tmp_path / "evil.pth")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_namespace_cannot_be_given_a_function_to_call(zipped, tmp_path):
    marker, path = tmp_path / "ran", tmp_path / "evil.pth"
    if zipped:
        torch.save({"x": torch.ones(1)}, tmp_path / "good.pth")
        with zipfile.ZipFile(tmp_path / "good.pth") as good, zipfile.ZipFile(path, "w") as bad:
            for name in good.namelist():
                pickled = name.endswith("data.pkl")
                bad.writestr(name, smuggled(marker) if pickled else good.read(name))
    else:
        path.write_bytes(smuggled(marker))
    with pytest.raises(CheckpointError, match=r"asks for posix\.system"):
        torch_file.read(path)
    assert not marker.exists()


def test_command_ends_with_one_line_and_writes_nothing(tmp_path, monkeypatch, capsys):
    marker, path, out = tmp_path / "ran", tmp_path / "evil.pth", tmp_path / "run"
    torch.save(CARRIERS["in a Namespace"](touch(marker)), path)
    for kind in (["py-meanflow"], ["safetensors", "--recipe", "cifar10", "--shape", "3,32,32"]):
        arguments = ["mmf", "import", kind[0], str(path), *kind[1:], "--out", str(out)]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr().err
        assert ended.value.code == 1
        assert said.startswith(f"error: {path}: refused: its pickle asks for posix.system")
        assert said.count("\n") == 1
    assert not marker.exists()
    assert not out.exists()


@pytest.mark.parametrize("protocol", [2, 4])
def test_name_in_a_refusal_cannot_move_the_cursor(protocol, tmp_path):
    name = b"\x1b[2Jerase"
    if protocol == 2:
        path, pickled = tmp_path / "evil.pth", b"\x80\x02cevil\n" + name + b"\n."
    else:
        path, pickled = tmp_path / "evil.pth", b"\x80\x04\x8c\x04evil\x8c\x09" + name + b"\x93."
    path.write_bytes(pickled)
    with pytest.raises(CheckpointError, match=r"asks for evil\.\?\[2Jerase, and"):
        torch_file.read(path)


def test_allow_list_ends_with_the_file(tmp_path):
    torch.save({"args": argparse.Namespace(a=1)}, tmp_path / "good.pth")
    assert torch_file.read(tmp_path / "good.pth")["args"].a == 1
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "good.pth", weights_only=True)


def test_recursive_dictionaries_end(tmp_path):
    loop = {"w": torch.ones(2)}
    loop["again"] = loop
    torch.save(loop, tmp_path / "loop.pth")
    assert read_tensors(tmp_path / "loop.pth")["w"].shape == (2,)
    args = argparse.Namespace(a=1)
    args.again = args
    assert torch_file.plain(args)["again"]["a"] == 1


def test_namespace_becomes_plain_data():
    args = argparse.Namespace(
        lr=1e-4, betas=(0.9, 0.999), device=torch.device("cpu"), nested=argparse.Namespace(a=None),
        big=10**400, infinite=float("inf"), tensor=torch.ones(1), flags={"x": True},
    )  # fmt: skip
    assert torch_file.plain(args) == {
        "lr": 1e-4, "betas": [0.9, 0.999], "device": "<device>", "nested": {"a": None},
        "big": "<int>", "infinite": "inf", "tensor": "<Tensor>", "flags": {"x": True},
    }  # fmt: skip


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"PK\x03\x04",
        b"not a checkpoint",
        b"\x80\x02.",
        b"\x80\x05K\x01.",
        b"\x80\x02cargparse\nNamespace\nK\x01\x85R.",  # Namespace(1)
        b"\x80\x02]" + b"]" * 100_000 + b"a" * 100_000 + b".",
        "cut",
        "torchscript",
    ],
    ids=["empty", "zip magic", "text", "empty pickle", "protocol 5", "bad call", "deep", "cut",
         "torchscript"],
)  # fmt: skip
def test_damaged_or_foreign_file_is_one_line(damage, tmp_path):
    path = tmp_path / "a.pth"
    if damage == "cut":
        torch.save({"x": torch.ones(1000)}, path)
        path.write_bytes(path.read_bytes()[:2000])
    elif damage == "torchscript":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/constants.pkl", pickle.dumps((), protocol=2))
            archive.writestr("a/data.pkl", pickle.dumps({}, protocol=2))
            archive.writestr("a/version", "3\n")
    else:
        path.write_bytes(damage)
    with pytest.raises(CheckpointError, match=r"not a readable file of torch\.save") as caught:
        torch_file.read(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert "weights_only=False" not in str(caught.value)


def test_missing_file_is_one_line(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        torch_file.read(tmp_path / "a.pth")

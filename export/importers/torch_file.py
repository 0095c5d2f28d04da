"""Reading what torch.save wrote without running what a pickle can ask for."""

from __future__ import annotations

import argparse
import io
import pickle
import pickletools
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from mmf_deploy.errors import CheckpointError

_LEGACY_PICKLES = 5  # magic number, protocol, system, object, storage keys
_HARMLESS = re.compile(
    r"torch\.\w+|torch\._utils\._rebuild\w+|torch\.storage\.\w+|collections\.OrderedDict|"
    r"argparse\.Namespace|_codecs\.encode"
)


def read(path: Path) -> Any:
    """The object in a file of torch.save, on the CPU.

    Tensors, plain values and argparse.Namespace are built. A file that asks for anything
    else is refused before that is imported or called.

    Raises:
        CheckpointError: no such file, not of torch.save, or one that wants something run.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected what torch.save wrote")
    with path.open("rb") as f:
        zipped = f.read(4) == b"PK\x03\x04"
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            torch.serialization.safe_globals([argparse.Namespace]),
        ):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as e:
        raise CheckpointError(_refusal(path, zipped, str(e))) from e
    except Exception as e:  # a foreign file can fail in any way its bytes can be wrong
        reason = printable(" ".join(str(e).split()).split(". ")[0])
        raise CheckpointError(
            f"{path}: not a readable file of torch.save ({type(e).__name__}: {reason})"
        ) from e


def plain(value: Any, depth: int = 4) -> Any:
    """What JSON can hold of an unpickled value; the type's name of what it cannot hold."""
    if value is None or type(value) in (bool, str):
        return value
    if type(value) is int and abs(value) < 2**63:
        return value
    if type(value) is float:
        return value if abs(value) < float("inf") else str(value)
    if depth and type(value) is argparse.Namespace:
        return plain(vars(value), depth)
    if depth and isinstance(value, list | tuple | set):
        return [plain(v, depth - 1) for v in value]
    if depth and isinstance(value, dict):
        return {str(plain(k, 0)): plain(v, depth - 1) for k, v in value.items()}
    return f"<{type(value).__name__}>"


def _refusal(path: Path, zipped: bool, reason: str) -> str:
    match = re.search(r"GLOBAL (\S+)|reduce for unrecognized function (.+)", reason)
    wanted = (match[1] or match[2].strip()) if match else ", ".join(_named(path, zipped))
    if wanted:
        return (
            f"{path}: refused: its pickle asks for {printable(wanted)}, and a checkpoint needs "
            "tensors, plain values and argparse.Namespace alone; nothing of it was run. If you "
            "trust it, save its state dict again with torch.save"
        )
    # torch's own advice, to read it without the safeguard, is not ours
    last = reason.split("error: ")[-1].strip().split("\n")[0]
    return (
        f"{path}: not a readable file of torch.save ({printable(last)}); expected pickle protocol "
        "2, its default"
    )


def printable(text: str) -> str:
    """Text of a foreign file, without what could move a terminal's cursor, and not too long."""
    return "".join(c if c.isprintable() else "?" for c in text[:160])


def _named(path: Path, zipped: bool) -> list[str]:
    """Functions and classes that the pickle names, by reading its opcodes; runs nothing."""
    found: list[str] = []
    try:
        with io.BytesIO(_inner_pickle(path)) if zipped else path.open("rb") as file:
            for _ in range(1 if zipped else _LEGACY_PICKLES):
                strings: list[str] = []
                for opcode, argument, _ in pickletools.genops(file):
                    if opcode.name == "GLOBAL":
                        found.append(str(argument).replace(" ", "."))
                    elif opcode.name == "STACK_GLOBAL":
                        found.append(".".join(strings[-2:]))
                    elif isinstance(argument, str):
                        strings.append(argument)
    except Exception:  # what could be read before it broke off
        pass
    return [name for name in dict.fromkeys(found) if not _HARMLESS.fullmatch(name)][:3]


def _inner_pickle(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
        return archive.read(name)

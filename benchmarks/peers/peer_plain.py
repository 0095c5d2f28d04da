"""What PyTorch's documentation shows: torch.onnx.export(model), onnxruntime.InferenceSession(file).

r and t are inputs of the network like any other, so they are inputs of the graph.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peer import Arrays, Given, Velocity, main


def export(given: Given) -> Path:
    """model.onnx of the network, with every option as it is by default."""
    import torch

    program = torch.onnx.export(given.network(), given.example(), dynamo=True)
    assert program is not None  # dynamo=True without a file name returns the program
    path = given.folder / "model.onnx"
    program.save(str(path))
    return path


def session(given: Given, path: Path) -> Velocity:
    """A session with default options; only a number of threads that is not the default is set."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if given.other_threads is not None:
        options.intra_op_num_threads = given.other_threads
    opened = onnxruntime.InferenceSession(str(path), options)
    # the graph keeps the order of the network's arguments
    names = [i.name for i in opened.get_inputs()]

    def velocity(arrays: Arrays) -> Any:
        return opened.run(None, dict(zip(names, arrays, strict=True)))[0]

    return velocity


class Plain:
    """torch.onnx.export and ONNX Runtime."""

    own = ("onnxruntime", "onnx", "onnxscript")

    def convert(self, given: Given) -> list[Path]:
        """Export."""
        return with_data(export(given))

    def open(self, given: Given) -> tuple[Velocity, str | None]:
        """Open the file."""
        return session(given, given.folder / "model.onnx"), None


def with_data(path: Path) -> list[Path]:
    """A graph, and the file of its weights if they are outside."""
    return [path, *path.parent.glob(f"{path.name}*data")]


TOOLS = {"plain": Plain()}

if __name__ == "__main__":
    main(TOOLS)

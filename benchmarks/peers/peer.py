"""A peer's side: the network and its inputs, the clock, and one JSON line for each question.

    python peer_plain.py CONTENDER convert --checkpoint … --folder …     once: makes the files
    python peer_plain.py CONTENDER run     --checkpoint … --folder …     opens them, then answers

    it says {"ready": {…}} or {"error": "one line"}
    {"batch": 1, "seconds": 0.5}  ->  {"times": [seconds of each call, …]}
    {"samples": [seed, …]}        ->  {"file": "….npy"}, float32 [seeds, *shape]

The packages of a peer come from an environment of its own; PyTorch and this project, which reads
the checkpoint, from the one that runs the comparison (environments.py).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
from numpy.typing import NDArray

from mmf_deploy import checkpoint, machine
from mmf_deploy.images import to_uint8
from mmf_deploy.noise import gaussian_batch
from mmf_deploy.spec import SampleSpec

Arrays = list[NDArray[Any]]
"""x float32 [B, *shape], r and t float32 [B], label int64 [B] and guidance float32 [B] if taken."""
Velocity = Callable[[Arrays], NDArray[np.float32]]
"""From these to u(x, r, t), float32 [B, *shape]."""
CALIBRATION_SEED = 1 << 40
"""Seeds from here on calibrate, as in our own export; those below are compared."""


@dataclass(frozen=True)
class Given:
    """What a peer is to do.

    Attributes:
        checkpoint, weights: of the network; the same for all.
        folder: for its files.
        batch: of every call.
        threads: of computation.
        calibration: noise samples for those that quantise, a multiple of ``batch``.
    """

    checkpoint: Path
    weights: str
    folder: Path
    batch: int
    threads: int
    calibration: int

    @property
    def spec(self) -> SampleSpec:
        """What one sample is."""
        return checkpoint.read(self.checkpoint).spec

    @property
    def other_threads(self) -> int | None:
        """The number of threads where it is not what an engine takes by default."""
        return None if self.threads == machine.available_cores() else self.threads

    def network(self) -> Any:
        """The PyTorch module u(x, r, t, label, guidance), in evaluation mode."""
        from mmf_deploy.nn.build import network_from

        return network_from(checkpoint.read(self.checkpoint), self.weights)

    def inputs(self, seeds: Sequence[int]) -> Arrays:
        """What the network takes for one-step samples of these seeds: r = 0, t = 1."""
        return inputs(self.spec, seeds)

    def example(self) -> tuple[Any, ...]:
        """Inputs as tensors, to trace with."""
        import torch

        return tuple(map(torch.from_numpy, self.inputs(range(self.batch))))

    def calibrating(self, share: float = 1.0) -> Iterator[Arrays]:
        """Noise to quantise with: at t = 1 that is what the network gets; a share of it."""
        last = CALIBRATION_SEED + math.ceil(share * self.calibration)
        for first in range(CALIBRATION_SEED, last, self.batch):
            yield self.inputs(range(first, first + self.batch))


def inputs(spec: SampleSpec, seeds: Sequence[int]) -> Arrays:
    """The same without a checkpoint; labels and guidance as ``mmf bench`` takes them."""
    count = len(seeds)
    found: Arrays = [
        gaussian_batch(seeds, spec.shape),
        np.zeros(count, np.float32),
        np.ones(count, np.float32),
    ]
    if spec.conditional:
        found.append(np.array([spec.default_label(s) for s in seeds], np.int64))
    if spec.guidance is not None:
        found.append(np.full(count, spec.guidance[0], np.float32))
    return found


class Tool(Protocol):
    """One way of running a network.

    Attributes:
        own: packages that must come from the peer's own environment.
    """

    own: tuple[str, ...]

    def convert(self, given: Given) -> list[Path]:
        """Make the files in ``given.folder``; returns those that running needs."""

    def open(self, given: Given) -> tuple[Velocity, str | None]:
        """Ready to run; with its precision where that was left to the tool."""


def main(tools: Mapping[str, Tool]) -> None:
    """Do what the command line says; errors are a line of JSON."""
    said = _take_stdout()
    parser = argparse.ArgumentParser()
    parser.add_argument("contender", choices=tools)
    parser.add_argument("step", choices=["convert", "run"])
    for name in ("checkpoint", "folder"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--weights", required=True)
    for name in ("batch", "threads", "calibration"):
        parser.add_argument(f"--{name}", type=int, required=True)
    asked = vars(parser.parse_args())
    tool, step = tools[asked.pop("contender")], asked.pop("step")
    given = Given(**asked)
    try:
        if step == "convert":
            _say(said, _converted(tool, given))
        else:
            _answer(tool, given, said)
    except KeyboardInterrupt:
        return
    except Exception as e:  # whatever a tool raises is a finding, not a fault
        import traceback

        traceback.print_exc()
        _say(said, {"error": one_line(e)})


def _take_stdout() -> TextIO:
    """Stdout for the answers alone: what libraries print goes to stderr."""
    said = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return said


def _say(said: TextIO, message: Mapping[str, Any]) -> None:
    said.write(json.dumps(message) + "\n")
    said.flush()


def one_line(error: Exception) -> str:
    """The error's own words, on one line."""
    words = " ".join(str(error).split())
    short = words if len(words) <= 200 else f"{words[:197]}..."
    return f"{type(error).__name__}: {short}" if short else type(error).__name__


def _converted(tool: Tool, given: Given) -> dict[str, Any]:
    _versions(tool.own)
    began = time.perf_counter()
    made = tool.convert(given)
    return {
        "seconds": round(time.perf_counter() - began, 3),
        "bytes": sum(f.stat().st_size for f in made),
    }


def _answer(tool: Tool, given: Given, said: TextIO) -> None:
    spec = given.spec
    began = time.perf_counter()
    velocity, precision = tool.open(given)
    generate(spec, velocity, range(given.batch))
    load_s = time.perf_counter() - began
    ready = {"load_s": round(load_s, 4), "precision": precision, "versions": _versions(tool.own)}
    _say(said, {"ready": ready})
    for line in sys.stdin:
        question = json.loads(line)
        if "samples" in question:
            seeds = question["samples"]
            parts = [generate(spec, velocity, seeds[k : k + given.batch])
                     for k in range(0, len(seeds), given.batch)]  # fmt: skip
            file = given.folder / f"samples-{os.getpid()}.npy"
            np.save(file, np.concatenate(parts))
            _say(said, {"file": str(file)})
        else:
            _say(said, {"times": turn(spec, velocity, question["batch"], question["seconds"])})


def generate(spec: SampleSpec, velocity: Velocity, seeds: Sequence[int]) -> NDArray[np.float32]:
    """One-step samples x − u(x, 0, 1), float32 [B, *shape]."""
    arrays = inputs(spec, seeds)
    return np.asarray(arrays[0] - velocity(arrays), np.float32)


def turn(spec: SampleSpec, velocity: Velocity, batch: int, seconds: float) -> list[float]:
    """Seconds of each call, noise to samples and images, after one that is not counted."""
    arrays = inputs(spec, range(batch))

    def call() -> None:
        sample = arrays[0] - velocity(arrays)
        if spec.is_image:
            to_uint8(sample)

    call()
    times: list[float] = []
    while not times or sum(times) < seconds:
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return times


def _versions(own: Sequence[str]) -> dict[str, str]:
    """Of what a peer brought itself, and of PyTorch where it runs it.

    Raises:
        ImportError: a package of its own would come from somewhere else.
    """
    for package in own:
        module = import_module(_MODULES.get(package, package))
        file = Path(module.__file__ or "")
        if not file.is_relative_to(sys.prefix):
            raise ImportError(f"{package} comes from another environment than the peer's own")
    shared = ["torch"] if "torch" in sys.modules else []
    return {package: metadata.version(package) for package in (*own, *shared)}


_MODULES = {"optimum": "optimum.version", "optimum-onnx": "optimum.onnxruntime"}

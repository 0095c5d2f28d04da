"""Untrained networks of several sizes, made by the product's own commands and kept."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from mmf_deploy.serve.bench.counts import count

from mmf_deploy import bundle as bundles
from mmf_deploy import checkpoint
from mmf_deploy.errors import EngineError, MMFError

RECIPE = "cifar10-random"
VARIANTS = ("fp32", "int8")
# images of an untrained network mean nothing, so no layer of int8 shall be spared for them
EXPORT = ("--precision", ",".join(VARIANTS), "--samples", "16", "--min-psnr", "15")


@dataclass(frozen=True)
class Network:
    """The UNet of the recipe with another width, for images of another size.

    Attributes:
        width: channels of its first level; the recipe has 128.
        side: of the images, in pixels; attention is at half of it, as in the recipe.
    """

    width: int
    side: int

    @property
    def name(self) -> str:
        """Of its run and its bundle."""
        return f"width{self.width}-{self.side}px"

    @property
    def about_gflop(self) -> float:
        """Of one image, attention left out."""
        return 42.4 * (self.width / 128 * self.side / 32) ** 2

    @property
    def sets(self) -> list[str]:
        """What it changes in the recipe."""
        return [
            f"name={self.name}",
            f"network.model_channels={self.width}",
            f"network.attn_resolutions=[{self.side // 2}]",
            f"data.shape=[3, {self.side}, {self.side}]",
            # nothing is trained, so nothing need be tried out
            "objective.derivative=finite_difference",
            "loop.tensorboard=false",
        ]


@dataclass(frozen=True)
class Made:
    """A network on disk.

    Attributes:
        run: its checkpoint.
        gflop: of one image; a multiplication and an addition are two operations.
        attention: share of them that grows with the square of the pixels.
    """

    network: Network
    run: Path
    bundle: bundles.Bundle
    gflop: float
    attention: float

    @property
    def parameters(self) -> int:
        """Of the network."""
        return self.bundle.manifest.source.parameters


def make(network: Network, runs: Path, folder: Path) -> Made:
    """The network's checkpoint and bundle; made anew unless both are there and belong together.

    Raises:
        EngineError: a command failed; its last line says why.
    """
    run, path = runs / network.name, folder / network.name
    if (bundle := _kept(run, path)) is None:
        sets = [part for one in network.sets for part in ("--set", one)]
        _mmf("train", RECIPE, *sets, "--device", "cpu", "--out", str(run), "--fresh")
        _mmf("export", str(run), "--out", str(path), "--force", *EXPORT)
        bundle = bundles.load(path)
    counts = count(bundle.file(bundle.variant("fp32")))
    total = sum(counts.flops.values())
    products = sum(node.flops for node in counts.nodes if node.op == "MatMul")
    return Made(network, run, bundle, total / 1e9, products / total)


def is_made(network: Network, runs: Path, folder: Path) -> bool:
    """Whether ``make`` finds everything there."""
    return _kept(runs / network.name, folder / network.name) is not None


def _kept(run: Path, path: Path) -> bundles.Bundle | None:
    try:
        found = bundles.load(path)
        source = found.manifest.source
        same = checkpoint.read(run).weights_hash(source.weights) == source.weights_sha256
    except MMFError:
        return None
    return found if same and {v.name for v in found.manifest.variants} == set(VARIANTS) else None


def _mmf(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mmf_deploy.cli", *arguments],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no message"]
        raise EngineError(f"mmf {arguments[0]} of {arguments[1]} failed: {said[-1]}")

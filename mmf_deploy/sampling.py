"""From seeds to samples through a bundle or a checkpoint, a batch at a time.

A source says what it can do before anything is computed; ``opened`` then loads it and
gives a function from noise, label and guidance to samples, which ``generate`` calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmf_deploy import bundle as bundles
from mmf_deploy import checkpoint as checkpoints
from mmf_deploy import noise
from mmf_deploy.engines.base import BUCKETS, EngineOptions, open_engine
from mmf_deploy.errors import ConfigError, nearest, require
from mmf_deploy.progress import TaskProgress
from mmf_deploy.spec import SampleSpec

BATCH = BUCKETS[-1]
QUIET = 4  # network evaluations that are over before a person wonders
Tick = Callable[[int], None]
Run = Callable[
    [NDArray[np.float32], NDArray[np.int64] | None, NDArray[np.float32] | None], NDArray[Any]
]


@dataclass(frozen=True)
class BundleSource:
    """One variant of a bundle, run by the engine it was made for."""

    bundle: bundles.Bundle
    variant: bundles.Variant

    @property
    def spec(self) -> SampleSpec:
        """What one sample is."""
        return self.bundle.spec

    @property
    def steps(self) -> int:
        """Network evaluations per sample."""
        return self.variant.steps

    @property
    def about(self) -> str:
        """What of the source is used."""
        return f"variant {self.variant.name}"

    @contextmanager
    def opened(self, tick: Tick) -> Iterator[Run]:
        """A function that gives samples, uint8 [B, H, W, C] or float32 [B, D]."""
        options = EngineOptions()
        with open_engine(None, self.bundle, self.variant.name, options) as engine:

            def run(*inputs: Any) -> NDArray[Any]:
                samples = engine.generate(*inputs)
                tick(self.steps)
                return samples

            yield run


@dataclass(frozen=True)
class CheckpointSource:
    """The weights of a checkpoint, run by PyTorch on the CPU.

    Attributes:
        weights: "model" or the name of an average.
        steps: network evaluations per sample, on the uniform grid.
        trajectory: give all K + 1 points of the path, not the last alone.
    """

    checkpoint: checkpoints.Checkpoint
    weights: str
    steps: int = 1
    trajectory: bool = False

    @property
    def spec(self) -> SampleSpec:
        """What one sample is."""
        return self.checkpoint.spec

    @property
    def about(self) -> str:
        """What of the source is used."""
        return f"weights {self.weights} of step {self.checkpoint.step}"

    @property
    def warning(self) -> str | None:
        """Why this number of steps may not give what it promises; None where it does."""
        reason = None
        if self._trained("objective", "path") == "interval":
            reason = "on objective.path 'interval', where every r has a flow of its own"
        elif self._trained("objective", "identity") == "consistency":
            reason = "as a consistency model, at r = 0 alone"
        if self.steps == 1 or reason is None:
            return None
        return f"trained {reason}; {self.steps}-step sampling does not hold there, use --steps 1"

    def require_null_label(self) -> None:
        """Refuse the null label unless training has shown it to the network.

        Raises:
            ConfigError: trained without label dropout.
        """
        dropout = self._trained("objective", "guidance", "label_dropout")
        if not isinstance(dropout, int | float) or dropout <= 0:
            raise ConfigError(
                "--label null: this checkpoint was trained without label dropout, so the network "
                "has never seen the null label; train one with "
                "--set objective.guidance.label_dropout=0.1"
            )

    def _trained(self, *keys: str) -> Any:
        """A value of the run's configuration; None where an older run has no such key."""
        found: Any = self.checkpoint.config
        for key in keys:
            found = found.get(key) if isinstance(found, Mapping) else None
        return found

    @contextmanager
    def opened(self, tick: Tick) -> Iterator[Run]:
        """A function that gives samples as a bundle does, or paths float32 [B, K + 1, *shape]."""
        torch = require("torch", "train")
        from mmf_deploy.nn.build import network_from
        from mmf_deploy.nn.sampler import Sampler, time_grid

        net = network_from(self.checkpoint, self.weights)
        net.register_forward_hook(lambda *_: tick(1))
        sampler = Sampler(net, time_grid(self.steps), self.spec.is_image)

        def run(*inputs: Any) -> NDArray[Any]:
            tensors: list[Any] = [None if a is None else torch.from_numpy(a) for a in inputs]
            with torch.inference_mode():
                if self.trajectory:
                    return np.asarray(torch.stack(sampler.trajectory(*tensors), dim=1).numpy())
                return np.asarray(sampler(*tensors)[-1].numpy())

        yield run


Source = BundleSource | CheckpointSource


def find_source(
    path: Path, steps: int | None = None, weights: str | None = None, trajectory: bool = False
) -> Source:
    """Read a bundle, a checkpoint or the newest checkpoint of a run; every hash is verified.

    Args:
        steps: network evaluations per sample; 1, or a bundle's first variant, if not given.
        weights: "model" or an average; the slowest average if not given.
    Raises:
        ConfigError: the source cannot do this.
        BundleError, CheckpointError: it cannot be read.
    """
    if not (path / bundles.MANIFEST).is_file():
        found = checkpoints.read(path)
        name = _weights_of(found, weights)
        return CheckpointSource(found, name, 1 if steps is None else steps, trajectory)
    bundle = bundles.load(path)
    source = bundle.manifest.source
    instead = f"give the run or checkpoint it was exported from ({source.run}, step {source.step})"
    for option, given in (("--weights", weights is not None), ("--trajectory", trajectory)):
        if given:
            raise ConfigError(f"{option}: {path} is a bundle, frozen for sampling; {instead}")
    variants = [v for v in bundle.manifest.variants if steps in (None, v.steps)]
    if not variants:
        have = ", ".join(f"{v.name} ({v.steps})" for v in bundle.manifest.variants)
        raise ConfigError(
            f"--steps {steps}: {path} is a bundle, whose variants (and steps) are {have}; {instead}"
        )
    return BundleSource(bundle, variants[0])


def _weights_of(found: checkpoints.Checkpoint, weights: str | None) -> str:
    have = [n for n in ("model", *found.emas) if f"{n}.safetensors" in found.file_hashes]
    if weights is not None and weights not in have:
        raise ConfigError(
            f"--weights {weights!r}{nearest(weights, have)}: {found.path} has {', '.join(have)}"
        )
    return weights or found.default_weights()


def generate(
    source: Source,
    seeds: Sequence[int],
    label: NDArray[np.int64] | None,
    guidance: NDArray[np.float32] | None,
) -> NDArray[Any]:
    """Samples of all seeds, a batch at a time, so that thousands do not exhaust the memory.

    Args:
        seeds: N of them; label int64 [N] and guidance float32 [N] if the generator takes them.
    Returns:
        uint8 [N, H, W, C] images, float32 [N, D] vectors, or paths float32 [N, K + 1, *shape].
    """
    starts = range(0, len(seeds), BATCH)
    parts = []
    with _progress(len(starts) * source.steps) as tick, source.opened(tick) as run:
        for start in starts:
            rows = slice(start, start + BATCH)
            parts.append(
                run(
                    noise.gaussian_batch(seeds[rows], source.spec.shape),
                    None if label is None else label[rows],
                    None if guidance is None else guidance[rows],
                )
            )
    return np.concatenate(parts)


@contextmanager
def _progress(evaluations: int) -> Iterator[Tick]:
    if evaluations <= QUIET:
        yield lambda _: None
        return
    done = 0
    with TaskProgress("network evaluations", evaluations) as progress:
        progress.show("sampling", done)

        def tick(count: int) -> None:
            nonlocal done
            done += count
            progress.show("sampling", done)

        yield tick

"""A trained run, ready to be measured."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmf_deploy.checkpoint import Checkpoint
from mmf_deploy.nn.build import network_from
from mmf_deploy.nn.judge import Judge
from mmf_deploy.nn.sampler import Sampler, quantise, time_grid
from mmf_deploy.noise import gaussian_batch

from ..config import TrainConfig
from ..data.base import Source
from ..metrics.features import Features, Images, InceptionFeatures, JudgeFeatures
from ..metrics.perceptual import Distance, FeatureDistance, Lpips
from ..metrics.trajectories import Field
from .scales import Scale

CHUNK = 128  # samples in a pass
_SOURCES: dict[str, Source] = {}
HELD_OUT_SEEDS = 10_000_000
"""Seeds from here on belong to paths and pairs, those below to sets of samples."""


@dataclass(frozen=True)
class Weights:
    """Files of networks that judge photographs, where they cannot be downloaded."""

    inception: Path | None = None
    alexnet: Path | None = None


@dataclass(frozen=True)
class Subject:
    """A checkpoint of a run, with what it is measured by.

    Attributes:
        run: the directory of the run.
        judge: directory of the classifier of digits.
    """

    checkpoint: Checkpoint
    run: Path
    scale: Scale
    judge: Path
    device: str = "cpu"
    weights: Weights = Weights()

    @functools.cached_property
    def config(self) -> TrainConfig:
        """What it was trained with."""
        return TrainConfig.model_validate(self.checkpoint.config)

    @functools.cached_property
    def net(self) -> torch.nn.Module:
        """The slowest average of its network."""
        return network_from(self.checkpoint).to(self.device)

    @property
    def averages(self) -> bool:
        """Whether u(x, r, t) was trained where r ≠ t; flow matching has v̂ alone."""
        return self.config.objective.time_pairs.gap_fraction > 0

    def field(self, label: Tensor | None) -> Field:
        """u(x, r, t) with labels int64 [B] bound; on the CPU, whatever the device is."""

        @torch.inference_mode()
        def u(x: Tensor, r: Tensor, t: Tensor) -> Tensor:
            given = [None if a is None else a.to(self.device) for a in (x, r, t, label)]
            return torch.as_tensor(self.net(*given)).cpu()

        return u

    def in_chunks(
        self, measure: Callable[[Field, Tensor], Tensor], x: Tensor, label: Tensor | None
    ) -> Tensor:
        """``measure(u, x)`` of some samples at a time, joined along the samples."""
        return torch.cat([
            measure(self.field(None if label is None else label[rows]), x[rows])
            for rows in chunks(len(x))
        ])  # fmt: skip

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """x1 of seeds, float32 [B, …], by the seed contract."""
        return torch.from_numpy(gaussian_batch(seeds, self.checkpoint.spec.shape))

    def generate(
        self, seeds: Sequence[int], labels: Tensor | None, steps: int = 1,
        guidance: float | None = None,
    ) -> Images:  # fmt: skip
        """Images uint8 [N, H, W, C] in ``steps`` network evaluations each."""
        net = self.net if self.averages else Instantaneous(self.net)
        sampler = Sampler(net, time_grid(steps)).to(self.device)
        if guidance is None and self.checkpoint.spec.guided:
            guidance = 1.0

        @torch.inference_mode()
        def some(rows: slice) -> NDArray[np.uint8]:
            x1 = self.noise(seeds[rows]).to(self.device)
            label = None if labels is None else labels[rows].to(self.device)
            scale = None if guidance is None else x1.new_full((len(x1),), guidance)
            return np.asarray(sampler(x1, label, scale)[1].cpu().numpy())

        return np.concatenate([some(rows) for rows in chunks(len(seeds))])

    @functools.cached_property
    def real(self) -> Source:
        """All real images that sets of samples are compared with."""
        return self.data(**({"split": "all"} if self.scale.features == "digits" else {}))

    @functools.cached_property
    def held_out(self) -> Source:
        """Images of the same kind that it was not trained on."""
        return self.data(**self.scale.test)

    def data(self, **changes: Any) -> Source:
        """Its data with other keys, whole; read once in a process."""
        data = {k: v for k, v in self.config.data.items() if k != "subset"} | changes
        key = json.dumps(data, sort_keys=True, default=str)
        if key not in _SOURCES:
            _SOURCES[key] = self.config.model_copy(update={"data": data}).load_data()
        return _SOURCES[key]

    @functools.cached_property
    def features(self) -> Features:
        """What sets of images are compared in."""
        if self.scale.features == "digits":
            return JudgeFeatures(Judge.load(self.judge))
        return InceptionFeatures(self.weights.inception, self.device)

    @functools.cached_property
    def distance(self) -> Distance:
        """How different two images look."""
        if self.scale.features == "digits":
            return FeatureDistance(self.features)
        return Lpips(self.weights.alexnet, self.device)


def chunks(count: int) -> list[slice]:
    """``count`` samples, as many at a time as go through a network together."""
    return [slice(start, start + CHUNK) for start in range(0, count, CHUNK)]


class Instantaneous(torch.nn.Module):
    """v̂(x, t) = u(x, t, t) in the place of u(x, r, t): steps with it are Euler's."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, r: Tensor, t: Tensor, *condition: Tensor | None) -> Tensor:
        """u(x, t, t), float32 [B, …]."""
        return torch.as_tensor(self.net(x, t, t, *condition))


def spread(count: int, size: int) -> Tensor:
    """``count`` indices of ``size`` samples, int64: evenly spaced, as sets may lie class by class;
    all of them again where there are not so many."""
    every = torch.arange(count)
    return every * size // count if count <= size else every % size


def images_of(source: Source, count: int) -> tuple[Images, Tensor | None]:
    """At most so many images of a source, uint8 [N, H, W, C], and their labels."""
    taken = spread(min(count, len(source)), len(source))
    images = np.concatenate(
        [quantise(source.batch(part).x0).numpy() for part in torch.split(taken, CHUNK)]
    )
    return images, None if source.labels is None else source.labels[taken]

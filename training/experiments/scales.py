"""The same experiments at several sizes: what is trained, for how long, and judged by what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Scale:
    """One size of all experiments with images.

    Attributes:
        recipe: what every run starts from.
        sets: keys that are set in every run.
        steps: optimiser steps of a run.
        seeds: of the runs.
        test: what changes in ``data:`` for images that no run has seen.
        features: of which network sets of images are compared in.
        samples: generated images in such a comparison; 0 for as many as there are real ones.
        encoded: held-out images, and as many paths, in the metrics of paths.
        pairs: pairs of seeds a class, for diversity.
        shifts: further sets to encode and decode, ``data:`` by name.
        checkpoint_every: optimiser steps.
        step_s: guess of the seconds of a step on one core, for the time left.
        vectors: keys that are set in every run of a low-dimensional recipe.
    """

    name: str
    recipe: str
    steps: int
    sets: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    test: Mapping[str, Any] = field(default_factory=dict)
    features: Literal["digits", "inception"] = "inception"
    samples: int = 50_000
    encoded: int = 1_000
    pairs: int = 1_000
    shifts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    checkpoint_every: int = 5_000
    step_s: float = 10.0
    vectors: tuple[str, ...] = ()

    @property
    def warmup_steps(self) -> int:
        """T_warmup: λ rises over the first eighth of a run, as in the paper (100k of 800k)."""
        return self.steps // 8

    @property
    def frechet(self) -> str:
        """What a Fréchet distance is called."""
        return "FID" if self.features == "inception" else "Fréchet distance"

    @property
    def kernel(self) -> str:
        """What a kernel distance is called."""
        return "KID" if self.features == "inception" else "kernel distance"


DIGITS = Scale(
    name="digits",
    recipe="digits",
    steps=1_500,
    sets=("data.split=train", "evaluate=null"),
    test={"split": "test"},
    features="digits",
    samples=0,
    encoded=355,
    checkpoint_every=250,
    step_s=0.08,
)

_OTHERS = {
    "SVHN": {"source": "torchvision", "name": "SVHN", "split": "test", "size": 32},
    "STL-10": {"source": "torchvision", "name": "STL10", "split": "test", "size": 32},
}

CIFAR10 = Scale(
    name="cifar10", recipe="cifar10-paper", steps=800_000, test={"split": "test"}, shifts=_OTHERS
)

IMAGENET64 = Scale(
    name="imagenet64",
    recipe="imagenet64",
    steps=800_000,
    seeds=(0,),
    test={"path": "imagenet/val"},
    pairs=100,
    step_s=60.0,
)

SCALES = {scale.name: scale for scale in (DIGITS, CIFAR10, IMAGENET64)}

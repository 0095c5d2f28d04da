"""Measurements of generated images: how good, how different, how they change."""

from __future__ import annotations

import base64
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmf_deploy.frechet import frechet_distance
from mmf_deploy.images import display_scale, encode, enlarged, grid
from mmf_deploy.nn.sampler import quantise, time_grid
from mmf_deploy.noise import gaussian_batch, spherical

from ..evaluate import halved_frechet
from ..metrics.features import Images, JudgeFeatures
from ..metrics.sets import compare
from ..metrics.trajectories import heun
from .subject import HELD_OUT_SEEDS, Subject, chunks, images_of, spread

NFE = (1, 2, 4, 8)
SOLVER = 16  # Heun steps of the reference, two network evaluations each
OMEGAS = (1.0, 1.5, 2.0, 3.0, 4.0)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
LARGEST_SET = 5_000  # in what compares all pairs
LARGEST_REAL = 50_000  # as many as FID is mostly computed with
STRIPS, FRAMES = 5, 11


def quality(subject: Subject) -> dict[str, Any]:
    """A set of one-step samples beside the real images."""
    labels = _labels(subject)
    fake = subject.generate(range(_count(subject)), labels)
    features, real = subject.features(fake), _real_features(subject)
    return {
        **_compared(features, real),
        **_distances(subject, features),
        **_recognised(subject, fake, labels),
    }


def steps(subject: Subject) -> dict[str, Any]:
    """Fréchet distance of samples in several steps with u, and of a solve of v̂."""
    labels, seeds = _labels(subject), range(_count(subject))
    found: dict[str, Any] = {
        str(count): _distances(subject, subject.features(subject.generate(seeds, labels, count)))[
            "frechet"
        ]
        for count in NFE
    }
    solved = np.concatenate([
        quantise(heun(subject.field(None if labels is None else labels[rows]),
                      subject.noise(seeds[rows]), time_grid(SOLVER))[-1]).numpy()
        for rows in chunks(len(seeds))
    ])  # fmt: skip
    return {**found, "solver": _distances(subject, subject.features(solved))["frechet"]}


def guidance(subject: Subject) -> dict[str, Any]:
    """One-step samples at every scale ω."""
    labels, found = _labels(subject), {}
    real = _real_features(subject)
    for omega in OMEGAS:
        fake = subject.generate(range(_count(subject)), labels, guidance=omega)
        features = subject.features(fake)
        found[f"{omega:g}"] = {
            **_compared(features, real),
            **_distances(subject, features),
            **_recognised(subject, fake, labels),
        }
    return {"omega": found}


def diversity(subject: Subject) -> dict[str, Any]:
    """Distances within pairs of images of one class: generated from two seeds, and real ones."""
    pairs, real, labels = subject.scale.pairs, *images_of(subject.real, LARGEST_REAL)
    generated, reality = [], []
    for name in range(max(1, subject.checkpoint.spec.classes)):
        start = HELD_OUT_SEEDS + name * 2 * pairs
        label = None if labels is None else torch.full((2 * pairs,), name)
        made = subject.generate(range(start, start + 2 * pairs), label)
        generated.append(subject.distance(made[:pairs], made[pairs:]))
        of_class = real if labels is None else real[(labels == name).numpy()]
        first, second = _different(len(of_class), pairs, name)
        reality.append(subject.distance(of_class[first], of_class[second]))
    return {
        "distance": subject.distance.name,
        "generated": _spread(np.concatenate(generated)),
        "real": _spread(np.concatenate(reality)),
        "by_class": {
            "generated": [float(x.mean()) for x in generated],
            "real": [float(x.mean()) for x in reality],
        },
    }


def strips(subject: Subject) -> dict[str, Any]:
    """Ways between two seeds of one class, a row each, as a PNG."""
    shape, rows = subject.checkpoint.spec.shape, []
    for row in range(STRIPS):
        ends = gaussian_batch([HELD_OUT_SEEDS + 2 * row, HELD_OUT_SEEDS + 2 * row + 1], shape)
        x1 = np.stack([spherical(ends[0], ends[1], k / (FRAMES - 1)) for k in range(FRAMES)])
        label = torch.full((FRAMES,), 2 * row % max(1, subject.checkpoint.spec.classes))
        made = subject.in_chunks(
            lambda u, x: quantise(x - u(x, torch.zeros(1), torch.ones(1))),
            torch.from_numpy(x1),
            label if subject.checkpoint.spec.conditional else None,
        )
        rows.append(made.numpy())
    images = np.concatenate(rows)
    scale = display_scale(images.shape[1], 48)
    big = np.stack([enlarged(image, scale) for image in images])
    return {"png": base64.b64encode(encode(grid(big, columns=FRAMES))).decode()}


def _labels(subject: Subject) -> Tensor | None:
    """Those of the real images, so that both sets have the same classes."""
    labels = subject.real.labels
    return None if labels is None else labels[spread(_count(subject), len(labels))]


def _count(subject: Subject) -> int:
    return subject.scale.samples or len(subject.real)


_KEPT: dict[tuple[str, ...], NDArray[np.float32]] = {}


def _real_features(subject: Subject, which: str = "real") -> NDArray[np.float32]:
    """Features of the real images, or of those held out; computed once in a process."""
    key = (which, str(subject.judge), repr(sorted(subject.config.data.items(), key=str)))
    if key not in _KEPT:
        source = subject.real if which == "real" else subject.held_out
        _KEPT[key] = subject.features(images_of(source, LARGEST_REAL)[0])
    return _KEPT[key]


def _compared(features: NDArray[np.float32], real: NDArray[np.float32]) -> dict[str, float]:
    some = (x[spread(min(LARGEST_SET, len(x)), len(x)).numpy()] for x in (features, real))
    return asdict(compare(*some))


def _distances(subject: Subject, features: NDArray[np.float32]) -> dict[str, float]:
    """Fréchet distance to real images, and what real images themselves have."""
    real = _real_features(subject)
    if subject.scale.samples == 0:
        frechet, floor = halved_frechet(features, real)
    else:
        frechet = frechet_distance(features, real)
        floor = frechet_distance(_real_features(subject, "held out"), real)
    return {"frechet": frechet, "frechet_real": floor, "ratio": frechet / floor}


def _recognised(subject: Subject, fake: Images, labels: Tensor | None) -> dict[str, float]:
    """Share of samples that show the class asked for, where something can tell."""
    if labels is None or not isinstance(subject.features, JudgeFeatures):
        return {}
    predicted, _ = subject.features.judge(fake)
    return {"class_accuracy": float((predicted == labels.numpy()).mean())}


def _different(count: int, pairs: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of random pairs of two different ones out of ``count``."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, count, pairs)
    return first, (first + rng.integers(1, count, pairs)) % count


def _spread(values: NDArray[np.float64]) -> dict[str, Any]:
    return {
        "mean": float(values.mean()),
        "quantiles": [float(q) for q in np.quantile(values, QUANTILES)],
    }

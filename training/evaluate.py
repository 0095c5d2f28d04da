"""Quality of a run's one-step samples, measured by what the real data itself achieves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mmf_deploy.checkpoint import Checkpoint
from mmf_deploy.frechet import frechet_distance
from mmf_deploy.nn.build import network_from
from mmf_deploy.nn.judge import Judge
from mmf_deploy.nn.sampler import Sampler
from mmf_deploy.noise import gaussian_batch

from .data import digits
from .metrics.digits_classifier import train_classifier

Generate = Callable[[range, NDArray[np.int64]], NDArray[np.uint8]]
SPLITS = 5


@dataclass(frozen=True)
class DigitsQuality:
    """How good generated digits are.

    Attributes:
        classifier_accuracy: of the judge, on real digits it has not seen.
        class_accuracy: share of samples that the judge gives the class they were asked for.
        frechet: Fréchet distance in the judge's features, samples to one half of the real
            digits; as many samples as real digits, so that both distances share their bias.
        frechet_real: the same between two halves of the real digits: the floor.
        ratio: frechet / frechet_real.
        samples: number of generated digits.
    """

    classifier_accuracy: float
    class_accuracy: float
    frechet: float
    frechet_real: float
    ratio: float
    samples: int

    def as_dict(self) -> dict[str, float]:
        """Plain numbers, rounded to what they are worth."""
        return {k: round(v, 4) for k, v in asdict(self).items()}


def evaluate_digits(
    generate: Generate, keep_judge: Callable[[Judge], None] = lambda judge: None
) -> DigitsQuality:
    """Judge digits made by ``generate(seeds, labels) -> uint8 [N, 8, 8, 1]``.

    Seeds are 0 … N − 1 and the labels those of the real digits, so both sets have the
    same classes. Distances are means over ``SPLITS`` random halvings.
    """
    source = digits.load(digits.Config())
    everything = source.batch(torch.arange(len(source)))
    assert everything.label is not None  # digits have classes
    judge = train_classifier(everything.x0, everything.label)
    keep_judge(judge)
    labels = everything.label.numpy()
    real_images = ((everything.x0 + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    _, real = judge(real_images)
    predicted, fake = judge(generate(range(len(labels)), labels))
    frechet, floor = halved_frechet(fake, real)
    return DigitsQuality(
        classifier_accuracy=judge.accuracy,
        class_accuracy=float((predicted == labels).mean()),
        frechet=frechet,
        frechet_real=floor,
        ratio=frechet / floor,
        samples=len(labels),
    )


def halved_frechet(fake: NDArray[np.floating], real: NDArray[np.floating]) -> tuple[float, float]:
    """Fréchet distance of samples to real data, and between two halves of the real data.

    Both compare half as many samples as there are, so they share their bias; means over
    ``SPLITS`` random halvings.

    Args:
        fake, real: features [N, D] each; the samples of a row have the same class.
    """
    distances = []
    rng = np.random.default_rng(0)
    for _ in range(SPLITS):
        order = rng.permutation(len(real))
        a, b = order[: len(order) // 2], order[len(order) // 2 :]
        to_samples = (frechet_distance(fake[a], real[b]) + frechet_distance(fake[b], real[a])) / 2
        distances.append((to_samples, frechet_distance(real[a], real[b])))
    frechet, floor = np.mean(distances, axis=0)
    return float(frechet), float(floor)


def checkpoint_generator(checkpoint: Checkpoint) -> Generate:
    """Generate with the slowest average of a checkpoint, by the seed contract."""
    sampler = Sampler(network_from(checkpoint))

    @torch.inference_mode()
    def generate(seeds: range, labels: NDArray[np.int64]) -> NDArray[np.uint8]:
        x1 = torch.from_numpy(gaussian_batch(seeds, checkpoint.spec.shape))
        image: torch.Tensor = sampler(x1, torch.from_numpy(labels))[1]
        return np.asarray(image.numpy())

    return generate

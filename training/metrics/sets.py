"""How far apart are two sets of samples, in features or in the plane?

Fréchet distance is in ``mmf_deploy/frechet.py``. Features are float [N, D]; all of these
depend on N, so only values of equal N compare.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmf_deploy.errors import ShapeError, require
from mmf_deploy.frechet import frechet_distance

Features = NDArray[np.floating]
NEIGHBOURS = 5
KID_SUBSET = 500
KID_SUBSETS = 20


@dataclass(frozen=True)
class SetQuality:
    """Generated samples beside real ones.

    Attributes:
        frechet: Fréchet distance to the real samples.
        kid: squared maximum mean discrepancy with the cubic kernel of KID.
        precision: share of the generated samples that lie among the real ones.
        recall: share of the real samples that lie among the generated ones.
        density: how many real neighbourhoods a generated sample lies in, over their size;
            1 for equal sets.
        coverage: share of the real samples with a generated one in their neighbourhood.
    """

    frechet: float
    kid: float
    precision: float
    recall: float
    density: float
    coverage: float


def compare(fake: Features, real: Features) -> SetQuality:
    """All of them at once.

    Raises:
        ShapeError: the sets do not fit, or have no more samples than neighbours are looked at.
    """
    precision, recall, density, coverage = manifold(fake, real)
    return SetQuality(frechet_distance(fake, real), kid(fake, real), precision, recall, density,
                      coverage)  # fmt: skip


def kid(fake: Features, real: Features, seed: int = 0) -> float:
    """Kernel distance (Bińkowski et al. 2018): unbiased, so it may be below 0 for equal sets.

    The mean over ``KID_SUBSETS`` random subsets of at most ``KID_SUBSET`` samples.
    """
    mmd = require("torchmetrics.image.kid", "train").poly_mmd
    size = min(KID_SUBSET, len(fake), len(real))
    generator = torch.Generator().manual_seed(seed)

    def some(features: Features) -> Tensor:
        rows = torch.randperm(len(features), generator=generator)[:size]
        return torch.from_numpy(np.asarray(features, np.float64))[rows]

    return float(torch.stack([mmd(some(real), some(fake)) for _ in range(KID_SUBSETS)]).mean())


def manifold(
    fake: Features, real: Features, neighbours: int = NEIGHBOURS
) -> tuple[float, float, float, float]:
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    The neighbourhood of a sample is the ball that its k-th nearest neighbour in its own set
    lies on.

    Raises:
        ShapeError: the sets do not fit, or have no more than ``neighbours`` samples.
    """
    if (
        fake.ndim != 2
        or fake.shape[1:] != real.shape[1:]
        or min(len(fake), len(real)) <= neighbours
    ):
        raise ShapeError(
            f"features {fake.shape} and {real.shape}: expected [N, D] and [M, D], "
            f"N, M > {neighbours}"
        )
    a, b = (torch.from_numpy(np.asarray(x, np.float64)) for x in (fake, real))
    apart = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    of_fake, of_real = _radii(a, neighbours), _radii(b, neighbours)
    among_real = apart <= of_real
    precision = among_real.any(1).double().mean()
    recall = (apart <= of_fake[:, None]).any(0).double().mean()
    density = among_real.sum(1).double().mean() / neighbours
    coverage = among_real.any(0).double().mean()
    return float(precision), float(recall), float(density), float(coverage)


def _radii(x: Tensor, neighbours: int) -> Tensor:
    """The distance to the k-th nearest other sample, [N]."""
    apart = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    return apart.kthvalue(neighbours + 1, dim=1).values  # the nearest is the sample itself


def energy_distance(a: Tensor, b: Tensor) -> float:
    """2 E‖a − b‖ − E‖a − a'‖ − E‖b − b'‖ of two sets of vectors [N, D] and [M, D].

    Székely and Rizzo 2013; 0 for equal distributions. Means over all pairs, without each
    sample's distance to itself: unbiased, so it may be below 0 for equal laws.
    """
    a, b = a.double(), b.double()
    within = [torch.cdist(x, x).sum() / (len(x) * (len(x) - 1)) for x in (a, b)]
    return float(2 * torch.cdist(a, b).mean() - within[0] - within[1])

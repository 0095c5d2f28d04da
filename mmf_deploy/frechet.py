"""Fréchet distance between two sets of features."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmf_deploy.errors import ShapeError

Features = NDArray[np.floating]


def gaussian_frechet(mean_a: Features, cov_a: Features, mean_b: Features, cov_b: Features) -> float:
    """|μa − μb|² + tr(Σa + Σb − 2 (Σa Σb)^½): squared 2-Wasserstein distance of two Gaussians.

    Args:
        mean_a, mean_b: [D].
        cov_a, cov_b: [D, D], symmetric and positive semi-definite.
    """
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T
    # √Σa Σb √Σa has the eigenvalues of Σa Σb and is symmetric
    product = np.linalg.eigvalsh(root @ cov_b @ root)
    cross = np.sqrt(np.clip(product, 0.0, None)).sum()
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def frechet_distance(a: Features, b: Features) -> float:
    """Fréchet distance of the Gaussians fitted to two feature sets [N, D] and [M, D].

    With few samples it is biased upwards; compare only values from equal N and M.

    Raises:
        ShapeError: the feature widths differ, or a set has fewer than two rows.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ShapeError(f"features {a.shape} and {b.shape}: expected [N, D] and [M, D], N, M >= 2")
    a, b = a.astype(np.float64), b.astype(np.float64)
    return gaussian_frechet(a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False))

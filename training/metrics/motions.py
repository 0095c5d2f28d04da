"""Errors of motions: paths of points at equal times, float [B, T, D]."""

from __future__ import annotations

from torch import Tensor


def path_error(path: Tensor, reference: Tensor) -> float:
    """Root mean square distance between two paths, over samples and times."""
    return float((path - reference).square().sum(-1).mean().sqrt())


def end_error(path: Tensor, reference: Tensor) -> float:
    """Root mean square distance between the last points."""
    return path_error(path[:, -1:], reference[:, -1:])


def jerk(path: Tensor, duration: float = 1.0) -> float:
    """Root mean square of the third time derivative, by third differences; 0 where quadratic.

    Args:
        path: at least four points a motion.
        duration: time from the first to the last point.
    """
    step = duration / (path.shape[1] - 1)
    third = path[:, 3:] - 3 * path[:, 2:-1] + 3 * path[:, 1:-2] - path[:, :-3]
    return float((third / step**3).square().sum(-1).mean().sqrt())

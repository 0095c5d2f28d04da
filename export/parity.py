"""Image by image, an artefact against the PyTorch sampler it came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from mmf_deploy.engines.base import Engine, Output
from mmf_deploy.errors import ParityError
from mmf_deploy.frechet import gaussian_frechet
from mmf_deploy.nn.judge import Judge

from .reference import Reference

BATCHES = (1, 2, 7, 64)
"""Batch sizes tried in this order, over consecutive seeds; the last one for all that remain."""


@dataclass(frozen=True)
class Parity:
    """Measured differences over all seeds.

    Attributes:
        max_abs, rms: of ``sample``.
        max_levels: of ``image``, in levels of 255; 0 for vectors.
        psnr: peak signal-to-noise ratio of all images together, in dB; of a vector, its peak is
            the range of the reference. Infinite for equal ones, reported as 999.
        psnr_worst: of the worst single image.
        samples: number of samples compared.
        frechet: Fréchet distance to the real data in the judge's features; None without a judge.
        frechet_shift: its relative change against PyTorch's samples.
        same_class: share of samples in which the judge sees the same class as in PyTorch's.
    """

    max_abs: float
    rms: float
    max_levels: int
    psnr: float
    psnr_worst: float
    samples: int
    frechet: float | None = None
    frechet_shift: float | None = None
    same_class: float | None = None

    def as_dict(self) -> dict[str, float]:
        """For the manifest, with three significant digits; without what was not measured."""
        return {k: _short(k, v) for k, v in asdict(self).items() if v is not None}


def _short(name: str, value: float) -> float:
    if isinstance(value, int):
        return value
    return float(f"{value:.4g}" if name.startswith("psnr") else f"{value:.3g}")


def compare(
    engine: Engine,
    reference: Reference,
    judge: Judge | None = None,
    on_progress: Callable[[int], None] = lambda images: None,
) -> tuple[Parity, Output]:
    """Run an open engine over the seeds of the reference.

    Returns:
        the differences, and what the engine gave.
    Raises:
        ParityError: an output of another shape, or values that are not finite.
    """
    output = _run(engine, reference, on_progress)
    difference = output.sample.astype(np.float64) - reference.sample
    if reference.image is None or output.image is None:
        levels = 0
        noise, peak = difference, float(np.ptp(reference.sample))
    else:
        noise = output.image.astype(np.float64) - reference.image
        levels, peak = int(np.abs(noise).max()), 255.0
    each = (noise.reshape(len(noise), -1) ** 2).mean(axis=1)
    frechet, shift, same = judged(judge, reference.image, output.image)
    return Parity(
        max_abs=float(np.abs(difference).max()),
        rms=float(np.sqrt((difference**2).mean())),
        max_levels=levels,
        psnr=psnr(float(each.mean()), peak),
        psnr_worst=psnr(float(each.max()), peak),
        samples=len(reference),
        frechet=frechet,
        frechet_shift=shift,
        same_class=same,
    ), output


def psnr(mean_square: float, peak: float) -> float:
    """Peak signal-to-noise ratio in dB; 999 for no noise at all."""
    return 999.0 if mean_square == 0 else float(10 * np.log10(peak**2 / mean_square))


def _run(engine: Engine, reference: Reference, on_progress: Callable[[int], None]) -> Output:
    inputs = reference.inputs
    parts: list[Output] = []
    start = 0
    while start < len(reference):
        size = BATCHES[min(len(parts), len(BATCHES) - 1)]
        rows = slice(start, min(start + size, len(reference)))
        part = engine.run(
            inputs.noise[rows],
            None if inputs.label is None else inputs.label[rows],
            None if inputs.guidance is None else inputs.guidance[rows],
        )
        expected = reference.sample[rows]
        if (part.image is None) != (reference.image is None):
            raise ParityError(f"{engine.variant.file}: gives no images, or some that none expects")
        if part.sample.shape != expected.shape:
            raise ParityError(
                f"{engine.variant.file}: batch {len(expected)}: shape {part.sample.shape}, "
                f"expected {expected.shape}"
            )
        if not (np.isfinite(part.sample).all() and np.isfinite(expected).all()):
            raise ParityError(
                f"{engine.variant.file}: batch {len(expected)}: values that are not finite"
            )
        parts.append(part)
        start = rows.stop
        on_progress(len(expected))
    images = [p.image for p in parts if p.image is not None]
    return Output(
        np.concatenate([p.sample for p in parts]), np.concatenate(images) if images else None
    )


def judged(
    judge: Judge | None, expected: NDArray[np.uint8] | None, found: NDArray[np.uint8] | None
) -> tuple[float | None, float | None, float | None]:
    """Fréchet distance to the real data, its relative shift, and the share of equal classes."""
    if judge is None or expected is None or found is None or len(found) < 2:
        return None, None, None
    classes, before = judge(expected)
    same, after = judge(found)
    distances = [
        gaussian_frechet(
            f.astype(np.float64).mean(0),
            np.cov(f.astype(np.float64), rowvar=False),
            judge.real_mean,
            judge.real_covariance,
        )
        for f in (before, after)
    ]
    shift = abs(distances[1] - distances[0]) / distances[0]
    return distances[1], shift, float((classes == same).mean())

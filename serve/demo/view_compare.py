"""Variants side by side: the same seeds, the difference made visible, and its size."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from html import escape

import numpy as np
from numpy.typing import NDArray

from mmf_deploy.client.replies import Images
from mmf_deploy.spec import SampleSpec

from . import permalink
from .asked import Asked
from .backend import INSIDE, Backend, Offer
from .markup import described, links, ms, note, picture, plural

IMAGES = 8
"""Seeds in a comparison."""

MOST = 64
"""Differences are amplified so many times at most: one level becomes a quarter of white."""


async def render(backend: Backend, asked: Asked) -> str:
    """Every offer on the same seeds, with its difference to the first.

    Raises:
        MMFError: the service refuses, or is not there.
    """
    about = backend.about
    if len(about.offers) < 2:
        variant = about.offers[0].variant
        if about.where != INSIDE:
            return note(
                f"This service makes images with one variant ({variant}). Open a bundle to compare "
                "all that it has: mmf demo BUNDLE"
            )
        return note(
            f"{about.name} has one variant ({variant}). Export several to compare "
            "them: mmf-export CHECKPOINT --precision fp32,int8"
        )
    count = min(IMAGES, about.max_images)
    steps = [_nearest(offer, asked.steps) for offer in about.offers]
    made = await asyncio.gather(*(
        backend.generate(
            count, seed=asked.seed,
            **replace(asked, steps=k, model=offer.model).wanted,
        )
        for offer, k in zip(about.offers, steps, strict=True)
    ))  # fmt: skip
    first = made[0].array
    gaps = [difference(first, images.array) for images in made[1:]]
    times = amplification(gaps)
    rows = [_row(about.offers[0], steps[0], made[0], about.spec, "the reference")]
    for offer, k, images, gap in zip(about.offers[1:], steps[1:], made[1:], gaps, strict=True):
        row = _row(offer, k, images, about.spec, _size(first, images.array, gap))
        rows.append(row + _strip_of_differences(gap, times, images, about.spec))
    query = permalink.query(asked, about, "compare")
    return (
        f'<div class="mmf-compare">{"".join(f"<section>{row}</section>" for row in rows)}</div>'
        f'<p class="mmf-small">Differences are to {escape(about.offers[0].model)}, amplified '
        f"×{times}: black is equal. PSNR is over these {plural(count, 'image')}; at 40 dB and more "
        f"the eye hardly sees one.</p>{links(query)}"
    )


def _nearest(offer: Offer, steps: int | None) -> int:
    """The number of steps that an offer has closest to what is asked for."""
    return min(offer.steps, key=lambda k: abs(k - (steps or offer.steps[0])))


def difference(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Absolute difference in levels; both uint8 of one shape."""
    return np.maximum(one, other) - np.minimum(one, other)


def psnr(gap: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio in dB of differences in levels; infinite for none."""
    mean = float(np.mean(np.square(gap.astype(np.float64))))
    return math.inf if mean == 0 else 10 * math.log10(255**2 / mean)


def amplification(gaps: list[NDArray[np.uint8]]) -> int:
    """The largest power of two, up to ``MOST``, that keeps every difference below white."""
    largest = max(int(gap.max()) for gap in gaps)
    times = MOST
    while times > 1 and largest * times > 255:
        times //= 2
    return times


def _row(offer: Offer, steps: int, made: Images, spec: SampleSpec, size: str) -> str:
    each = made.timing_ms.get("infer", 0.0) / len(made)
    labels = made.labels or [None] * len(made)
    strip = "".join(
        picture(image, described(spec, seed, label))
        for image, seed, label in zip(made.array, made.seeds, labels, strict=True)
    )
    return (
        f'<h3>{escape(offer.model)} <small>{escape(offer.engine)} on {escape(offer.device)}, '
        f"{escape(offer.precision)}, {plural(steps, 'step')}</small></h3>"
        f'<p class="mmf-measures"><span><b>{ms(each)}</b> ms an image</span>{size}</p>'
        f'<div class="mmf-strip" style="--columns:{len(made)}">{strip}</div>'
    )  # fmt: skip


def _size(first: NDArray[np.uint8], array: NDArray[np.uint8], gap: NDArray[np.uint8]) -> str:
    decibels = psnr(gap)
    if math.isinf(decibels):
        return "<span><b>identical</b> bytes</span>"
    return (
        f"<span><b>{decibels:.1f}</b> dB PSNR</span>"
        f"<span>at most <b>{int(gap.max())}</b> of 255 levels apart</span>"
    )


def _strip_of_differences(
    gap: NDArray[np.uint8], times: int, made: Images, spec: SampleSpec
) -> str:
    loud = np.minimum(gap.astype(np.uint16) * times, 255).astype(np.uint8)
    strip = "".join(
        picture(image, f"difference at seed {seed}, amplified {times} times")
        for image, seed in zip(loud, made.seeds, strict=True)
    )
    return (
        f'<div class="mmf-strip mmf-difference" style="--columns:{len(made)}">{strip}</div>'
    )  # fmt: skip

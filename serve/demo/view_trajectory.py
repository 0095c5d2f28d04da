"""The way from noise to an image, for every number of steps that the bundle has."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from html import escape
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mmf_deploy.client.replies import Images

from . import permalink
from .asked import Asked, offer_of
from .backend import Backend, Offer
from .markup import described, file_name, links, ms, note, plural, tile


async def render(backend: Backend, asked: Asked) -> str:
    """A strip for every number of steps, and their images side by side.

    Raises:
        MMFError: the service refuses, or is not there.
    """
    about = backend.about
    offer = offer_of(about, asked.model)
    if not offer.trajectories:
        return note(_why_none(offer, [o.model for o in about.offers if o.trajectories]))
    ways = await asyncio.gather(*(_way(backend, asked, offer, k) for k in offer.steps))
    noise = next(made.array[0] for made in ways if len(made) > 1)
    strips, results = [], []
    for steps, made in zip(offer.steps, ways, strict=True):
        whole = len(made) > 1
        points = [*made.array] if whole else [noise, made.array[0]]
        tiles = [
            _tile(about.name, asked.seed, steps, 1 - k / (len(points) - 1), point)
            for k, point in enumerate(points)
        ]
        took = f"{plural(steps, 'step')} <small>{ms(made.timing_ms.get('infer', 0.0))} ms</small>"
        strips.append(_strip(took, tiles, offer.steps[-1]))
        name = file_name(about.name, asked.seed, f"{steps}step")
        results.append(tile(points[-1], f"the image of {plural(steps, 'step')}", took, name))
    label = ways[0].labels[0] if ways[0].labels else None
    return (
        f'<p class="mmf-lead">One noise ({escape(described(about.spec, asked.seed, label))}) in '
        "more and more steps: a step is one evaluation of the network, and an arrow here. Time t "
        "runs from 1, all noise, to 0, the image.</p>"
        f'<div class="mmf-ways">{"".join(strips)}</div>'
        f'<section><h3>Side by side</h3><div class="mmf-results">{"".join(results)}</div></section>'
        f"{links(permalink.query(asked, about, 'trajectory'))}"
    )


async def _way(backend: Backend, asked: Asked, offer: Offer, steps: int) -> Images:
    """The points of a path; where a variant gives none, its image alone."""
    wanted = replace(asked, steps=steps, model=offer.model).wanted
    if steps in offer.trajectories:
        return await backend.trajectory(seed=asked.seed, **wanted)
    return await backend.generate(1, seed=asked.seed, **wanted)


def _tile(
    name: str, seed: int, steps: int, time: float, point: NDArray[np.uint8]
) -> tuple[float, str]:
    what = "noise" if time == 1 else "the image" if time == 0 else "on the way"
    file = file_name(name, seed, f"{steps}step", f"t{time:.2g}")
    alt = f"{what}, t = {time:.2g} of {plural(steps, 'step')}, seed {seed}"
    return time, tile(point, alt, f"t = {time:.2g}", file)


def _strip(took: str, tiles: list[tuple[float, str]], most: int) -> str:
    """Tiles on an axis of time that all strips share, so that results stand below each other."""
    at = [round((1 - time) * most) for time, _ in tiles]
    places = [
        f'<div style="grid-column:{2 * column + 1};grid-row:1">{content}</div>'
        for column, (_, content) in zip(at, tiles, strict=True)
    ]
    arrows = [
        f'<i style="grid-column:{2 * left + 2}/{2 * right + 1};grid-row:1"></i>'
        for left, right in pairwise(at)
    ]
    return (
        f'<section><h3>{took}</h3><div class="mmf-way" style="--most:{most}">'
        f"{''.join(places)}{''.join(arrows)}</div></section>"
    )


def _why_none(offer: Offer, others: list[str]) -> str:
    if others:
        return (
            f"{offer.model} keeps no points on the way. Choose another variant: {', '.join(others)}"
        )
    return (
        f"{offer.variant} goes from noise to the image in {plural(offer.steps[0], 'step')} and "
        "keeps nothing of the way. Export more steps to see it: mmf-export CHECKPOINT --steps 1,2,4"
    )

"""From one seed to another: the frames on the way, played and scrubbed in the browser."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Mapping
from html import escape

from mmf_deploy import images
from mmf_deploy.client.replies import Images
from mmf_deploy.errors import MMFError
from mmf_deploy.images import to_pil

from . import permalink
from .asked import Asked, sentence
from .backend import Backend
from .markup import file_name, links, ms, picture, plural

FPS = 12

ANIMATIONS = asyncio.Semaphore(2)
"""Files that are made at the same time."""

LARGE = 256
"""Height in pixels that the animation's file is brought to, about."""


async def render(backend: Backend, asked: Asked) -> str:
    """A player of the frames from ``asked.seed`` to ``asked.end``.

    Raises:
        MMFError: the service refuses, or is not there.
    """
    made = await _frames(backend, asked)
    query = permalink.query(asked, backend.about, "interpolate")
    name = file_name(backend.about.name, asked.seed, "to", asked.end)
    infer = made.timing_ms.get("infer", 0.0)
    save = (
        '<button type="button" class="mmf-link" data-mmf="animation" '
        f'data-query="{escape(query)}" data-name="{escape(name)}.webp">Download animation</button>'
    )
    return (
        '<div class="mmf-stage"><p class="mmf-big" role="status">'
        f'<span class="mmf-number">{ms(infer)}<small> ms</small></span>'
        f"<span>for {plural(len(made), 'frame')}, {ms(infer / len(made))} ms a frame</span></p>"
        f'<div class="mmf-shown">{player(made, asked)}</div><div class="mmf-facts">'
        '<p class="mmf-small">Each frame is an image of its own, made from noise on the way from '
        "the noise of the one seed to that of the other.</p>"
        f"{links(query, save)}</div></div>"
    )


def player(made: Images, asked: Asked) -> str:
    """Frames on top of each other, a button, a scrubber, and all of them small."""
    last = len(made) - 1
    frames = "".join(
        picture(
            image,
            f"frame {k + 1} of {last + 1} from seed {asked.seed} to seed {asked.end}",
            "" if k == 0 else " hidden",
        )
        for k, image in enumerate(made.array)
    )
    return (
        f'<div class="mmf-player" data-fps="{FPS}">'
        f'<div class="mmf-screen">{frames}</div>'
        '<div class="mmf-transport">'
        '<button type="button" class="mmf-play" data-mmf="play" aria-label="Play">'
        "<span></span></button>"
        f'<input type="range" class="mmf-scrub" min="0" max="{last}" value="0" step="1" '
        f'aria-label="Frame, from seed {asked.seed} to seed {asked.end}" '
        f'aria-valuetext="frame 1 of {last + 1}">'
        f"<output>1 / {last + 1}</output></div>"
        f'<p class="mmf-ends"><span>seed {asked.seed}</span><span>seed {asked.end}</span></p>'
        "</div>"
    )


async def animation(backend: Backend, query: Mapping[str, str]) -> dict[str, str]:
    """The animation of a link's interpolation as a file.

    Returns:
        ``data``, an animated WebP as a data: URI, or ``error``, a sentence.
    """
    _, asked, _ = permalink.read(query, backend.about)
    try:
        made = await _frames(backend, asked)
    except MMFError as e:
        return {"error": sentence(e)}
    # beside the loop that answers everybody, and few at a time
    async with ANIMATIONS:
        content = await asyncio.to_thread(webp, made)
    return {"data": "data:image/webp;base64," + base64.b64encode(content).decode()}


def webp(made: Images) -> bytes:
    """An animated WebP, without loss, that goes there and back for ever."""
    scale = images.display_scale(made.array.shape[1], LARGE)
    there = [to_pil(images.enlarged(image, scale)).convert("RGB") for image in made.array]
    out = io.BytesIO()
    there[0].save(
        out,
        format="webp",
        save_all=True,
        append_images=[*there[1:], *there[-2:0:-1]],
        duration=round(1000 / FPS),
        loop=0,
        lossless=True,
        quality=0,
        method=0,
    )
    return out.getvalue()


async def _frames(backend: Backend, asked: Asked) -> Images:
    return await backend.interpolate(asked.seed, asked.end, asked.frames, **asked.wanted)

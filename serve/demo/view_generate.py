"""The first view: images of consecutive seeds, and what they took."""

from __future__ import annotations

from html import escape

from mmf_deploy.client.replies import Images

from . import permalink
from .asked import Asked, offer_of
from .backend import About, Backend
from .bars import Bar, bars
from .baseline import machine, pytorch_ms, steps_of
from .markup import SAVE_GRID, grid, links, ms, plural


async def render(backend: Backend, asked: Asked) -> str:
    """Images of ``asked.count`` seeds, and the milliseconds they took.

    Raises:
        MMFError: the service refuses, or is not there.
    """
    made = await backend.generate(asked.count, seed=asked.seed, **asked.wanted)
    about = backend.about
    pictures = grid(made.array, about.spec, made.seeds, made.labels, about.name)
    query = permalink.query(asked, about)
    return (
        f'<div class="mmf-stage">{headline(made, asked)}<div class="mmf-shown">{pictures}</div>'
        f'<div class="mmf-facts">{facts(made, about, asked)}{links(query, SAVE_GRID)}</div></div>'
    )


def headline(made: Images, asked: Asked) -> str:
    """The milliseconds, large."""
    count, infer = len(made), made.timing_ms.get("infer", 0.0)
    steps = asked.steps or steps_of(made.variant)
    one = "one network evaluation" if steps == 1 else f"{steps} network evaluations"
    one += " each" if count > 1 else ""
    each = f", {ms(infer / count)} ms an image" if count > 1 else ""
    return (
        '<p class="mmf-big" role="status">'
        f'<span class="mmf-number">{ms(infer)}<small> ms</small></span>'
        f"<span>for {plural(count, 'image')}{each},<br> {one}</span></p>"
    )


def facts(made: Images, about: About, asked: Asked) -> str:
    """The time of an image beside PyTorch's, and where the time went."""
    phases = " · ".join(
        f"{word} {ms(made.timing_ms[phase])}"
        for phase, word in (("queue", "queue"), ("infer", "engine"), ("encode", "encoding"))
        if phase in made.timing_ms
    )
    return f'{_beside_pytorch(made, about, asked)}<p class="mmf-small">{phases} ms</p>'


def _beside_pytorch(made: Images, about: About, asked: Asked) -> str:
    offer = offer_of(about, asked.model)
    each_ms = made.timing_ms.get("infer", 0.0) / len(made)
    found = [Bar(f"{made.variant}, {offer.engine}", each_ms)]
    baseline = pytorch_ms(about, asked.steps or steps_of(made.variant))
    if baseline is None:
        return f'{bars(found)}<p class="mmf-small">This bundle does not say what PyTorch takes.</p>'
    found.append(Bar("PyTorch eager", baseline, ours=False))
    where = f" on {machine(about)}" if machine(about) else ""
    batch = "a batch" if len(made) > 1 else "one, too"
    return (
        f'{bars(found)}<p class="mmf-small">PyTorch makes one image at a time (batch 1), measured '
        f"at export{escape(where)}. This engine made {batch}.</p>"
    )

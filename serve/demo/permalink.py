"""Links that give the same picture again: ``?seed=7&label=3&guidance=2&steps=1``.

A value that makes no sense costs a sentence and becomes the default; the rest still counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar
from urllib.parse import urlencode

from mmf_deploy.errors import RequestError
from mmf_deploy.noise import random_seed

from .asked import (
    Asked,
    all_steps,
    class_name,
    counts,
    default_count,
    frame_range,
    guidance_of,
    label_of,
    offer_of,
    one_of,
    seed_of,
    short,
)
from .backend import About

T = TypeVar("T")

VIEWS = ("generate", "compare", "interpolate", "trajectory")
"""What a link can show; the first one if it does not say."""

DIGEST = 12
"""Characters of the bundle's digest in a link: enough to see that it is another."""


def defaults(about: About) -> Asked:
    """What a page without a link shows: random seeds."""
    low, high = frame_range(about)
    return Asked(
        seed=random_seed(),
        count=default_count(about),
        end=random_seed(),
        frames=min(max(24, low), high),
        guidance=about.spec.guidance[0] if about.spec.guidance else None,
        steps=all_steps(about)[0],
        model=about.offers[0].model,
    )


def query(asked: Asked, about: About, view: str = VIEWS[0]) -> str:
    """The query of the link to what is asked for, without the question mark."""
    named: dict[str, Any] = {"seed": asked.seed}
    if view != VIEWS[0]:
        named = {"view": view, **named}
    if view == "interpolate":
        named |= {"to": asked.end, "frames": asked.frames}
    if asked.label is not None:
        named["label"] = class_name(about.spec, asked.label)
    if about.spec.guided and asked.guidance is not None:
        named["guidance"] = f"{asked.guidance:g}"
    if view != "trajectory" and asked.steps is not None:
        named["steps"] = asked.steps
    model = None if view == "compare" else asked.model
    if model is not None:
        named["variant"] = model
    if view == VIEWS[0]:
        named["count"] = asked.count
    named["bundle"] = offer_of(about, model).digest[:DIGEST]
    return urlencode(named)


def read(given: Mapping[str, str], about: About) -> tuple[str, Asked, list[str]]:
    """What a link asks for.

    Args:
        given: its query; names that are none of ours are left alone.
    Returns:
        the view, what is asked for, and a sentence for everything that was not understood.
    """
    asked, complaints = defaults(about), _Complaints()
    low, high = frame_range(about)
    readers: dict[str, tuple[str, Callable[[str], object]]] = {
        "seed": ("seed", seed_of),
        "to": ("end", lambda text: seed_of(text, "to")),
        "frames": ("frames", lambda text: _between("frames", text, low, high)),
        "count": ("count", lambda text: _choice("count", text, counts(about))),
        "label": ("label", lambda text: label_of(text, about.spec)),
        "guidance": ("guidance", lambda text: guidance_of(text, about.spec)),
        "steps": ("steps", lambda text: _choice("steps", text, all_steps(about))),
        "variant": ("model", lambda text: one_of("variant", text, [o.model for o in about.offers])),
    }
    found: dict[str, Any] = {
        field: value
        for name, (field, reader) in readers.items()
        if name in given and (value := complaints.tried(reader, given[name])) is not None
    }
    asked = replace(asked, **found)
    view = complaints.tried(lambda text: one_of("view", text, list(VIEWS)), given.get("view", ""))
    digest = offer_of(about, asked.model).digest
    if (made_with := given.get("bundle")) and not digest.startswith(made_with):
        complaints.said.append(
            f"this link was made with another bundle ({short(made_with)[1:-1]}; this is "
            f"{digest[:DIGEST]}): the picture may differ"
        )
    return view or VIEWS[0], asked, complaints.said


class _Complaints:
    """Sentences about what was not understood."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def tried(self, reader: Callable[[str], T], text: str) -> T | None:
        """What a reader makes of a text; None, and a sentence, if it cannot."""
        if not text:
            return None
        try:
            return reader(text)
        except RequestError as e:
            self.said.append(f"{e}; the link's value is not used")
            return None


def _choice(what: str, text: str, valid: list[int]) -> int:
    return int(one_of(what, text, [str(v) for v in valid]))


def _between(what: str, text: str, low: int, high: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10 and low <= int(text) <= high):
        raise RequestError(
            f"{what} {short(text)}: expected a whole number from {low} to {high}", field=what
        )
    return int(text)

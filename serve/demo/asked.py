"""What a visitor asks for: read from controls and links, refused with a sentence."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from mmf_deploy.errors import MMFError, RequestError, ServiceError, nearest
from mmf_deploy.noise import MAX_SEED
from mmf_deploy.spec import SampleSpec

from .backend import About, Offer

COUNTS = (1, 4, 16, 64)
FRAMES = (8, 48)
"""Fewest and most frames of an interpolation."""

PAGE_PIXELS = 1 << 21
"""Of all images of a page together."""

EACH = -1
"""The control's value for "each image its own class"."""


@dataclass(frozen=True)
class Asked:
    """One set of wishes; every view takes from it what it shows.

    Attributes:
        seed: of the first image; the others count up.
        count: how many images.
        end: seed at the end of an interpolation.
        frames: of an interpolation, both ends included.
        label: class of all images; None gives each seed its own.
        guidance: None is the model's lowest.
        steps: network evaluations; None is what the model has.
        model: which offer; None is the first.
    """

    seed: int
    count: int
    end: int
    frames: int = 24
    label: int | None = None
    guidance: float | None = None
    steps: int | None = None
    model: str | None = None

    @property
    def wanted(self) -> dict[str, Any]:
        """The words of the backend for all but seed and count."""
        return {
            "label": self.label,
            "guidance": self.guidance,
            "steps": self.steps,
            "model": self.model,
        }


def sentence(error: MMFError) -> str:
    """What a visitor gets to read of an error."""
    if isinstance(error, ServiceError) and error.status is not None and error.status < 500:
        # without address and request id: the visitor asked, not a program
        return error.message
    return str(error)


def most_images(about: About) -> int:
    """How many images a page can show: large ones make it heavy."""
    _, height, width = about.spec.shape
    return max(2, min(about.max_images, PAGE_PIXELS // (height * width)))


def counts(about: About) -> list[int]:
    """The numbers of images to choose from."""
    return [count for count in COUNTS if count <= most_images(about)]


def default_count(about: About) -> int:
    """How many images a page starts with."""
    return max(count for count in counts(about) if count <= 16)


def frame_range(about: About) -> tuple[int, int]:
    """Fewest and most frames that can be asked for."""
    most = min(FRAMES[1], most_images(about))
    return min(FRAMES[0], most), most


def all_steps(about: About) -> list[int]:
    """Every number of steps that some offer has, ascending."""
    return sorted({steps for offer in about.offers for steps in offer.steps})


def offer_of(about: About, model: str | None) -> Offer:
    """The offer of a name; the first one if None."""
    return next((o for o in about.offers if o.model == model), about.offers[0])


def seed_of(text: object, what: str = "seed") -> int:
    """A seed from what was typed.

    Raises:
        RequestError: it is none.
    """
    typed = str("" if text is None else text).strip()
    if not re.fullmatch(r"[0-9]{1,19}", typed) or int(typed) > MAX_SEED:
        raise RequestError(
            f"{what} {short(typed)}: expected a whole number from 0 to {MAX_SEED}", field=what
        )
    return int(typed)


def label_of(text: str, spec: SampleSpec) -> int:
    """A class from its name or its number.

    Raises:
        RequestError: there is none.
    """
    if not spec.conditional:
        raise RequestError("label: this model has no classes", field="label")
    if text in spec.class_names:
        return spec.class_names.index(text)
    if re.fullmatch(r"[0-9]{1,9}", text) and int(text) < spec.classes:
        return int(text)
    hint = nearest(text, spec.class_names) if len(text) <= 64 else ""
    have = ", ".join(spec.class_names[:20]) or f"a number from 0 to {spec.classes - 1}"
    raise RequestError(f"label {short(text)}{hint}: expected {have}", field="label")


def class_name(spec: SampleSpec, label: int) -> str:
    """What a class is called."""
    return spec.class_names[label] if spec.class_names else str(label)


def guidance_of(text: str, spec: SampleSpec) -> float:
    """A guidance scale within the model's range.

    Raises:
        RequestError: it is none, or the model takes none.
    """
    if spec.guidance is None:
        raise RequestError("guidance: this model takes none", field="guidance")
    low, high = spec.guidance
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{0,9})?", text) or not low <= float(text) <= high:
        raise RequestError(
            f"guidance {short(text)}: expected a number from {low:g} to {high:g}", field="guidance"
        )
    return float(text)


def one_of(what: str, text: str, valid: list[str]) -> str:
    """One of a few words.

    Raises:
        RequestError: it is none of them.
    """
    if text not in valid:
        raise RequestError(f"{what} {short(text)}: expected {', '.join(valid)}", field=what)
    return text


def short(text: str) -> str:
    """What came, quoted, and not longer than a message should be."""
    return repr(text if len(text) <= 40 else f"{text[:40]}…")

"""The controls, and what their values mean together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from mmf_deploy.noise import MAX_SEED, random_seed

from .asked import EACH, FRAMES, Asked, all_steps, class_name, counts, frame_range, seed_of
from .backend import About

CHIPS = 12
"""So many choices are shown as buttons; more go into a list."""


@dataclass
class Controls:
    """The components whose values make an ``Asked``, by its fields; some models lack some.

    Attributes:
        lock: whether Generate keeps the seed.
        guidance, frames: the ends of their sliders.
    """

    found: dict[str, Any] = field(default_factory=dict)
    lock: Any = None
    guidance: tuple[float, float] = (1.0, 1.0)
    frames: tuple[float, float] = FRAMES

    @property
    def inputs(self) -> list[Any]:
        """In the order that ``asked`` takes their values."""
        return list(self.found.values())

    def asked(
        self, values: Sequence[Any], first: Asked, view: str = "", fresh: bool = False
    ) -> Asked:
        """What the values of the controls ask for.

        Args:
            first: for what has no control.
            view: what is to be shown; where it does not end does not matter to the others.
            fresh: draw a new seed instead of reading the field.
        Raises:
            RequestError: a seed is none.
        """
        given: Mapping[str, Any] = dict(zip(self.found, values, strict=True))
        label = given.get("label", EACH)
        return Asked(
            seed=random_seed() if fresh else seed_of(given["seed"]),
            count=int(given.get("count", first.count)),
            end=seed_of(given["end"], "to seed") if view == "interpolate" else first.end,
            frames=int(_within(given["frames"], self.frames, first.frames)),
            label=None if label in (None, EACH) else int(label),
            guidance=_within(given["guidance"], self.guidance, first.guidance)
            if "guidance" in given
            else first.guidance,
            steps=int(given.get("steps") or first.steps or 1),
            model=given.get("model", first.model),
        )

    def values(self, asked: Asked) -> list[Any]:
        """The values that ask for this, in the order of ``inputs``."""
        shown = {
            **vars(asked),
            "seed": str(asked.seed),
            "end": str(asked.end),
            "label": EACH if asked.label is None else asked.label,
        }
        return [shown[name] for name in self.found]


def seed_field(label: str, elem_id: str, value: int) -> Any:
    """A field for a seed: text, because a browser's numbers end at 2⁵³."""
    return gr.Textbox(
        str(value),
        label=label,
        max_lines=1,
        max_length=40,
        placeholder=f"0 … {MAX_SEED}",
        elem_id=elem_id,
        html_attributes=gr.InputHTMLAttributes(autocomplete="off", spellcheck=False),
        min_width=120,
    )


def choice(choices: list[Any], value: Any, label: str, elem_id: str) -> Any:
    """Buttons for a few choices, a list for many."""
    made = gr.Radio if len(choices) <= CHIPS else gr.Dropdown
    return made(choices, value=value, label=label, elem_id=elem_id, min_width=120)


def model_controls(controls: Controls, about: About, first: Asked) -> None:
    """Class, guidance, steps and variant: those that the model has."""
    spec = about.spec
    if spec.conditional:
        classes = [(class_name(spec, k), k) for k in range(spec.classes)]
        controls.found["label"] = choice(
            [("each its own", EACH), *classes], EACH, "Class", "mmf-class"
        )
    if spec.guidance is not None and spec.guidance[0] < spec.guidance[1]:
        controls.guidance = spec.guidance
        controls.found["guidance"] = _slider(
            spec.guidance, first.guidance, 0.05, "Guidance", "mmf-guidance"
        )
    if len(all_steps(about)) > 1:
        controls.found["steps"] = choice(all_steps(about), first.steps, "Steps", "mmf-steps")
    if len(about.offers) > 1:
        models = [offer.model for offer in about.offers]
        controls.found["model"] = choice(models, first.model, "Variant", "mmf-variant")


def count_control(controls: Controls, about: About, first: Asked) -> None:
    """How many images."""
    controls.found["count"] = choice(counts(about), first.count, "Images", "mmf-count")


def way_controls(controls: Controls, about: About, first: Asked) -> None:
    """Where an interpolation ends, and in how many frames."""
    controls.frames = frame_range(about)
    controls.found["end"] = seed_field("To seed", "mmf-end", first.end)
    controls.found["frames"] = _slider(controls.frames, first.frames, 1, "Frames", "mmf-frames")


def _slider(
    ends: tuple[float, float], value: float | None, step: float, label: str, elem_id: str
) -> Any:
    made: Any = gr.Slider(*ends, value=value, step=step, label=label, elem_id=elem_id, buttons=[])
    # who types 24 has typed 2 before: that is no error, see _within
    made.preprocess = lambda payload: payload
    return made


def _within(value: Any, ends: tuple[float, float], default: float | None) -> float:
    """A slider's number, brought between its ends; the default for an empty field."""
    given = value if isinstance(value, int | float) and value == value else default
    return min(max(float(given or ends[0]), ends[0]), ends[1])

"""The page: what lies where, and what happens when."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import parse_qsl

import gradio as gr

from mmf_deploy.errors import MMFError

from . import (
    permalink,
    view_compare,
    view_generate,
    view_interpolate,
    view_latency,
    view_trajectory,
)
from .about import header, title
from .asked import Asked, sentence
from .backend import Backend
from .controls import Controls, count_control, model_controls, seed_field, way_controls
from .markup import alert

Render = Callable[[Backend, Asked], Awaitable[str]]

VIEWS: dict[str, tuple[str, Render]] = {
    "generate": ("Generate", view_generate.render),
    "compare": ("Compare", view_compare.render),
    "interpolate": ("Interpolate", view_interpolate.render),
    "trajectory": ("Trajectory", view_trajectory.render),
}
"""By the name that links use: the title of the tab, and what fills it."""

NEWEST: dict[str, Any] = {
    "show_progress": "hidden",
    "trigger_mode": "always_last",
    "api_visibility": "private",
}
"""Nothing is drawn over the last result, and of clicks that come too fast the last one counts."""


def build(backend: Backend) -> gr.Blocks:
    """The whole demo of a backend; nothing runs until it is served."""
    blocks = gr.Blocks(title=title(backend.about), analytics_enabled=False)
    with blocks:
        Page(backend, blocks)
    return blocks


@dataclass
class Parts:
    """What handlers write to."""

    view: Any
    status: Any
    tabs: Any
    stages: dict[str, Any]


class Page:
    """Layout and events of one backend."""

    def __init__(self, backend: Backend, blocks: gr.Blocks) -> None:
        self.backend, self.about = backend, backend.about
        self.first = permalink.defaults(self.about)
        self.controls = Controls()
        _html(header(self.about), "mmf-head")
        status = _html("", "mmf-status")
        with gr.Row(elem_id="mmf-main"):
            with gr.Column(elem_id="mmf-left", min_width=0):
                stages, tabs = self._views()
            with gr.Column(elem_id="mmf-panel", min_width=0):
                self._panel()
            with gr.Row(elem_id="mmf-actions"):
                generate = gr.Button("Generate", variant="primary", elem_id="mmf-go", min_width=0)
                dice = gr.Button("New seed", elem_id="mmf-dice", min_width=0)
        self.parts = Parts(gr.State("generate"), status, tabs, stages)
        self._wire(blocks, generate, dice)

    # Layout

    def _views(self) -> tuple[dict[str, Any], Any]:
        stages = {}
        with gr.Tabs(elem_id="mmf-tabs") as tabs:
            self.tab: dict[str, Any] = {}
            for name, (words, _) in VIEWS.items():
                with gr.Tab(words, id=name) as self.tab[name]:
                    if name == "generate":
                        with gr.Row(elem_classes="mmf-tools"):
                            count_control(self.controls, self.about, self.first)
                    if name == "interpolate":
                        with gr.Row(elem_classes="mmf-tools"):
                            way_controls(self.controls, self.about, self.first)
                    stages[name] = self._stage(name)
            with gr.Tab("Latency", id="latency"):
                _html(view_latency.speed(self.about), "mmf-speed")
                self.measure = gr.Button("Measure now", elem_id="mmf-measure", size="md")
                self.now = _html("", "mmf-now")
                _html(view_latency.quality(self.about), "mmf-quality")
        return stages, tabs

    def _stage(self, name: str) -> Any:
        if name != "interpolate":
            return _html("", f"mmf-{name}")

        async def animation(query: object) -> dict[str, str]:
            if not isinstance(query, str):
                return {"error": "expected the query of a link"}
            return await view_interpolate.animation(self.backend, dict(parse_qsl(query)))

        return _html(
            "",
            f"mmf-{name}",
            server_functions=[animation],
            js_on_load="element.mmfAnimation = server.animation;",
        )

    def _panel(self) -> None:
        with gr.Row(elem_id="mmf-seed-row"):
            self.controls.found["seed"] = seed_field("Seed", "mmf-seed", self.first.seed)
            self.controls.lock = gr.Checkbox(False, label="Lock", elem_id="mmf-lock", min_width=80)
        model_controls(self.controls, self.about, self.first)

    # Events

    def _wire(self, blocks: gr.Blocks, generate: Any, dice: Any) -> None:
        found, lock, parts = self.controls.found, self.controls.lock, self.parts
        asking = [parts.view, lock, *self.controls.inputs]
        shown = [parts.status, parts.view, parts.tabs, found["seed"], *parts.stages.values()]
        generate.click(self.generate, asking, shown, **NEWEST)
        dice.click(partial(self.generate, fresh=True), asking, shown, **NEWEST)
        changed = [found["seed"].submit, found["end"].submit, found["frames"].input]
        for name in ("label", "guidance", "steps", "model", "count"):
            if name in found:
                # a list says "input" whenever it loses the focus, too
                is_list = isinstance(found[name], gr.Dropdown)
                changed.append(found[name].select if is_list else found[name].input)
        gr.on(changed, self.again, asking, shown, **NEWEST)
        for name, tab in self.tab.items():
            tab.select(partial(self.turned, name), asking, shown, **NEWEST)
        self.measure.click(self.measured, self.controls.inputs, [parts.status, self.now], **NEWEST)
        blocks.load(self.opened, None, [*shown, *self.controls.inputs], **NEWEST)

    async def generate(self, view: str, lock: bool, *values: Any, fresh: bool = False) -> list[Any]:
        """The buttons: another seed, unless it is kept."""
        return await self._show(view, values, fresh=fresh or not lock)

    async def again(self, view: str, lock: bool, *values: Any) -> list[Any]:
        """The same seed with other settings."""
        return await self._show(view, values)

    async def turned(self, to: str, view: str, lock: bool, *values: Any) -> list[Any]:
        """The same seed in another view; Gradio says so of the first one, too."""
        if to == view:
            return [gr.skip() for _ in range(4 + len(VIEWS))]
        return await self._show(to, values)

    async def opened(self, request: gr.Request) -> list[Any]:
        """The page was opened, perhaps by a link."""
        view, asked, complaints = permalink.read(dict(request.query_params), self.about)
        shown = await self._filled(view, asked, complaints, fresh=False)
        return [*shown, *self.controls.values(asked)]

    async def measured(self, *values: Any) -> list[Any]:
        """Thirty images, one by one."""
        try:
            asked = self.controls.asked(values, self.first)
            return ["", await view_latency.measure(self.backend, asked)]
        except MMFError as e:
            return [alert([sentence(e)]), gr.skip()]

    async def _show(self, view: str, values: tuple[Any, ...], fresh: bool = False) -> list[Any]:
        try:
            asked = self.controls.asked(values, self.first, view, fresh)
        except MMFError as e:
            return self._complaint(view, [sentence(e)])
        return await self._filled(view, asked, [], fresh)

    async def _filled(
        self, view: str, asked: Asked, complaints: list[str], fresh: bool
    ) -> list[Any]:
        """Everything that handlers write to, with one stage filled and the others as they are.

        The seed is written only if it is a fresh one: somebody may be typing another.
        """
        try:
            content = await VIEWS[view][1](self.backend, asked)
        except MMFError as e:
            return self._complaint(view, [*complaints, sentence(e)])
        stages = [content if name == view else gr.skip() for name in VIEWS]
        seed = str(asked.seed) if fresh else gr.skip()
        return [alert(complaints), view, gr.Tabs(selected=view), seed, *stages]

    def _complaint(self, view: str, sentences: list[str]) -> list[Any]:
        """Sentences, and everything else as it is."""
        return [alert(sentences), view, *(gr.skip() for _ in range(2 + len(VIEWS)))]


def _html(content: str, elem_id: str, **options: Any) -> gr.HTML:
    """A place for HTML that looks as this page's style sheet says, and no other."""
    return gr.HTML(content, elem_id=elem_id, apply_default_css=False, padding=False, **options)

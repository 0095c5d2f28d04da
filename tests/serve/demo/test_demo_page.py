"""What happens on each event of the page, without a browser."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import gradio as gr
import pytest
from mmf_deploy.serve.demo.app import VIEWS, Page
from mmf_deploy.serve.demo.asked import EACH

from mmf_deploy.errors import UnreachableError
from mmf_deploy.noise import MAX_SEED
from tests.serve.demo.conftest import GUIDED, offer

SKIP = gr.skip()
STATUS, VIEW, TABS, SEED, FIRST_STAGE = range(5)


@pytest.fixture
def runner():
    """An event loop; without one Gradio would make its own, and leave it behind."""
    with asyncio.Runner() as found:
        yield found


@pytest.fixture
def run(runner):
    """``run(handler, *values, **options)``: what a handler gives."""
    return lambda handler, *given, **options: runner.run(handler(*given, **options))


@pytest.fixture
def make(toy, runner):
    """``make(**about)``: a page of a fake backend."""

    async def page(changes):
        blocks = gr.Blocks(analytics_enabled=False)
        with blocks:
            return Page(toy(**changes), blocks)

    return lambda **changes: runner.run(page(changes))


def values(page, **changes):
    """Values of all controls, in the order that handlers get them."""
    first = page.controls.values(page.first)
    return [changes.get(name, value) for name, value in
            zip(page.controls.found, first, strict=True)]  # fmt: skip


def test_generate_draws_another_seed_unless_it_is_locked(make, run):
    page = make()
    free = {run(page.generate, "generate", False, *values(page, seed="7"))[SEED]
            for _ in range(4)}  # fmt: skip
    assert len(free) > 1
    assert "7" not in free
    kept = run(page.generate, "generate", True, *values(page, seed="7"))
    assert (kept[STATUS], kept[VIEW], kept[SEED]) == ("", "generate", SKIP)
    assert page.backend.asked[-1]["seed"] == 7


def test_the_dice_draws_a_seed_even_if_it_is_locked(make, run):
    page = make()
    found = run(page.generate, "generate", True, *values(page, seed="7"), fresh=True)
    assert found[SEED] == str(page.backend.asked[-1]["seed"]) != "7"


def test_another_setting_leaves_the_seed_field_to_who_is_typing(make, run):
    page = make()
    found = run(page.again, "generate", False, *values(page, seed="7", label=2))
    assert found[SEED] == SKIP
    assert (page.backend.asked[-1]["seed"], page.backend.asked[-1]["label"]) == (7, 2)


@pytest.mark.parametrize("view", VIEWS)
def test_one_view_is_filled_and_the_others_stay_as_they_are(make, run, view):
    page = make(offers=(offer(steps=(1, 2), trajectories=(2,)), offer("int8")))
    found = run(page.again, view, False, *values(page))
    filled = [name for name, stage in zip(VIEWS, found[FIRST_STAGE:], strict=True)
              if stage != SKIP]  # fmt: skip
    assert filled == [view]
    assert found[VIEW] == view


def test_a_tab_is_filled_when_it_is_chosen_and_not_when_the_page_says_it_again(make, run):
    page = make()
    found = run(page.turned, "interpolate", "generate", False, *values(page))
    assert found[VIEW] == "interpolate"
    assert "mmf-player" in found[FIRST_STAGE + list(VIEWS).index("interpolate")]
    again = run(page.turned, "interpolate", "interpolate", False, *values(page))
    assert again == [SKIP] * len(found)


@pytest.mark.parametrize("seed", ["abc", "", None, "-1", "1.5", str(MAX_SEED + 1), "1" * 300])
@pytest.mark.parametrize("event", ["again", "generate"])
def test_a_seed_that_is_none_costs_a_sentence_and_nothing_else(make, run, event, seed):
    page = make()
    found = run(getattr(page, event), "generate", True, *values(page, seed=seed))
    assert f"expected a whole number from 0 to {MAX_SEED}" in found[STATUS]
    assert len(found[STATUS]) < 300
    assert found[TABS:] == [SKIP] * len(found[TABS:])
    assert page.backend.asked == []


def test_a_wrong_end_of_the_interpolation_disturbs_no_other_view(make, run):
    page = make()
    assert run(page.again, "generate", True, *values(page, end="x"))[STATUS] == ""
    found = run(page.again, "interpolate", True, *values(page, end="x"))
    assert "To seed &#x27;x&#x27;" in found[STATUS]


def test_a_service_that_is_gone_costs_a_sentence(make, run):
    page = make()
    page.backend.error = UnreachableError("http://x: gone; is mmf-serve running there?")
    for found in (
        run(page.generate, "generate", False, *values(page)),
        run(page.opened, SimpleNamespace(query_params={})),
        run(page.measured, *values(page)),
    ):
        assert "http://x: gone; is mmf-serve running there?" in found[STATUS]
        assert found[-1] == SKIP or found[-1] in values(page)


def test_a_link_fills_the_controls_and_the_view_that_it_names(make, run):
    page = make(spec=GUIDED, offers=(offer(steps=(1, 2), trajectories=(2,)), offer("int8")))
    query = {"view": "interpolate", "seed": "5", "to": "6", "label": "7", "guidance": "2",
             "steps": "2", "variant": "int8", "frames": "9", "count": "4"}  # fmt: skip
    found = run(page.opened, SimpleNamespace(query_params=query))
    assert found[: VIEW + 1] == ["", "interpolate"]
    shown = dict(zip(page.controls.found, found[FIRST_STAGE + len(VIEWS) :], strict=True))
    assert shown == {"count": 4, "end": "6", "frames": 9, "seed": "5", "label": 2,
                     "guidance": 2.0, "steps": 2, "model": "int8"}  # fmt: skip
    assert page.backend.asked == [
        {"what": "interpolate", "start": 5, "end": 6, "frames": 9, "label": 2, "guidance": 2.0,
         "steps": 2, "model": "int8"}
    ]  # fmt: skip


def test_a_model_has_the_controls_that_it_can_use(make):
    plain = make(spec=GUIDED.model_copy(update={"guidance": None, "classes": 0,
                                                 "class_names": ()}))  # fmt: skip
    assert set(plain.controls.found) == {"count", "end", "frames", "seed"}
    whole = make(spec=GUIDED, offers=(offer(steps=(1, 2)), offer("int8")))
    assert set(whole.controls.found) == {
        "count", "end", "frames", "seed", "label", "guidance", "steps", "model",
    }  # fmt: skip


def test_each_its_own_asks_for_no_class(make, run):
    page = make()
    run(page.again, "generate", False, *values(page, label=EACH))
    assert page.backend.asked[-1]["label"] is None


def test_many_classes_are_a_list_and_few_are_buttons(make):
    many = GUIDED.model_copy(update={"classes": 100, "class_names": ()})
    assert isinstance(make(spec=many).controls.found["label"], gr.Dropdown)
    assert isinstance(make(spec=GUIDED).controls.found["label"], gr.Radio)


@pytest.mark.parametrize(
    ("value", "guidance", "frames"),
    [(2, 2.0, 8), (99, 4.0, 48), (-1, 1.0, 8), (None, 1.0, 24), (float("nan"), 1.0, 24),
     ("x", 1.0, 24), (20.5, 4.0, 20)],
)  # fmt: skip
def test_what_is_typed_beside_a_slider_stays_between_its_ends(make, run, value, guidance, frames):
    page = make(spec=GUIDED)
    changed = values(page, guidance=value, frames=value)
    for name in ("guidance", "frames"):
        assert page.controls.found[name].preprocess(value) is value, "Gradio would make it an error"
    assert run(page.again, "interpolate", True, *changed)[STATUS] == ""
    asked = page.backend.asked[-1]
    assert (asked["guidance"], asked["frames"]) == (guidance, frames)

"""Links give back what they were made of, and survive what people do to them."""

from __future__ import annotations

from urllib.parse import parse_qsl

import pytest
from mmf_deploy.serve.demo import app, permalink
from mmf_deploy.serve.demo.asked import Asked

from mmf_deploy.noise import MAX_SEED
from tests.serve.demo.conftest import GUIDED, about, offer

EVERYTHING = about(
    spec=GUIDED, offers=(offer(steps=(1, 2, 4)), offer("int8", digest="fedcba9876543210"))
)
ASKED = Asked(
    seed=MAX_SEED, count=4, end=17, frames=12, label=1, guidance=2.55, steps=2, model="int8"
)


def read(query, found=EVERYTHING):
    return permalink.read(dict(parse_qsl(query)), found)


def test_every_view_of_a_link_is_one_of_the_page():
    assert tuple(app.VIEWS) == permalink.VIEWS


@pytest.mark.parametrize("view", permalink.VIEWS)
def test_a_link_gives_back_what_it_was_made_of(view):
    found_view, found, complaints = read(permalink.query(ASKED, EVERYTHING, view))
    assert (found_view, complaints) == (view, [])
    kept = {
        "generate": "seed label guidance steps model count",
        "compare": "seed label guidance steps",
        "interpolate": "seed label guidance steps model end frames",
        "trajectory": "seed label guidance model",
    }[view].split()
    for name in kept:
        assert getattr(found, name) == getattr(ASKED, name), name


def test_a_link_is_short_and_names_the_class():
    asked = Asked(seed=7, count=16, end=0, label=0, steps=1, model="fp32")
    assert permalink.query(asked, about()) == (
        "seed=7&label=cat&steps=1&variant=fp32&count=16&bundle=0123456789ab"
    )


@pytest.mark.parametrize("label", [0, 1, 2, None])
def test_a_class_is_known_by_its_name_even_if_that_is_a_number(label):
    asked = Asked(seed=7, count=1, end=0, label=label)
    assert read(permalink.query(asked, about()))[1].label == label


def test_a_page_without_a_link_starts_with_another_seed_each_time():
    seeds = {read("")[1].seed for _ in range(8)}
    assert len(seeds) > 1
    view, asked, complaints = read("")
    assert (view, asked.count, asked.label, asked.guidance, asked.steps, asked.model) == (
        "generate", 16, None, 1.0, 1, "fp32",
    )  # fmt: skip
    assert complaints == []


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("seed=abc", "seed 'abc': expected a whole number from 0 to 9223372036854775807"),
        ("seed=-1", "seed '-1'"),
        (f"seed={MAX_SEED + 1}", "seed '9223372036854775808'"),
        ("seed=1e3", "seed '1e3'"),
        ("seed=٣", "seed '٣'"),
        ("seed=" + "9" * 5000, "seed '9999"),
        ("label=catt", "label 'catt' (did you mean 'cat'?): expected cat, a <b>dog</b>, 7"),
        ("label=9", "label '9'"),
        ("guidance=nan", "guidance 'nan': expected a number from 1 to 4"),
        ("guidance=4.5", "guidance '4.5'"),
        ("steps=3", "steps '3': expected 1, 2, 4"),
        ("variant=fp64", "variant 'fp64': expected fp32, int8"),
        ("count=5", "count '5': expected 1, 4, 16, 64"),
        ("view=nowhere", "view 'nowhere'"),
        ("to=x", "to 'x'"),
        ("frames=1000", "frames '1000': expected a whole number from 8 to 48"),
        ("bundle=ffff", "made with another bundle (ffff; this is 0123456789ab)"),
    ],
)
def test_what_makes_no_sense_costs_a_sentence_and_the_rest_still_counts(query, said):
    view, asked, complaints = read(f"{query}&__theme=dark&unknown=1")
    assert len(complaints) == 1
    assert said in complaints[0]
    assert len(complaints[0]) < 200
    assert view == "generate"
    assert 0 <= asked.seed <= MAX_SEED
    _, other, _ = read(f"{query}&frames=9") if "frames" not in query else read(f"{query}&to=3")
    assert other.frames == 9 or other.end == 3


def test_values_of_a_link_that_the_model_does_not_take_are_told():
    plain = about(spec=GUIDED.model_copy(update={"guidance": None, "classes": 0,
                                                  "class_names": ()}))  # fmt: skip
    _, _, complaints = read("label=1&guidance=2", plain)
    assert complaints == [
        "label: this model has no classes; the link's value is not used",
        "guidance: this model takes none; the link's value is not used",
    ]


def test_what_a_service_allows_bounds_what_a_link_can_ask_for():
    small = about(max_images=5)
    _, asked, complaints = read("count=16&frames=6", small)
    assert (asked.count, asked.frames) == (4, 5)
    assert len(complaints) == 2

"""Images of seeds, and every control that changes them."""

from __future__ import annotations

import re

import numpy as np
import pytest

from mmf_deploy.noise import MAX_SEED
from tests.browser.demo.pages import (
    after,
    choose,
    click,
    made,
    seed,
    shown,
    typed,
    visit,
)


def test_the_images_are_those_of_the_engine(page, digits, engine):
    visit(page, digits)
    found = after(page, typed(page, "141"))
    np.testing.assert_array_equal(
        found, made(engine, range(141, 157), [s % 10 for s in range(141, 157)])
    )
    found = after(page, choose(page, "Class", "5"))
    np.testing.assert_array_equal(found, made(engine, range(141, 157), [5] * 16))
    assert page.get_by_alt_text("5, seed 141", exact=True).is_visible()


def test_images_change_with_the_seed_and_not_without(page, digits):
    visit(page, digits)
    first = after(page, typed(page, "1"))
    np.testing.assert_array_equal(after(page, typed(page, "1")), first)
    other = after(page, typed(page, "2"))
    np.testing.assert_array_equal(other[:-1], first[1:])
    assert (other != first).any()
    np.testing.assert_array_equal(after(page, typed(page, "1")), first)


def test_the_lock_keeps_the_seed_and_new_seed_does_not_mind(page, digits):
    visit(page, digits, "?seed=5")
    lock = page.get_by_label("Lock")
    assert not lock.is_checked()
    after(page, click(page, "Generate"))
    drawn = seed(page).input_value()
    assert drawn != "5"
    lock.check()
    first = shown(page)
    np.testing.assert_array_equal(after(page, click(page, "Generate")), first)
    assert seed(page).input_value() == drawn
    assert (after(page, click(page, "New seed")) != first).any()
    assert seed(page).input_value() != drawn


def test_who_types_a_seed_gets_that_one_from_the_button_too(page, digits, engine):
    visit(page, digits, "?count=1")
    seed(page).fill(str(MAX_SEED))
    page.wait_for_selector("#mmf-lock input:checked")
    found = after(page, click(page, "Generate"))
    np.testing.assert_array_equal(found, made(engine, [MAX_SEED], [MAX_SEED % 10]))


@pytest.mark.parametrize("count", [1, 4, 64])
def test_as_many_images_as_were_asked_for(page, digits, count):
    visit(page, digits)
    assert len(after(page, choose(page, "Images", str(count)))) == count
    assert page.get_by_text(re.compile(f"for {count} images?\\b")).is_visible()


def test_steps_and_variant_change_the_image_and_the_words(page, digits):
    visit(page, digits, "?seed=3")
    one = shown(page)
    four = after(page, choose(page, "Steps", "4"))
    assert (four != one).any()
    assert page.get_by_text("4 network evaluations each").is_visible()
    assert page.get_by_text("fp32-4step, onnxruntime").is_visible()
    whole = after(page, choose(page, "Variant", "int8"))
    assert (whole != four).any()
    assert page.get_by_text("int8-4step, onnxruntime").is_visible()


def test_guidance_moves_with_the_keys_and_moves_the_images(page, guided):
    visit(page, guided, "?seed=3&count=1&label=0")
    before = shown(page)
    slider = page.get_by_label("range slider for Guidance")
    slider.focus()
    found = after(page, lambda: slider.press("End"))
    # the tiny model adds (guidance - 1) / 100 · 127.5 levels
    assert 3 <= np.abs(found.astype(int) - before).max() <= 5
    assert "guidance=4" in page.get_by_role("link", name="Open in a new page").get_attribute("href")


def test_a_number_typed_beside_the_slider_may_be_on_its_way(page, guided):
    visit(page, guided, "?seed=3&count=1&label=0")
    before = shown(page)
    number = page.get_by_label("number input for Guidance")
    found = after(page, lambda: number.fill("99"))
    assert 3 <= np.abs(found.astype(int) - before).max() <= 5
    number.fill("0")
    number.blur()
    page.wait_for_timeout(500)
    assert page.get_by_text("Error").count() == 0
    assert page.get_by_role("alert").count() == 0


def test_a_class_of_many_is_chosen_from_a_list_by_its_name(page, guided):
    visit(page, guided, "?seed=3&count=1")
    assert page.get_by_role("combobox", name="Class").input_value() == "each its own"

    def pick():
        page.get_by_role("combobox", name="Class").click()
        page.get_by_role("combobox", name="Class").fill("class</b> 13")
        page.get_by_role("option", name="<b>class</b> 13").click()

    after(page, pick)
    assert page.get_by_alt_text("<b>class</b> 13, seed 3").count() == 1


def test_what_is_typed_is_not_written_over_by_another_answer(page, guided):
    visit(page, guided, "?seed=3")
    page.get_by_role("combobox", name="Class").click()
    seed(page).fill("12345")
    page.wait_for_timeout(500)
    assert seed(page).input_value() == "12345"

"""The first look: nothing overlaps, everything has a name, and the keyboard reaches it."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from PIL import Image

from tests.browser.demo.pages import (
    TABS,
    after,
    shown,
    tab,
    to_the_end,
    visit,
)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_every_view_is_whole_labelled_and_quiet(
    new_page, digits, screenshot, no_overlap, all_labelled, width, scheme
):
    page = new_page(width, 844 if width < 500 else 900, scheme, reduced_motion="reduce")
    visit(page, digits, "?seed=7")
    assert page.title() == "digits: noise to image in one step"
    for name in TABS:
        tab(page, name)
        screenshot(page, f"demo-{name.lower()}-{width}-{scheme}")
        to_the_end(page)
        no_overlap(page)
        all_labelled(page)
    tab(page, "Generate")
    page.get_by_text("How it works").click()
    to_the_end(page)
    no_overlap(page)
    assert page.get_by_text("average velocity times", exact=False).is_visible()


@pytest.mark.parametrize("width", [390, 1440])
def test_a_model_with_everything_is_whole_too(
    new_page, guided, screenshot, no_overlap, all_labelled, width
):
    page = visit(new_page(width, 844), guided, "?seed=7&count=64")
    screenshot(page, f"demo-guided-{width}")
    to_the_end(page)
    no_overlap(page)
    all_labelled(page)
    assert page.locator("b b, figcaption b > b").count() == 0, "a class name became an element"
    assert page.get_by_alt_text("<b>class</b> 7, seed 7").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_handle_of_a_slider_stands_out_at_its_lowest_place(new_page, guided, scheme):
    page = visit(new_page(color_scheme=scheme), guided, "?count=1")
    slider = page.get_by_label("range slider for Guidance")
    assert slider.input_value() == "1"
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    with Image.open(io.BytesIO(page.screenshot())) as shot:
        middle, left = int(box["y"] + box["height"] / 2), int(box["x"])
        handle, ground = (luminance(shot.getpixel((left + x, middle))) for x in (7, -4))
    # WCAG 2.2, 1.4.11: what a control is recognised by
    assert (max(handle, ground) + 0.05) / (min(handle, ground) + 0.05) >= 3


def luminance(rgb):
    """Relative luminance of a pixel in sRGB, 0 ... 1 (WCAG 2.2)."""
    share = np.asarray(rgb[:3]) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_the_first_page_shows_images_and_their_time_beside_pytorch_s(page, digits):
    visit(page, digits)
    assert shown(page).shape == (16, 8, 8, 1)
    said = page.locator("#mmf-generate").inner_text()
    assert re.search(r"[\d.]+ ms\s+for 16 images, [\d.]+ ms an image", said)
    assert re.search(r"PyTorch eager\s+[\d.]+ ms an image", said)
    assert re.search(r"queue [\d.]+ · engine [\d.]+ · encoding [\d.]+ ms", said)


def test_screenshot_of_the_demo(page, digits, screenshot):
    visit(page, digits, "?seed=7")
    screenshot(page, "demo", full_page=False)


def test_everything_is_reached_and_used_with_the_keyboard(page, digits):
    visit(page, digits, "?seed=7")
    reached = []
    page.locator("summary").focus()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("""() => {
            const e = document.activeElement, s = getComputedStyle(e), l = e.closest('label');
            const ring = (x) => x && getComputedStyle(x).outlineStyle !== 'none';
            return [e.id || e.type || e.tagName, ring(e) || ring(l) || s.boxShadow !== 'none']
        }"""))  # fmt: skip
        if reached[-1][0] == "mmf-dice":
            break
    names = [name for name, _ in reached]
    assert {"radio", "checkbox", "text", "mmf-go", "mmf-dice"} <= set(names)
    assert names.count("radio") == 4, "one stop a group"
    assert [name for name, visible in reached if not visible] == []
    page.locator("#mmf-class input:checked").focus()
    after(page, lambda: page.keyboard.press("ArrowRight"))
    assert page.get_by_alt_text("0, seed 7", exact=True).is_visible()
    page.locator("#mmf-go").focus()
    after(page, lambda: page.keyboard.press("Enter"))

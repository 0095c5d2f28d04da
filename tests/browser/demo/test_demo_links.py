"""Links that give the same pictures, and pictures as files."""

from __future__ import annotations

import numpy as np
from PIL import Image

from mmf_deploy import images
from mmf_deploy.client.replies import pixels
from tests.browser.demo.pages import (
    after,
    choose,
    click,
    seed,
    shown,
    visit,
)


def test_a_permalink_gives_the_same_picture_in_a_new_page(page, guided):
    visit(page, guided)
    slider = page.get_by_label("range slider for Guidance")
    slider.focus()
    after(page, lambda: slider.press("End"))
    after(page, choose(page, "Steps", "2"))
    after(page, choose(page, "Images", "4"))
    found = after(page, click(page, "New seed"))
    with page.expect_popup() as popup:
        page.get_by_role("link", name="Open in a new page").click()
    other = popup.value
    np.testing.assert_array_equal(shown(other), found)
    assert seed(other).input_value() == seed(page).input_value()
    assert other.get_by_label("range slider for Guidance").input_value() == "4"
    assert other.locator("#mmf-steps input:checked").input_value() == "2"
    assert other.locator(".mmf-alert").count() == 0


def test_the_copied_link_is_the_link(new_page, digits):
    page = visit(new_page(permissions=["clipboard-read", "clipboard-write"]), digits)
    click(page, "Copy link")()
    page.get_by_role("button", name="Copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    href = page.get_by_role("link", name="Open in a new page").get_attribute("href")
    assert copied == f"{digits}/{href}"
    found = shown(page)
    np.testing.assert_array_equal(shown(visit(page, copied)), found)


def test_a_link_that_makes_no_sense_gets_sentences_and_a_page(page, digits):
    visit(page, digits, "?seed=abc&label=x&count=4&bundle=ffff")
    said = page.get_by_role("alert").inner_text()
    assert "Seed 'abc': expected a whole number" in said
    assert "Label 'x': expected 0, 1, 2" in said
    assert "made with another bundle" in said
    assert len(shown(page)) == 4
    after(page, click(page, "Generate"))
    assert page.get_by_role("alert").count() == 0


def test_images_and_grid_are_saved_as_files(page, digits):
    visit(page, digits, "?seed=7&count=4")
    found = shown(page)
    with page.expect_download() as download:
        page.get_by_alt_text("7, seed 7", exact=True).click()
    assert download.value.suggested_filename == "digits-7-7.png"
    np.testing.assert_array_equal(pixels(download.value.path().read_bytes()), found[0])
    with page.expect_download() as download:
        click(page, "Download grid")()
    assert download.value.suggested_filename == "digits-4-from-7.png"
    with Image.open(download.value.path()) as saved:
        grid = np.asarray(saved.convert("L"))
    np.testing.assert_array_equal(grid, images.grid(found, scale=8)[:, :, 0])

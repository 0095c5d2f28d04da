"""Every control of the static page does what it says, and a link gives the same picture."""

from __future__ import annotations

import numpy as np
import pytest

from mmf_deploy import images
from mmf_deploy.noise import MAX_SEED, gaussian_batch, spherical
from tests.browser.web.pages import (
    COLOURS,
    LEVELS,
    expected,
    generate,
    levels,
    pixels,
    shown,
)


def test_images_change_with_the_seed_and_not_without(visit, page, digits):
    visit(page, digits)
    page.get_by_label("Class", exact=True).select_option("7")
    shown(page, "label=7")
    generate(page, 5)
    first = pixels(page)
    assert page.get_by_label("Keep this seed").is_checked()
    page.get_by_role("button", name="Generate").click()
    page.wait_for_selector("#status:has-text('Same seed, same images')")
    np.testing.assert_array_equal(pixels(page), first)
    generate(page, 6)
    # seeds 6 … 21 after 5 … 20: all but one were there before
    np.testing.assert_array_equal(pixels(page)[:-1], first[1:])
    noise = gaussian_batch(list(range(6, 22)), digits.spec.shape)
    assert levels(pixels(page), expected(digits, noise, [7] * 16)) <= LEVELS
    page.get_by_label("Keep this seed").uncheck()
    page.get_by_role("button", name="Generate").click()
    page.wait_for_selector('#grid:not([data-shown*="seed=6&"])')
    assert page.get_by_label("Seed", exact=True).input_value() != "6"


def test_dice_gives_another_seed_and_counts_and_classes_other_grids(visit, page, digits):
    visit(page, digits)
    page.get_by_role("button", name="Another seed").click()
    page.wait_for_selector('#grid:not([data-shown*="seed=0&"])')
    for count in (1, 4, 64):
        page.locator("#n").get_by_label(str(count), exact=True).check()
        page.wait_for_selector(f'#grid[data-shown$="n={count}"]')
        assert page.locator("#grid figure").count() == count
    generate(page, 11)
    page.get_by_label("Class", exact=True).select_option("all")
    shown(page, "label=all")
    noise = gaussian_batch([11] * 10, digits.spec.shape)
    assert levels(pixels(page), expected(digits, noise, range(10))) <= LEVELS


def test_steps_are_another_graph_and_show_the_way(visit, page, digits):
    visit(page, digits, "?seed=3&n=4")
    seen = {1: pixels(page)}
    assert page.locator("#journey canvas").count() == 2
    noise = gaussian_batch([3, 4, 5, 6], digits.spec.shape)
    for steps in (2, 4):
        page.locator("#steps").get_by_label(str(steps), exact=True).check()
        page.wait_for_selector(f"#journey-caption:has-text('{steps} evaluations')")
        page.wait_for_selector(f"#journey .frame:nth-child({steps + 1})")
        shown(page, f"steps={steps}")
        seen[steps] = pixels(page)
        server = expected(digits, noise, [3, 4, 5, 6], steps=steps)
        assert levels(seen[steps], server) <= LEVELS
        way = pixels(page, "#journey canvas")
        assert len(way) == steps + 1
        np.testing.assert_array_equal(way[0][:, :, :1], images.to_uint8(noise[:1])[0])
        assert levels(way[-1], seen[steps][0]) <= 1
    assert levels(seen[1], seen[2]) > LEVELS
    # another image, another way
    page.locator("#grid .pick").nth(2).click()
    page.wait_for_selector("#journey-caption:has-text('seed 5')")


def test_guidance_and_class_names_reach_the_network(visit, page, colours, tiny_formula):
    visit(page, colours, "?seed=9&n=4&label=dog")
    assert page.get_by_label("Class", exact=True).locator("option:checked").inner_text() == "dog"
    noise = gaussian_batch([9, 10, 11, 12], COLOURS.shape)

    def formula(label, guidance):
        ones = np.ones(4, np.float32)
        return images.to_uint8(tiny_formula(COLOURS, noise, ones * label, ones * guidance))

    assert levels(pixels(page), formula(1, 1.0)) <= 1
    slider = page.get_by_role("slider", name="Guidance")
    slider.fill("4")
    shown(page, "guidance=4")
    assert levels(pixels(page), formula(1, 4.0)) <= 1
    slider.focus()
    slider.press("ArrowLeft")
    shown(page, "guidance=3.97")
    assert page.inner_text("#guidance-value") == "3.97"
    page.get_by_label("Class", exact=True).select_option("a <b>bird</b>")
    shown(page, "label=2")
    assert levels(pixels(page), formula(2, 3.97)) <= 1
    assert page.locator("#grid figcaption .name").first.inner_text() == "a <b>bird</b>"
    page.complaints[:] = [c for c in page.complaints if "404" not in c]  # of measured.json


def test_permalink_opens_the_same_picture(visit, page, new_page, digits):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    visit(page, digits)
    page.get_by_label("Class", exact=True).select_option("4")
    page.locator("#steps").get_by_label("2", exact=True).check()
    page.locator("#n").get_by_label("4", exact=True).check()
    generate(page, MAX_SEED - 3)
    page.get_by_role("button", name="Copy link").click()
    page.wait_for_selector("#status:has-text('Link copied')")
    link = page.evaluate("navigator.clipboard.readText()")
    assert link.endswith(f"/?seed={MAX_SEED - 3}&label=4&steps=2&n=4")
    page.wait_for_url(link)
    other = new_page()
    other.goto(link)
    shown(other, f"seed={MAX_SEED - 3}")
    np.testing.assert_array_equal(pixels(other), pixels(page))
    assert other.get_by_label("Class", exact=True).input_value() == "4"
    assert other.get_by_label("Keep this seed").is_checked()


def test_address_with_values_that_do_not_fit_says_so_and_shows_the_rest(visit, page, digits):
    visit(page, digits, "?seed=abc&n=5&steps=2&label=elephant")
    shown(page, "seed=0&label=each&steps=2&n=16")
    said = page.inner_text("#seed-problem")
    for part in ("seed=abc in the address: expected a whole number from 0 to 9223372036854775807.",
                 "n=5 in the address: expected 1, 4, 16, 64.", "label=elephant"):  # fmt: skip
        assert part in said


def test_who_changes_steps_twice_gets_the_images_of_the_last_choice(visit, page, digits):
    visit(page, digits, "?seed=3&n=64")
    waiting = []
    page.route("**/model.fp32-4step.onnx*", lambda route: waiting.append(route))
    page.locator("#steps").get_by_label("4", exact=True).check()
    while not waiting:  # the four steps are on their way
        page.wait_for_timeout(10)
    page.locator("#steps").get_by_label("1", exact=True).check()
    waiting[0].continue_()
    page.wait_for_selector("#status:has-text('64 images in')")
    shown(page, "steps=1")
    page.wait_for_timeout(300)  # what came too late would be seen by now
    noise = gaussian_batch(list(range(3, 67)), digits.spec.shape)
    server = expected(digits, noise, [seed % 10 for seed in range(3, 67)])
    assert levels(pixels(page), server) <= LEVELS
    assert "one evaluation" in page.inner_text("#journey-caption")
    assert "model.fp32.onnx" in page.inner_text("#facts")


@pytest.mark.parametrize("query", [f"?seed={MAX_SEED}", f"?seed={MAX_SEED - 2}&n=4"])
def test_address_whose_last_seed_does_not_exist_says_so(visit, page, digits, query):
    visit(page, digits, query)
    shown(page, "seed=0&")
    assert "the seed may be at most" in page.inner_text("#seed-problem")


def test_seed_that_is_none_is_a_sentence_beside_the_field_and_loses_nothing(visit, page, digits):
    visit(page, digits, "?seed=21&n=4")
    before = pixels(page)
    field = page.get_by_label("Seed", exact=True)
    for text in ("letters", "-1", "1.5", "", str(MAX_SEED + 1)):
        field.fill(text)
        field.press("Enter")
        assert "is no seed. Type a whole number from 0 to" in page.inner_text("#seed-problem")
        assert field.get_attribute("aria-invalid") == "true"
        assert field.input_value() == text
        np.testing.assert_array_equal(pixels(page), before)
        field.fill("21")
        field.press("Enter")
        page.wait_for_selector("#seed-problem", state="hidden")
        np.testing.assert_array_equal(pixels(page), before)


def test_last_seed_of_a_grid_must_exist(visit, page, digits):
    visit(page, digits)
    page.get_by_label("Seed", exact=True).fill(str(MAX_SEED))
    said = page.inner_text("#seed-problem")
    assert said == f"For 16 images the seed may be at most {MAX_SEED - 15}."
    page.locator("#n").get_by_label("1", exact=True).check()
    shown(page, f"seed={MAX_SEED}&")
    assert not page.locator("#seed-problem").is_visible()


def test_interpolation_scrubs_along_the_arc(visit, page, digits):
    visit(page, digits)
    ends = gaussian_batch([3, 8], digits.spec.shape)
    scrub = page.get_by_role("slider", name="Place between the two seeds")
    for fraction in (0.0, 0.25, 0.5, 1.0):
        scrub.evaluate(
            "(e, value) => { e.value = value; e.dispatchEvent(new Event('input')); }", fraction
        )
        noise = spherical(ends[0], ends[1], fraction)[None]
        found = pixels(page, "#between-image")
        assert levels(found, expected(digits, noise, [3])) <= LEVELS
        assert page.inner_text("#between-caption") == (
            f"{100 * fraction:.0f}% of the way from seed 3 to seed 8, class 3"
        )
    scrub.press("Home")
    scrub.press("ArrowRight")
    assert page.inner_text("#between-caption").startswith("1% of the way")


def test_interpolation_plays_pauses_and_takes_other_seeds(visit, page, digits):
    visit(page, digits)
    page.get_by_role("button", name="Play").click()
    page.wait_for_selector("#between-caption:not(:text-matches('^[0-9]%'))")
    page.get_by_role("button", name="Pause").click()
    place = page.input_value("#scrub")
    page.wait_for_timeout(150)
    assert page.input_value("#scrub") == place
    page.get_by_label("To seed", exact=True).fill("no")
    page.get_by_label("To seed", exact=True).press("Tab")
    assert "“no” is no seed." in page.inner_text("#between-problem")
    page.get_by_label("To seed", exact=True).fill("77")
    page.get_by_label("To seed", exact=True).press("Tab")
    page.wait_for_selector("#between-caption:has-text('to seed 77')")
    assert not page.locator("#between-problem").is_visible()
    page.get_by_label("Class", exact=True).select_option("6")
    page.wait_for_selector("#between-caption:has-text('class 6')")


def test_everything_works_by_keyboard(visit, page, digits):
    visit(page, digits, "?n=4")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "seed":
            break
    page.keyboard.press("Control+a")
    page.keyboard.type("123")
    page.keyboard.press("Enter")
    shown(page, "seed=123&")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.className") == "pick":
            break
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.wait_for_selector("#journey-caption:has-text('seed 126')")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Tab")
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    assert download.value.suggested_filename == "digits-seed126-class6.png"

"""Interpolation, comparison, trajectory, latency."""

from __future__ import annotations

import io
import re

import numpy as np
from PIL import Image

from mmf_deploy import images
from mmf_deploy.noise import gaussian_batch, spherical
from tests.browser.demo.pages import (
    after,
    click,
    decoded,
    made,
    shown,
    tab,
    visit,
)


def test_interpolation_is_scrubbed_played_and_saved(new_page, digits, engine):
    page = visit(new_page(reduced_motion="reduce"), digits, "?seed=7&label=3")
    tab(page, "Interpolate")

    def end():
        page.get_by_role("textbox", name="To seed").fill("8")
        page.get_by_role("textbox", name="To seed").press("Enter")

    frames = after(page, end, "interpolate")
    start, stop = gaussian_batch([7, 8], engine.spec.shape)
    points = np.stack([spherical(start, stop, k / 23) for k in range(24)])
    np.testing.assert_array_equal(frames, engine.generate(points, np.array([3] * 24)))

    scrub = page.get_by_label("Frame, from seed 7 to seed 8")
    visible = page.locator("#mmf-interpolate .mmf-screen img:visible")

    def at(k):
        assert visible.count() == 1
        np.testing.assert_array_equal(decoded(visible.get_attribute("src")), frames[k])
        assert page.get_by_text(f"{k + 1} / 24", exact=True).is_visible()

    at(0)
    scrub.focus()
    scrub.press("ArrowRight")
    at(1)
    scrub.press("End")
    at(23)
    scrub.fill("10")
    at(10)
    click(page, "Play")()
    page.wait_for_selector("#mmf-interpolate output:not(:text-is('11 / 24'))")
    click(page, "Pause")()
    page.get_by_role("button", name="Play").wait_for()
    with page.expect_download() as download:
        click(page, "Download animation")()
    assert download.value.suggested_filename == "digits-7-to-8.webp"
    with Image.open(io.BytesIO(download.value.path().read_bytes())) as movie:
        assert movie.n_frames == 2 * 24 - 2


def test_an_interpolation_plays_by_itself_unless_motion_is_unwelcome(new_page, digits):
    page = visit(new_page(), digits, "?view=interpolate&seed=7")
    page.get_by_role("button", name="Pause").wait_for()
    calm = visit(new_page(reduced_motion="reduce"), digits, "?view=interpolate&seed=7")
    calm.get_by_role("button", name="Play").wait_for()


def test_an_interpolation_has_its_own_link_and_number_of_frames(new_page, digits):
    page = visit(new_page(reduced_motion="reduce"), digits, "?view=interpolate&seed=7&to=9")
    slider = page.get_by_label("range slider for Frames")
    slider.focus()
    found = after(page, lambda: slider.press("Home"), "interpolate")
    assert len(found) == 8
    href = page.locator("#mmf-interpolate a").get_attribute("href")
    other = visit(new_page(reduced_motion="reduce"), digits, href)
    np.testing.assert_array_equal(shown(other, "interpolate"), found)


def test_variants_are_compared_on_the_same_seeds(page, digits, engine):
    visit(page, digits, "?seed=7")
    tab(page, "Compare")
    first, second, difference = np.split(shown(page, "compare"), 3)
    np.testing.assert_array_equal(first, made(engine, range(7, 15), [7, 8, 9, 0, 1, 2, 3, 4]))
    gap = np.abs(first.astype(int) - second)
    said = page.locator("#mmf-compare").inner_text()
    times = int(re.search(r"amplified ×(\d+)", said)[1])
    np.testing.assert_array_equal(difference, np.minimum(gap * times, 255))
    psnr = 10 * np.log10(255**2 / np.mean(gap.astype(float) ** 2))
    assert f"{psnr:.1f} dB PSNR" in said
    assert f"at most {gap.max()} of 255 levels apart" in said


def test_one_variant_has_nothing_to_compare_with_and_says_so(page, guided):
    visit(page, guided)
    tab(page, "Compare")
    assert (
        "mmf-export CHECKPOINT --precision fp32,int8" in page.locator("#mmf-compare").inner_text()
    )


def test_the_trajectory_goes_from_noise_to_the_image(page, digits):
    visit(page, digits, "?seed=7&count=1")
    one = shown(page)
    tab(page, "Trajectory")
    strips = page.locator(".mmf-way")
    assert [strips.nth(k).locator("img").count() for k in range(3)] == [2, 3, 5]
    noise = images.to_uint8(gaussian_batch([7], (1, 8, 8)))
    points = shown(page, "trajectory")
    for k in (0, 2, 5):
        np.testing.assert_array_equal(points[k], noise[0])
    np.testing.assert_array_equal(points[1], one[0])
    results = points[10:]
    np.testing.assert_array_equal(results, points[[1, 4, 9]])


def test_latency_is_measured_at_export_and_now(page, digits):
    visit(page, digits)
    tab(page, "Latency")
    said = page.get_by_role("tabpanel").filter(visible=True).inner_text()
    for words in ("1 step", "4 steps", "PyTorch eager", "Class accuracy", "Fréchet distance"):
        assert words in said
    click(page, "Measure now")()
    page.get_by_text("Median of 30 images, one at a time.").wait_for()
    assert re.search(r"fp32, 1 step: engine\s+[\d.]+ ms an image p90 [\d.]+",
                     page.locator("#mmf-now").inner_text())  # fmt: skip
    click(page, "Generate")()
    page.wait_for_selector("[role=tab][aria-selected=true]:has-text('Generate')")

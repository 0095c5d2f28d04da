"""The static page on any server, on any screen: small, whole, and plain about what is missing."""

from __future__ import annotations

import re
from itertools import product

import pytest
from mmf_deploy.export.to_web import first_image_bytes

from mmf_deploy.noise import MAX_SEED
from tests.browser.web.pages import (
    LEVELS,
    SEED,
    generate,
)


def test_speed_stands_beside_the_baseline_of_the_bundle(visit, page, digits):
    visit(page, digits)
    rows = [row.inner_text().split("\n") for row in page.locator("#speed .row").all()]
    record = digits.measured()
    assert [row[0] for row in rows] == [
        "This browser", "PyTorch, eager", "ONNX Runtime, as a server runs it",
    ]  # fmt: skip
    assert record["machine"]["cpu"] in " ".join(rows[1])
    milliseconds = [float(" ".join(row).rsplit(" ms", 1)[0].split()[-1]) for row in rows]
    assert 0.01 < milliseconds[0] < 1000
    assert milliseconds[1] == pytest.approx(record["pytorch"]["1"], rel=0.05)
    assert "recorded when the model was exported" in page.inner_text("#speed")
    assert re.search(r"^16 images in .* each\.", page.inner_text("#status"))


def test_bundle_without_measurements_says_so(visit, page, colours):
    visit(page, colours)
    assert "this bundle carries no baseline" in page.inner_text("#speed")
    page.complaints[:] = [c for c in page.complaints if "404" not in c]


def test_what_the_first_image_needs_is_small_and_so_is_the_folder(visit, page, digits):
    server = visit(page, digits, ready=False)
    page.wait_for_selector("#grid[data-shown]")
    asked = {path.partition("?")[0].lstrip("/") for path in server.requested} - {""}
    sizes = {f.name: f.stat().st_size for f in digits.path.iterdir()}
    later = {"golden.npz", "measured.json"}
    assert sum(sizes[name] for name in asked - later) + sizes["index.html"] <= 5e6
    assert not asked & {"ort-webgpu.wasm.gz", "ort-webgpu.js"}
    assert first_image_bytes(digits.path, digits.variant()) <= 5e6
    assert sum(sizes.values()) <= 30e6
    page.wait_for_selector("html[data-ready]")
    assert page.evaluate("performance.getEntriesByName('first image').length") == 1


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("bundle.json", "bundle.json could not be fetched: the server answered 404"),
        ("model.fp32.onnx", "model.fp32.onnx could not be fetched: the server answered 404"),
        ("ort-wasm.wasm.gz", "ort-wasm.wasm.gz could not be fetched: the server answered 404"),
        ("ort-wasm.js", "ort-wasm.js could not be fetched. The folder has to be copied whole."),
        ("worker.js", "could not start: worker.js was not loaded"),
    ],
)
def test_file_that_is_missing_is_a_sentence(visit, page, digits, file, said):
    page.route(f"**/{file}*", lambda route: route.fulfill(status=404))
    visit(page, digits, ready=False)
    page.wait_for_selector("#problem:not([hidden])")
    assert said in page.inner_text("#problem")
    assert page.inner_text("#status") == "No images."
    page.complaints[:] = [c for c in page.complaints if "404" not in c]


@pytest.mark.parametrize(
    ("file", "body", "said"),
    [
        ("bundle.json", "<html>", "bundle.json is not what the export wrote"),
        ("golden.npz", "PK", "golden.npz is not whole"),
    ],
)
def test_file_that_is_damaged_is_a_sentence(visit, page, digits, file, body, said):
    page.route(f"**/{file}*", lambda route: route.fulfill(body=body))
    visit(page, digits, ready=False)
    page.wait_for_selector(f":is(#problem, #verdict):has-text('{said}')")


def test_connection_that_breaks_is_a_sentence(visit, page, digits):
    page.route("**/model.*", lambda route: route.abort())
    visit(page, digits, ready=False)
    page.wait_for_selector("#problem:has-text('the connection to the server failed')")
    page.complaints[:] = [c for c in page.complaints if "ERR_FAILED" not in c]


def test_page_opened_as_a_file_says_what_to_do(page, digits):
    page.goto((digits.path / "index.html").as_uri())
    assert "python3 -m http.server -d FOLDER" in page.inner_text("#problem")
    page.complaints.clear()


def test_browser_that_lacks_something_is_told_what(visit, page, digits):
    page.add_init_script("delete window.DecompressionStream")
    visit(page, digits, ready=False)
    said = page.inner_text("#problem")
    assert said.startswith("This browser cannot run the page: it lacks DecompressionStream.")


def test_server_that_declares_packed_files_as_such_is_understood(visit, page, digits):
    visit(page, digits, extra={".gz": {"Content-Encoding": "gzip"}})
    assert int(page.get_attribute("#verdict", "data-levels")) <= LEVELS


@pytest.mark.parametrize(
    ("site", "query"),
    [
        ("digits", ""),
        ("digits", f"?seed={MAX_SEED - 63}&n=64&steps=4"),
        ("digits", "?label=all"),
        ("colours", f"?n=4&seed={SEED}"),
    ],
)
def test_nothing_overlaps_and_everything_has_a_label_on_every_screen(
    visit, new_page, request, no_overlap, all_labelled, site, query
):
    page = new_page(reduced_motion="reduce")
    visit(page, request.getfixturevalue(site), query)
    for width, scheme in product((320, 390, 768, 1440), ("light", "dark")):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        no_overlap(page)
        all_labelled(page)
    if site == "colours":  # which was made without measured.json
        page.complaints[:] = [c for c in page.complaints if "404" not in c]


def test_screenshot_of_the_page(visit, new_page, digits, screenshot):
    page = new_page(1440, 900)
    visit(page, digits)
    generate(page, 40)
    page.get_by_role("slider", name="Place between the two seeds").fill("0.5")
    page.evaluate("scrollTo(0, 0)")
    screenshot(page, "web-page")
    page = new_page(390, 844, "dark")
    visit(page, digits, "?seed=40&steps=4")
    page.wait_for_selector("#journey .frame:nth-child(5)")
    screenshot(page, "web-page-phone", full_page=False)

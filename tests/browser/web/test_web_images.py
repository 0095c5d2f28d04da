"""The images of the static page are the server's: same seed, same noise, same pixels."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
from PIL import Image

from mmf_deploy import bundle, images
from mmf_deploy.noise import MAX_SEED, gaussian, gaussian_batch
from tests.browser.web.pages import (
    LEVELS,
    SEED,
    expected,
    levels,
    pixels,
    serving,
)


@pytest.mark.parametrize("seed", [0, SEED, MAX_SEED - 15])
def test_images_of_sixteen_seeds_are_the_servers(visit, page, digits, seed):
    visit(page, digits, f"?seed={seed}&n=16")
    seeds = range(seed, seed + 16)
    noise = gaussian_batch(list(seeds), digits.spec.shape)
    server = expected(digits, noise, [s % 10 for s in seeds])
    assert levels(pixels(page), server) <= LEVELS
    assert len({image.tobytes() for image in server}) == 16


def test_noise_of_the_page_is_the_servers(visit, page, digits):
    visit(page, digits, ready=False)
    for seed in (0, 1, 42, 123456789, 2**32, 2**53 + 1, 987654321987654321, MAX_SEED):
        found = page.evaluate(
            """async ([seed, count]) => {
                 const { gaussian } = await import('./noise.js');
                 return [...gaussian(BigInt(seed), count)];
               }""",
            [str(seed), 333],
        )
        np.testing.assert_array_max_ulp(
            np.array(found, np.float32), gaussian(seed, (333,)), maxulp=1
        )


def test_page_compares_itself_with_the_golden_images(visit, page, digits):
    visit(page, digits)
    verdict = page.locator("#verdict")
    assert int(verdict.get_attribute("data-levels")) <= LEVELS
    assert re.match(r"All 16 images (are equal, bit for bit|agree within [12] of)", (
        verdict.inner_text()
    ))  # fmt: skip
    assert page.locator("#same canvas").count() == 3


def test_comparison_can_fail(visit, page, digits):
    with np.load(digits.path / bundle.GOLDEN) as data:
        arrays = {**data}
    name = f"samples.{digits.variant().name}"
    arrays[name] = np.clip(arrays[name] + 0.05, -1, 1)  # 6.4 levels
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    page.route("**/golden.npz*", lambda route: route.fulfill(body=file.getvalue()))
    visit(page, digits)
    assert "The images differ by up to 7 of 255 levels" in page.inner_text("#verdict")
    assert "bad" in page.get_attribute("#verdict", "class")


def saved(download):
    with Image.open(download.value.path()) as image:
        return np.asarray(image.convert("RGB"))


def test_images_are_saved_as_png_without_loss(visit, page, digits):
    visit(page, digits, "?seed=30&n=4")
    found = pixels(page)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download image").click()
    np.testing.assert_array_equal(saved(download), images.enlarged(found[0], 32))
    with page.expect_download() as download:
        page.get_by_role("button", name="Save grid").click()
    assert download.value.suggested_filename == "digits-grid-seed30.png"
    np.testing.assert_array_equal(saved(download), images.grid(found, 2, 8))


def test_isolated_page_computes_with_threads(visit, page, digits):
    isolated = {"Cross-Origin-Opener-Policy": "same-origin",
                "Cross-Origin-Embedder-Policy": "require-corp"}  # fmt: skip
    worker = (digits.path / "worker.js").read_text()
    eager = worker.replace("SMALL_GRAPH_BYTES = 4 << 20", "SMALL_GRAPH_BYTES = 0")
    assert eager != worker
    page.route("**/worker.js*", lambda route: route.fulfill(
        body=eager, headers={"Content-Type": "text/javascript", **isolated}))  # fmt: skip
    visit(page, digits, extra={"": isolated})
    assert page.evaluate("crossOriginIsolated")
    cores = min(8, page.evaluate("navigator.hardwareConcurrency"))
    assert f"WebAssembly, {cores} thread" in page.inner_text("#speed")
    assert int(page.get_attribute("#verdict", "data-levels")) <= LEVELS


def test_nodes_with_many_outputs_are_found_in_the_file(visit, page, digits):
    visit(page, digits, ready=False)
    variant = digits.variant()
    graph = onnx.load(digits.file(variant)).graph
    for most in (1, 5):
        found = page.evaluate(
            """async ([file, most]) => {
                 const { wideNodes } = await import('./graph.js');
                 const bytes = await (await fetch(file)).arrayBuffer();
                 return wideNodes(new Uint8Array(bytes), 'Split', most);
               }""",
            [variant.file, most],
        )
        expected_names = [n.name for n in graph.node if n.op_type == "Split"
                          and len(n.output) > most]  # fmt: skip
        assert found == expected_names
        assert found


SWIFTSHADER = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader",
               "--enable-features=Vulkan", "--use-vulkan=swiftshader",
               "--ignore-gpu-blocklist"]  # fmt: skip


@pytest.mark.slow
def test_webgpu_gives_the_same_images(browser, digits):
    """On a GPU in software, which Chromium brings along: slow, but the same programs."""
    where = shutil.which("chromium") or shutil.which("chromium-browser")
    with serving(digits) as server:
        chromium = browser.browser_type.launch(
            executable_path=where, args=["--no-sandbox", *SWIFTSHADER]
        )
        try:
            page = chromium.new_page()
            page.goto(f"http://127.0.0.1:{server.server_port}/")
            page.wait_for_selector("html[data-ready]")
            if not page.evaluate("navigator.gpu?.requestAdapter().then(Boolean)"):
                pytest.skip("this Chromium has no GPU in software")
            page.get_by_label("GPU, WebGPU").check()
            page.wait_for_selector("html[data-ready$=webgpu]", timeout=120_000)
            assert "WebGPU" in page.inner_text("#speed")
            assert int(page.get_attribute("#verdict", "data-levels")) <= LEVELS
        finally:
            chromium.close()


NETWORK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1) for a, b in ((3, 12), (12, 12), (12, 3)))
        self.label = nn.Embedding(4, 12)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(2.0)

    def forward(self, x, r, t, label, guidance):
        h = self.layers[0](x) + self.label(label)[:, :, None, None] * t.reshape(-1, 1, 1, 1)
        h = self.layers[1](torch.relu(h)) * guidance.reshape(-1, 1, 1, 1)
        return self.layers[2](torch.relu(h))
"""


@pytest.mark.slow
def test_export_for_the_web_is_a_page_that_generates(visit, page, tmp_path, digits):
    (tmp_path / "users_net.py").write_text(NETWORK)
    main = "from mmf_deploy.cli import main_export; main_export()"
    command = [sys.executable, "-c", main, "--module", "users_net:Net",
               "--shape", "3,16,16", "--classes", "3", "--guidance-range", "1,4",
               "--target", "web", "--precision", "fp32,fp16", "--steps", "1,2",
               "--samples", "16", "--out", "site"]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "page: site/index.html" in done.stdout
    site = bundle.load(tmp_path / "site")
    visit(page, site, "?seed=2&guidance=2.5&steps=2")
    noise = gaussian_batch(list(range(2, 18)), site.spec.shape)
    server = expected(site, noise, [s % 3 for s in range(2, 18)], 2.5, steps=2)
    assert levels(pixels(page), server) <= LEVELS
    assert page.locator("#journey canvas").count() == 3
    page.locator("#precision").get_by_label("fp16").check()
    page.wait_for_selector("html[data-ready*=fp16]")
    assert int(page.get_attribute("#verdict", "data-levels")) <= LEVELS

"""The browser page from its load to its first image, its bytes, and its images against a server's.

python benchmarks/web_page.py bundles/digits-web

A static file server that compresses nothing, in this process; Chromium without a GPU, driven by
Playwright; an empty cache for every load.
"""

from __future__ import annotations

import argparse
import functools
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from serve_measure import load_average
from tables.demo import web_page_result

from mmf_deploy import bundle as bundles
from mmf_deploy import machine, results
from mmf_deploy.bundle import Bundle, Variant
from mmf_deploy.engines.base import open_engine
from mmf_deploy.errors import EngineError, MMFError, require
from mmf_deploy.noise import gaussian_batch

RESULT = Path(__file__).parent / "results" / "web-page-cpu.json"
TARGETS = {"first_image_ms": 2000, "first_image_bytes": 5_000_000, "folder_bytes": 30_000_000,
           "levels": 2}  # fmt: skip
SEED, IMAGES = 4_000_000_000, 16
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
PATIENCE_MS = 60_000
PIXELS = """
() => [...document.querySelectorAll('#grid canvas')].map((canvas) =>
  [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data])
"""
FIRST = "performance.getEntriesByName('first image').map((entry) => entry.startTime)[0]"


@dataclass
class Site:
    """What a page was served from.

    Attributes:
        url: of the page.
        sent: path, seconds since 1970 when it was asked for, bytes on the wire with all headers.
    """

    url: str
    sent: list[tuple[str, float, int]] = field(default_factory=list)


class Counting(SimpleHTTPRequestHandler):
    """Notes what every reply weighs."""

    def handle_one_request(self) -> None:
        """Count what goes through the socket's file."""
        began, whole, write = time.time(), 0, self.wfile.write

        def counted(data: Any) -> int:
            nonlocal whole
            whole += len(data)
            return write(data)

        self.wfile.write = counted  # type: ignore[method-assign]
        super().handle_one_request()
        self.server.site.sent.append((getattr(self, "path", ""), began, whole))  # type: ignore[attr-defined]

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: what was asked is in the report."""


@contextmanager
def serving(folder: Path) -> Iterator[Site]:
    """A static file server on a free port."""
    handler = functools.partial(Counting, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        site = Site(f"http://127.0.0.1:{server.server_port}/")
        server.site = site  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield site
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def chromium() -> Iterator[Any]:
    """The system's browser.

    Raises:
        EngineError: there is none.
    """
    playwright = require("playwright.sync_api", "dev")
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        raise EngineError("there is no Chromium on the PATH: install it, e.g. apt install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Any, url: str) -> Iterator[Any]:
    """A page with nothing in its cache."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    context.set_default_timeout(PATIENCE_MS)
    try:
        page = context.new_page()
        page.goto(url)
        page.wait_for_selector("html[data-ready]")
        yield page
    finally:
        context.close()


def load(browser: Any, site: Site) -> tuple[float, dict[str, int]]:
    """One load: milliseconds to the first image, and the bytes of what was asked for until then."""
    site.sent.clear()
    with opened(browser, site.url) as page:
        first = float(page.evaluate(FIRST))
        until = (page.evaluate("performance.timeOrigin") + first) / 1000
    sent = {path.partition("?")[0]: size for path, at, size in site.sent if at < until}
    return first, sent


def compare(browser: Any, site: Site, bundle: Bundle, variant: Variant) -> dict[str, Any]:
    """Images of one variant, in the browser and through the engine that serves it."""
    spec = bundle.spec
    query = f"?seed={SEED}&n={IMAGES}&steps={variant.steps}&precision={variant.precision}"
    with opened(browser, site.url + query) as page:
        shape = (IMAGES, *spec.shape[1:], 4)
        found = np.array(page.evaluate(PIXELS), np.uint8).reshape(shape)[..., : spec.shape[0]]
        here_ms = float(page.locator("#speed").get_attribute("data-ms"))
        golden = int(page.locator("#verdict").get_attribute("data-levels"))
    seeds = range(SEED, SEED + IMAGES)
    with open_engine("onnxruntime", bundle, variant.name) as engine:
        expected = engine.generate(
            gaussian_batch(list(seeds), spec.shape),
            np.array([spec.default_label(s) for s in seeds]) if spec.conditional else None,
            np.full(IMAGES, spec.guidance[0], np.float32) if spec.guidance else None,
        )
    measured = bundle.measured()
    return {
        "variant": variant.name,
        "steps": variant.steps,
        "bytes": bundle.file(variant).stat().st_size,
        "levels": int(np.abs(found.astype(int) - expected).max()),
        "golden_levels": golden,
        "browser_ms": round(here_ms, 3),
        "onnxruntime_ms": measured.get("latency", {}).get(variant.name, {}).get("batch1_ms"),
        "pytorch_ms": measured.get("pytorch", {}).get(str(variant.steps)),
    }


def measure(folder: Path, loads: int) -> dict[str, Any]:
    """Everything, as it is written down."""
    bundle, before = bundles.load(folder), load_average()
    variants = [v for v in bundle.manifest.variants if v.target == "web"]
    with serving(folder) as site, chromium() as browser:
        times, sent = [], {}
        for k in range(loads + 1):
            first, sent = load(browser, site)
            print(f"load {k}: first image after {first:.0f} ms", flush=True)
            times += [first] if k else []  # the first one starts the browser's own processes
        versions = {
            "chromium": browser.version,
            "playwright": metadata.version("playwright"),
            "onnxruntime-web": bundle.manifest.versions["onnxruntime-web"],
            "onnxruntime": metadata.version("onnxruntime"),
        }
        rows = [compare(browser, site, bundle, variant) for variant in variants]
    return {
        "machine": machine.describe(),
        "versions": versions,
        "load_average_before": before,
        "targets": TARGETS,
        "bundle": bundle.manifest.name,
        "first_image_ms": round(median(times)),
        "first_image_ms_slowest": round(max(times)),
        "loads_ms": [round(t) for t in times],
        "first_image_bytes": sum(sent.values()),
        "first_image_files": dict(sorted(sent.items(), key=lambda item: -item[1])),
        "folder_bytes": sum(f.stat().st_size for f in folder.iterdir()),
        "images": IMAGES,
        "variants": rows,
    }


def missed(found: dict[str, Any]) -> list[str]:
    """The targets that were not reached, a line each."""
    seen = {**found, "levels": max(row["levels"] for row in found["variants"])}
    return [
        f"{name}: {seen[name]}, expected at most {most}"
        for name, most in TARGETS.items()
        if seen[name] > most
    ]


def main() -> int:
    """Measure, write the result file, and say what was missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("bundle", type=Path, help="made by mmf export RUN --target web")
    parser.add_argument("--loads", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    try:
        found = measure(given.bundle, given.loads)
    except MMFError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.exit_code
    command = shlex.join(["python", "benchmarks/web_page.py", *sys.argv[1:]])
    written = results.write(
        given.out.parent, given.out.stem, web_page_result({"command": command, **found})
    )
    print(
        f"first image after {found['first_image_ms']} ms (median of {given.loads}), "
        f"{found['first_image_bytes'] / 1e6:.2f} MB; folder {found['folder_bytes'] / 1e6:.1f} MB"
    )
    for row in found["variants"]:
        print(f"{row['variant']}: {row['levels']} levels, {row['browser_ms']} ms an image")
    print(written)
    for line in missed(found):
        print(f"missed: {line}", file=sys.stderr)
    return 1 if missed(found) else 0


if __name__ == "__main__":
    sys.exit(main())

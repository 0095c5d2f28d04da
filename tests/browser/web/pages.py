"""A bundle as a page, a static server for it, and what a page shows, as arrays."""

from __future__ import annotations

import functools
import os
import shutil
import threading
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from mmf_deploy.export import ort_web
from mmf_deploy.export.ort_web import cache_directory  # before other tests put theirs there
from mmf_deploy.export.to_web import page_files, write_page

from mmf_deploy import bundle, measured
from mmf_deploy.engines.base import open_engine
from mmf_deploy.errors import DependencyError
from mmf_deploy.spec import SampleSpec

LEVELS = 2  # of 255, between the browser and the server
SEED = 4_000_000_007
COLOURS = SampleSpec(
    shape=(3, 24, 32), classes=3, class_names=("cat", "dog", "a <b>bird</b>"), guidance=(1.0, 4.0)
)
PIXELS = """
(selector) => [...document.querySelectorAll(selector)].map((canvas) => {
  const {width, height} = canvas;
  return [height, width, [...canvas.getContext('2d').getImageData(0, 0, width, height).data]];
})
"""


def as_site(source, path):
    """The fp32 variants of a bundle as a page."""
    found = bundle.load(source)
    variants = [v for v in found.manifest.variants if v.precision == "fp32"]
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ort_web, "cache_directory", cache_directory)
            page = page_files(None)
    except DependencyError as e:
        if os.environ.get("MMF_REQUIRE_BROWSER") == "1":
            raise
        pytest.skip(str(e))

    def fill(directory):
        for name in (*(v.file for v in variants), bundle.GOLDEN, "README.md", measured.NAME):
            if (found.path / name).is_file():
                shutil.copy(found.path / name, directory / name)
        write_page(directory, page)

    update = {
        "variants": [v.model_copy(update={"target": "web"}) for v in variants],
        "versions": found.manifest.versions | {"onnxruntime-web": ort_web.VERSION},
    }
    return bundle.write(path, found.manifest.model_copy(update=update), fill)


class Quiet(SimpleHTTPRequestHandler):
    """A static file server that compresses nothing; ``extra`` are headers by ending of the name."""

    extra: dict[str, dict[str, str]] = {}  # noqa: RUF012

    def end_headers(self):
        for ending, headers in self.extra.items():
            if self.path.partition("?")[0].endswith(ending):
                for name, value in headers.items():
                    self.send_header(name, value)
        super().end_headers()

    def log_message(self, format, *args):
        self.server.requested.append(self.path)


@contextmanager
def serving(site, extra=None):
    handler = type("Handler", (Quiet,), {"extra": extra or {}})
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=str(site.path))
    )
    server.requested = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def pixels(page, selector="#grid canvas"):
    """uint8 [N, H, W, 3]: what the canvases show."""
    found = page.evaluate(PIXELS, selector)
    return np.stack([np.array(data, np.uint8).reshape(h, w, 4)[:, :, :3] for h, w, data in found])


def shown(page, part):
    """Wait until the images of a state are there; ``part`` is of its address."""
    page.wait_for_selector(f'#grid[data-shown*="{part}"]')


def generate(page, seed):
    page.get_by_label("Seed", exact=True).fill(str(seed))
    page.get_by_role("button", name="Generate").click()
    shown(page, f"seed={seed}&")


def expected(site, noise, labels, guidance=1.0, steps=1):
    """What a server shows for that noise, uint8 [N, H, W, 3]."""
    spec = site.spec
    variant = next(v for v in site.manifest.variants if v.steps == steps)
    with open_engine("onnxruntime", site, variant.name) as engine:
        found = engine.generate(
            noise,
            np.asarray(labels, np.int64) if spec.conditional else None,
            np.full(len(noise), guidance, np.float32) if spec.guided else None,
        )
    return found if found.shape[-1] == 3 else found.repeat(3, axis=-1)


def levels(a, b) -> int:
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b).max())

"""The page: a bundle that any static file server shows, and any browser runs.

The page's own files lie in the serve stage, as data; this stage copies them and imports nothing
of it. They lie flat beside the graphs, are hashed like them, and read the bundle by themselves.
"""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Callable
from pathlib import Path

from mmf_deploy.bundle import Bundle, Variant
from mmf_deploy.errors import DependencyError
from mmf_deploy.spec import SampleSpec

from . import ort_web

INDEX = "index.html"
ENDINGS = (".html", ".css", ".js", ".txt")


def has_page(targets: tuple[str, ...], spec: SampleSpec) -> bool:
    """Whether a bundle for these targets gets a page: one for browsers that makes images."""
    return "web" in targets and spec.is_image


def page_folder() -> Path:
    """Where the page's own files lie in this installation.

    Raises:
        DependencyError: they were not installed.
    """
    serve = importlib.util.find_spec("mmf_deploy.serve")
    for place in (serve.submodule_search_locations or []) if serve else []:
        folder = Path(place) / "web"
        if (folder / INDEX).is_file():
            return folder
    raise DependencyError(
        "--target web needs the page's files, mmf_deploy/serve/web, which this installation "
        "lacks: install mmf-deploy again"
    )


def page_files(
    ort: Path | None, on_progress: Callable[[str], None] = lambda _: None
) -> dict[str, bytes]:
    """Every file of the page, its runtime included, by name.

    Args:
        ort: an onnxruntime-web package; from the cache or npm if None.
        on_progress: called with what is being done, if it takes long.
    Raises:
        ConfigError: ``ort`` is not the package that is needed.
        DependencyError: something that is needed is not here.
    """
    return {**_own_files(), **ort_web.obtain(ort, on_progress)}


def _own_files() -> dict[str, bytes]:
    files = sorted(f for f in page_folder().iterdir() if f.suffix in ENDINGS)
    return {f.name: f.read_bytes() for f in files}


def write_page(directory: Path, page: dict[str, bytes]) -> None:
    """Put the page into a bundle's directory."""
    for name, content in page.items():
        (directory / name).write_bytes(content)


def page_of(bundle: Bundle) -> str | None:
    """For a person: where the page of a bundle is, how large it is, how to see it."""
    if INDEX not in bundle.manifest.files:
        return None
    total = sum(f.stat().st_size for f in bundle.path.iterdir())
    first = next(v for v in bundle.manifest.variants if v.target == "web")
    return (
        f"page: {bundle.path / INDEX}, {total / 1e6:.1f} MB in all, "
        f"{first_image_bytes(bundle.path, first) / 1e6:.1f} MB until the first image; "
        f"see it: python -m http.server -d {shlex.quote(str(bundle.path))}"
    )


def first_image_bytes(directory: Path, variant: Variant) -> int:
    """What a browser fetches until it shows an image of a variant.

    The files as they lie there: a server that compresses sends less.
    """
    own = [name for name in _own_files() if not name.endswith(".txt")]
    names = {*own, "ort-wasm.js", "ort-wasm.wasm.gz", "bundle.json", variant.file}
    return sum((directory / name).stat().st_size for name in names)

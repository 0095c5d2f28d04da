"""Chromium, driven by Playwright: pages that fail their test if the page itself complains."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest

REQUIRED = os.environ.get("MMF_REQUIRE_BROWSER") == "1"
NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
]
PATIENCE_MS = 20_000

OVERLAPS = """
() => {
  const wanted = 'button, input, select, textarea, a[href], summary, [role=slider], [role=tab]';
  const shown = (e) => {
    const r = e.getBoundingClientRect();
    return r.width > 2 && r.height > 2 && e.checkVisibility({checkOpacity: true,
      checkVisibilityCSS: true});
  };
  // what is scrolled away within its own box, or cut off, is not on the screen
  const seen = (e) => {
    let {left, top, right, bottom} = e.getBoundingClientRect();
    for (let p = e.parentElement; p; p = p.parentElement) {
      if (getComputedStyle(p).overflow === 'visible') continue;
      const r = p.getBoundingClientRect();
      [left, top] = [Math.max(left, r.left), Math.max(top, r.top)];
      [right, bottom] = [Math.min(right, r.right), Math.min(bottom, r.bottom)];
    }
    return {left, top, right, bottom};
  };
  const name = (e) => `${e.tagName.toLowerCase()}#${e.id} ` +
    `${(e.getAttribute('aria-label') || e.textContent || e.value || '').trim().slice(0, 40)}`;
  const items = [...document.querySelectorAll(wanted)].filter(shown);
  const found = [];
  for (let i = 0; i < items.length; i++) {
    for (let k = i + 1; k < items.length; k++) {
      const [a, b] = [items[i], items[k]];
      if (a.contains(b) || b.contains(a)) continue;
      const [p, q] = [seen(a), seen(b)];
      const wide = Math.min(p.right, q.right) - Math.max(p.left, q.left);
      const high = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
      if (wide > 2 && high > 2) found.push(`${name(a)} × ${name(b)}`);
    }
  }
  const page = document.documentElement;
  if (page.scrollWidth > page.clientWidth + 1) {
    found.push(`the page is ${page.scrollWidth} px wide in a window of ${page.clientWidth}`);
  }
  return found;
}
"""

UNLABELLED = """
() => [...document.querySelectorAll('input, select, textarea, button')]
  .filter((e) => e.type !== 'hidden' && e.checkVisibility())
  .filter((e) => !(e.getAttribute('aria-label') || '').trim()
    && !(e.getAttribute('aria-labelledby') || '').split(' ')
      .some((id) => id && document.getElementById(id)?.textContent.trim())
    && ![...(e.labels || [])].some((l) => l.textContent.trim())
    && !(e.tagName === 'BUTTON' && (e.textContent.trim() || e.title)))
  .map((e) => e.outerHTML.slice(0, 200))
"""


def pytest_collection_modifyitems(items):
    """Everything in this folder needs the browser."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


def missing(reason):
    """Skip, or fail where the browser is required."""
    if REQUIRED:
        pytest.fail(f"{reason}, and MMF_REQUIRE_BROWSER=1 requires it")
    pytest.skip(reason)


# a module at a time: while it is open, its event loop is this thread's, which other tests want
@pytest.fixture(scope="module")
def browser():
    """One Chromium for the tests of a module."""
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        missing("Playwright is not installed")
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        missing("there is no Chromium on the PATH")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def new_page(browser):
    """``new_page(width, height, color_scheme)``: a page in a context of its own.

    At the end of the test it fails if a console had an error, a script threw, or a page asked
    any machine but this one for something.
    """
    contexts, complaints = [], []

    def make(width=1440, height=900, color_scheme="light", **options):
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=color_scheme, **options
        )
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        page = context.new_page()
        watch(page, complaints)
        return page

    yield make
    found = list(complaints)  # a page that is closed may complain of what that interrupts
    for context in contexts:
        context.close()
    assert found == []


def watch(page, complaints):
    """Collect what a page complains of; a test that provokes an error removes its line."""
    page.complaints = complaints
    page.on("pageerror", lambda e: complaints.append(f"script: {e}"))
    page.on("console", lambda m: complaints.append(m.text) if is_error(m) else None)
    page.on("request", lambda r: complaints.append(r.url) if elsewhere(r.url) else None)


def is_error(message):
    """Whether a console says that something went wrong; leaving a page breaks off what it reads."""
    return message.type == "error" and not message.text.startswith("AbortError")


def elsewhere(url):
    """Whether an address is another machine's."""
    parts = urlsplit(url)
    return parts.scheme not in ("data", "blob", "about") and parts.hostname != "127.0.0.1"


@pytest.fixture
def page(new_page):
    """A page of 1440 × 900 pixels."""
    return new_page()


@pytest.fixture
def screenshot(tmp_path):
    """``screenshot(page, name)``: a PNG, in $MMF_SCREENSHOTS if that is set."""
    folder = Path(os.environ.get("MMF_SCREENSHOTS") or tmp_path)

    def save(page, name, full_page=True):
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=path, full_page=full_page, animations="disabled")
        assert path.stat().st_size > 0
        return path

    return save


@pytest.fixture
def no_overlap():
    """``no_overlap(page)``: controls do not cover each other, and nothing scrolls sideways."""

    def check(page):
        assert page.evaluate(OVERLAPS) == []

    return check


@pytest.fixture
def all_labelled():
    """``all_labelled(page)``: every visible control has a name that a screen reader can say."""

    def check(page):
        assert page.evaluate(UNLABELLED) == []

    return check

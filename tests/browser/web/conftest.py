"""Pages to visit: digits as they are embedded, and a generator with everything there is."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from mmf_deploy import bundle
from mmf_deploy.embedded import digits_bundle
from tests.browser.web.pages import COLOURS, as_site, serving


@pytest.fixture(scope="session")
def digits(shared):
    """The embedded digits with one, two and four steps, as a page."""
    return bundle.load(shared("digits-site", lambda path: as_site(digits_bundle(), path)))


@pytest.fixture(scope="session")
def colours(shared, make_tiny_bundle):
    """Three classes with names, and guidance; a graph whose result is known in closed form."""
    return bundle.load(
        shared("colours-site", lambda path: as_site(make_tiny_bundle(COLOURS), path))
    )


@pytest.fixture
def visit():
    """``visit(page, site, query)``: the page, when it has shown all that it shows by itself.

    The first fixture of a test, so that its server ends after every page.
    """
    open_servers = {}
    with ExitStack() as stack:

        def go(page, site, query="", ready=True, **options):
            key = (site.path, repr(options))
            if key not in open_servers:
                open_servers[key] = stack.enter_context(serving(site, **options))
            page.goto(f"http://127.0.0.1:{open_servers[key].server_port}/{query}")
            if ready:
                page.wait_for_selector("html[data-ready]")
            return open_servers[key]

        yield go

"""Demos to visit: the embedded digits, and a generator with everything there is."""

from __future__ import annotations

import pytest

from mmf_deploy import bundle
from mmf_deploy.embedded import digits_bundle
from mmf_deploy.engines.base import open_engine
from tests.browser.demo.pages import GUIDED, demo_of
from tests.stepped import write_stepped_bundle


@pytest.fixture(scope="session")
def digits():
    """The address of `mmf-demo`."""
    yield from demo_of()


@pytest.fixture(scope="session")
def guided(make_tiny_bundle, tmp_path_factory):
    """The address of a demo with colours, many classes, guidance and several steps."""
    path = tmp_path_factory.mktemp("guided") / "bundle"
    yield from demo_of(write_stepped_bundle(make_tiny_bundle(GUIDED), path))


@pytest.fixture(scope="session")
def engine():
    """The embedded digits, without service or page."""
    with open_engine("onnxruntime", bundle.load(digits_bundle())) as found:
        yield found

"""A demo in a process, and what a visitor sees and does."""

from __future__ import annotations

import base64
import re
import signal
import subprocess
import sys
from contextlib import contextmanager

import numpy as np

from mmf_deploy.client.replies import pixels
from mmf_deploy.noise import gaussian_batch
from mmf_deploy.spec import SampleSpec

PATIENCE_S = 60
TABS = ("Generate", "Compare", "Interpolate", "Trajectory", "Latency")
GUIDED = SampleSpec(
    shape=(3, 6, 8), classes=14, class_names=tuple(f"<b>class</b> {k}" for k in range(14)),
    guidance=(1.0, 4.0),
)  # fmt: skip


@contextmanager
def process(*command):
    """``(child, address)`` of a command that says where it listens."""
    child = subprocess.Popen(
        [sys.executable, "-m", "mmf_deploy.cli", *map(str, command), "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        line = child.stdout.readline()
        assert line, child.stderr.read()
        yield child, re.findall(r"http://[\w.:]+", line)[-1]
    finally:
        child.kill()
        child.communicate()


def demo_of(*arguments):
    """The address of a demo that must end quietly, without ever having said a word."""
    with process("demo", *arguments) as (child, address):
        yield address
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=PATIENCE_S)
        assert (child.returncode, out, err) == (0, "", "")


def shown(page, view="generate", selector="img"):
    """The pixels of all images of a view, uint8 [n, H, W, C]."""
    page.wait_for_selector(f"#mmf-{view} {selector}", state="attached")
    sources = page.eval_on_selector_all(f"#mmf-{view} {selector}", "all => all.map(i => i.src)")
    return np.stack([decoded(source) for source in sources])


def decoded(source):
    return pixels(base64.b64decode(source.removeprefix("data:image/png;base64,")))


def visit(page, address, query=""):
    page.goto(f"{address}/{query}")
    page.wait_for_selector("#mmf-generate img, #mmf-compare img, #mmf-interpolate img, "
                           "#mmf-trajectory img", state="attached")  # fmt: skip
    return page


def after(page, action, view="generate"):
    """The images after an action that makes others appear."""
    page.eval_on_selector(f"#mmf-{view} img", "i => i.dataset.old = ''")
    action()
    page.wait_for_selector(f"#mmf-{view} img:not([data-old])", state="attached")
    page.wait_for_selector(f"#mmf-{view} img[data-old]", state="detached")
    return shown(page, view)


def seed(page):
    return page.get_by_label("Seed", exact=True)


def click(page, name):
    return lambda: page.get_by_role("button", name=name, exact=True).click()


def choose(page, group, name):
    buttons = page.get_by_role("group", name=group)
    return lambda: buttons.get_by_role("radio", name=name, exact=True).check()


def typed(page, text):
    def enter():
        seed(page).fill(text)
        seed(page).press("Enter")

    return enter


def tab(page, name):
    page.get_by_role("tab", name=name).click()
    page.wait_for_selector(f"[role=tab][aria-selected=true]:has-text('{name}')")
    if name != "Latency":
        page.wait_for_selector(f"#mmf-{name.lower()} :is(img, .mmf-note)", state="attached")


def to_the_end(page):
    """Where the buttons, which stay in sight on a narrow page, are in their own place."""
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")


def made(engine, seeds, labels):
    return engine.generate(gaussian_batch(seeds, engine.spec.shape), np.array(labels))

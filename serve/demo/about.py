"""The head of the page: what this is, for somebody who never read the paper."""

from __future__ import annotations

from html import escape

from .asked import all_steps
from .backend import INSIDE, About

PATHS = """
<svg viewBox="0 0 420 150" role="img" aria-labelledby="mmf-paths">
<title id="mmf-paths">From noise at t = 1 to the image at t = 0: many short steps along a curve, or
one long step along its average velocity.</title>
<path class="mmf-curve" d="M40 112 C 120 20, 230 20, 380 60"/>
<path class="mmf-chord" d="M40 112 L 372 61"/>
<g class="mmf-dots"><circle cx="94" cy="64.5" r="3"/><circle cx="150" cy="42.5" r="3"/>
<circle cx="208" cy="36" r="3"/><circle cx="266" cy="39.5" r="3"/><circle cx="322" cy="48" r="3"/>
</g>
<circle class="mmf-end" cx="40" cy="112" r="6"/><circle class="mmf-end" cx="380" cy="60" r="6"/>
<text x="40" y="138" text-anchor="middle">noise, t = 1</text>
<text x="380" y="88" text-anchor="middle">image, t = 0</text>
<text x="208" y="22" text-anchor="middle">many short steps: velocity v</text>
<text x="220" y="112" text-anchor="middle">one step: average velocity u</text>
</svg>"""

FORMULA = (
    '<span class="mmf-formula"><i>x</i><sub>0</sub> = <i>x</i><sub>1</sub> − '
    "<i>u</i>(<i>x</i><sub>1</sub>, 0, 1)</span>"
)


def title(about: About) -> str:
    """What the page is called."""
    return f"{about.name}: noise to image in one step"


def description(about: About) -> str:
    """The page in one sentence, for who gets a link to it."""
    return f"{about.name}: images from noise in one network evaluation, and what they cost."


def header(about: About) -> str:
    """Name, what is seen here in two sentences, and how it works behind a summary."""
    size = f"{about.spec.shape[2]} × {about.spec.shape[1]}"
    classes = f", {about.spec.classes} classes" if about.spec.conditional else ""
    where = INSIDE if about.where == INSIDE else f"at {about.where}"
    return f"""
<header class="mmf-header">
<p class="mmf-name"><b>{escape(about.name)}</b> {size} pixels{classes} · {escape(where)}</p>
<h1>Noise to image in one step</h1>
<p class="mmf-intro">Other diffusion models take tens of network evaluations to turn noise into an
image. This one takes one, so an image costs milliseconds.</p>
<details class="mmf-how"><summary>How it works</summary><div class="mmf-how-body">
{PATHS}
<div>
<p>Noise becomes an image along a path. At every point of it there is a direction to go, the
velocity <i>v</i>; an ordinary flow or diffusion model learns <i>v</i>, and following it takes many
steps because it keeps changing.</p>
<p>A MeanFlow model learns <i>u</i>, the velocity averaged over a whole stretch of the path. Average
velocity times time is distance, so one subtraction makes the whole way:</p>
<p>{FORMULA}</p>
<p><i>x</i><sub>1</sub> is noise, drawn from the seed; <i>u</i>(…, 0, 1) is the network's average
velocity between time 0, the image, and time 1, the noise; <i>x</i><sub>0</sub> is the image. The
same seed gives the same noise, hence the same image, on every machine. {_more(about)}</p>
</div></div></details>
</header>"""


def _more(about: About) -> str:
    steps = all_steps(about)
    if len(steps) < 2:
        return ""
    many = ", ".join(map(str, steps[:-1])) + f" or {steps[-1]}"
    return f"This bundle can also take the way in {many} steps: slower, and sometimes better."

"""What the bundle says of its speed and its quality, and what is measured now."""

from __future__ import annotations

import time
from collections.abc import Sequence
from html import escape

from .asked import Asked, offer_of
from .backend import About, Backend
from .bars import Bar, bars
from .baseline import machine, number, pytorch_ms, ran_on, steps_of, table, variant_ms
from .markup import ms, note, plural

RUNS, WARM, LIMIT_S = 30, 3, 5.0
"""Images of a measurement, those before it, and the time after which it ends early."""


def speed(about: About) -> str:
    """The measured table as bars on one scale, and the machine."""
    measured = variant_ms(about)
    if not measured:
        return note("This bundle carries no measurements; mmf-bench makes them.")
    steps = sorted({steps_of(name) for name in measured})
    longest = max([*measured.values(), *filter(None, (pytorch_ms(about, k) for k in steps))])
    sections = []
    for k in steps:
        ours = {name: value for name, value in measured.items() if steps_of(name) == k}
        baseline = pytorch_ms(about, k)
        rows = [] if baseline is None else [Bar("PyTorch eager", baseline, ours=False)]
        rows += [
            Bar(
                f"{name} ({ran_on(about, name)})" if ran_on(about, name) else name,
                value,
                extra="" if baseline is None else f"{baseline / value:.1f}×",
            )
            for name, value in sorted(ours.items(), key=lambda item: item[1])
        ]
        sections.append(f"<section><h3>{plural(k, 'step')}</h3>{bars(rows, longest)}</section>")
    return f"""
<h2>Milliseconds an image at batch 1, measured at export</h2>
<p class="mmf-small">{escape(_where(about))} ×: times faster than PyTorch eager there.</p>
<div class="mmf-columns">{"".join(sections)}</div>"""


def _where(about: About) -> str:
    versions = table(about, "versions")
    kept = ("torch", "onnxruntime", "openvino", "python")
    found = ", ".join(f"{name} {versions[name]}" for name in kept if name in versions)
    on = machine(about) or "a machine that it does not name"
    return f"On {on}{f' with {found}' if found else ''}."


def quality(about: About) -> str:
    """Class accuracy and Fréchet distance, each with what it means; nothing if not measured."""
    found = about.quality
    accuracy, real = number(found.get("class_accuracy")), number(found.get("classifier_accuracy"))
    frechet, halves = number(found.get("frechet")), number(found.get("frechet_real"))
    told = []
    if accuracy is not None:
        judge = f"; of real images it recognises {real:.1%}" if real else ""
        told.append(
            (f"{accuracy:.1%}", "Class accuracy",
             f"So many of the images are what was asked for, says a classifier{judge}.")
        )  # fmt: skip
    if frechet is not None:
        floor = f" Two halves of the real data are {halves:.2f} apart." if halves else ""
        told.append(
            (f"{frechet:.2f}", "Fréchet distance",
             f"Between generated and real images in a classifier's features; lower is better, 0 "
             f"is the same distribution.{floor}")
        )  # fmt: skip
    if not told:
        return ""
    cards = "".join(
        f"<div><dt>{escape(name)}</dt><dd><b>{value}</b><span>{escape(meaning)}</span></dd></div>"
        for value, name, meaning in told
    )
    return f'<h2>Quality, measured after training</h2><dl class="mmf-quality">{cards}</dl>'


async def measure(backend: Backend, asked: Asked) -> str:
    """Images one by one, right now: median and p90 of the engine and of the whole call.

    Raises:
        MMFError: the service refuses, or is not there.
    """
    engine: list[float] = []
    whole: list[float] = []
    end = time.perf_counter() + LIMIT_S
    for k in range(WARM + RUNS):
        before = time.perf_counter()
        made = await backend.generate(1, seed=k, **asked.wanted)
        after = time.perf_counter()
        if k >= WARM:
            engine.append(made.timing_ms.get("infer", 0.0))
            whole.append(1e3 * (after - before))
        if after > end and engine:
            break
    return _now(backend.about, asked, engine, whole)


def _now(about: About, asked: Asked, engine: list[float], whole: list[float]) -> str:
    offer = offer_of(about, asked.model)
    name = f"{offer.model}, {plural(asked.steps or 1, 'step')}"
    rows = [
        Bar(f"{name}: engine", percentile(engine, 50), extra=f"p90 {ms(percentile(engine, 90))}"),
        Bar(f"{name}: with queue, encoding and transport", percentile(whole, 50),
            extra=f"p90 {ms(percentile(whole, 90))}"),
    ]  # fmt: skip
    baseline = pytorch_ms(about, asked.steps)
    if baseline is not None:
        rows.insert(0, Bar("PyTorch eager, at export", baseline, ours=False))
    return (
        f'<h2>Now, {escape(about.where)}</h2><div role="status">{bars(rows)}</div>'
        f'<p class="mmf-small">Median of {plural(len(engine), "image")}, one at a time.</p>'
    )


def percentile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` percent of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share / 100))]

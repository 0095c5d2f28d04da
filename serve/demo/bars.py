"""Bars that compare milliseconds, as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from .markup import ms


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        name: what it stands for.
        value: milliseconds.
        ours: in colour; a baseline is grey.
        extra: said after the value, e.g. a ratio.
    """

    name: str
    value: float
    ours: bool = True
    extra: str = ""


def bars(found: Sequence[Bar], longest: float | None = None, unit: str = "ms an image") -> str:
    """Horizontal bars on a scale that begins at 0.

    Args:
        longest: the value of a bar as long as there is room; that of the longest one if None.
    """
    longest = longest or max((bar.value for bar in found), default=0.0) or 1.0
    # values stay in one column, whether something is said after them or not
    wide = any(bar.extra for bar in found)
    rows = (_row(bar, longest, unit, wide) for bar in found)
    return f'<ul class="mmf-bars">{"".join(rows)}</ul>'


def _row(bar: Bar, longest: float, unit: str, wide: bool) -> str:
    share = max(0.4, 100 * bar.value / longest)
    extra = f' <span class="mmf-extra">{escape(bar.extra)}</span>' if wide else ""
    return (
        f'<li class="{"mmf-ours" if bar.ours else "mmf-base"}">'
        f'<span class="mmf-what">{escape(bar.name)}</span>'
        f'<span class="mmf-value"><b>{ms(bar.value)}</b> {escape(unit)}{extra}</span>'
        f'<span class="mmf-track" aria-hidden="true"><i style="width:{share:.1f}%"></i></span></li>'
    )

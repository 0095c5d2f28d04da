"""Numbers as a plan writes them."""

from __future__ import annotations


def short(value: float) -> str:
    """Three digits, or the whole number where it has more."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"

"""The trained bundle inside the package, which the tools use when no other is named."""

from __future__ import annotations

from pathlib import Path


def digits_bundle() -> Path:
    """The directory of the embedded bundle: 8 × 8 handwritten digits, ten classes."""
    return Path(__file__).parent / "assets" / "digits"

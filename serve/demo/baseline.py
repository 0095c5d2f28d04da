"""What the export measured, read with care: it comes from a file of somebody's machine."""

from __future__ import annotations

import re
from typing import Any

from .backend import About


def number(value: Any) -> float | None:
    """A positive number; None for everything else."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e12:
        return float(value)
    return None


def table(about: About, name: str) -> dict[str, Any]:
    """One of the measured tables; empty if it was not measured."""
    found = about.measured.get(name)
    return found if isinstance(found, dict) else {}


def pytorch_ms(about: About, steps: int | None) -> float | None:
    """What PyTorch took for one image at batch 1, if that was measured."""
    return number(table(about, "pytorch").get(str(steps or 1)))


def variant_ms(about: About) -> dict[str, float]:
    """Milliseconds for one image at batch 1 by variant."""
    rows = table(about, "latency").items()
    found = {name: number(row.get("batch1_ms")) for name, row in rows if isinstance(row, dict)}
    return {name: value for name, value in found.items() if value is not None}


def ran_on(about: About, variant: str) -> str:
    """The engine and device that a variant was measured on, e.g. "onnxruntime on cpu"."""
    row = table(about, "latency").get(variant)
    return str(row.get("on", "")) if isinstance(row, dict) else ""


def steps_of(variant: str) -> int:
    """How many steps a variant takes, by its name: ``fp32`` one, ``fp32-4step`` four."""
    found = re.search(r"-(\d{1,4})step$", variant)
    return int(found[1]) if found else 1


def machine(about: About) -> str:
    """The machine of the measurements, e.g. "AMD EPYC, 2 cores"; empty if that is not known."""
    found = table(about, "machine")
    cores = str(found.get("cores", ""))
    parts = [
        str(found.get("cpu", "")),
        f"{cores} core{'' if cores == '1' else 's'}" if cores else "",
        str(found.get("gpu", "")),
    ]
    return ", ".join(part for part in parts if part)

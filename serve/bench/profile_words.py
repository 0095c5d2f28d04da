"""How a profile's tables write numbers, and what they call operators and engines."""

from __future__ import annotations

from collections.abc import Iterable

from .profile_kinds import kind_of
from .profile_times import Group, OpTime, Profile


def title(profile: Profile) -> str:
    """Which engine, in which setting."""
    threads = "1 thread" if profile.threads == 1 else f"{profile.threads} threads"
    return f"{profile.name}, batch {profile.batch}, {threads}"


def ms(value: float) -> str:
    """Milliseconds with three digits that count."""
    size = abs(value)
    return f"{value:.3f}" if size < 1 else f"{value:.2f}" if size < 100 else f"{value:.1f}"


def share(part: float, whole: float) -> str:
    """In percent."""
    return f"{part / whole:.1%}" if whole else ""


def number(value: float) -> str:
    """Three digits, or nothing for nothing."""
    return "" if not value else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def labels(group: Group) -> list[str]:
    """Operator, shapes and dtype; of a kind its name and how many shapes it has."""
    first = group.ops[0]
    if group.what == first.kind:
        return [first.kind, shapes(group.ops), ""]
    # some names say nothing, and some operators belong to the one before them
    op = first.op if kind_of(first.op) == first.kind else f"{first.op} ({first.kind})"
    return [op, first.shape or first.name, first.dtype]


def shapes(ops: Iterable[OpTime]) -> str:
    """How many there are."""
    found = {(op.op, op.dtype, op.shape or op.name) for op in ops}
    return "1 shape" if len(found) == 1 else f"{len(found)} shapes"

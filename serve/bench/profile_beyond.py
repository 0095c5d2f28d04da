"""Where the time beyond the floor goes: the operators of a profile that lose most."""

from __future__ import annotations

from collections.abc import Sequence

from mmf_deploy.results import Table

from .profile_kinds import CONVOLUTION
from .profile_times import Group, Profile, Rates
from .profile_words import labels, ms, shapes, title

SHOWN = 10
"""Rows of a table of operators."""
BEYOND = "Where the time beyond the floor goes"
"""How its title begins."""
LARGE = 0.1
"""Of the call's time: what takes less says little of what the machine can do."""
SEEN = 1.01
"""Times the rate: less than that is none of its business, but chance."""


def beyond_table(profile: Profile, gflops: Rates, bandwidth_gb_s: float | None) -> Table:
    """What loses most; the rows below that have the rest of a call's time."""

    def floor(groups: Sequence[Group]) -> float:
        return sum(g.floor_ms(gflops, bandwidth_gb_s) for g in groups)

    def row(first: Sequence[str], groups: Sequence[Group]) -> list[str]:
        nodes = str(sum(len(g.ops) for g in groups))
        took = sum(g.ms for g in groups)
        return [*first, nodes, ms(took), *_against(took, floor(groups))]

    groups = sorted(profile.by_work(), key=lambda g: g.ms - floor([g]), reverse=True)
    slower = [g for g in groups if g.ms >= floor([g])]
    faster = groups[len(slower) :]
    rows = [row(labels(g), [g]) for g in slower[:SHOWN]]
    for what, some in (("all else", slower[SHOWN:]), ("below their floor", faster)):
        if some:
            rows.append(row([what, shapes(op for g in some for op in g.ops), ""], some))
    outside = profile.outside_ms
    rows.append(["outside operators", "", "", "", ms(outside), *_against(outside, 0.0)])
    whole = _against(profile.plain_ms, floor(groups))
    rows.append(["a call", "", "", str(len(profile.ops)), ms(profile.plain_ms), *whole])
    columns = ["operator", "shapes", "dtype", "nodes", "ms", "floor ms", "beyond ms", "of floor"]
    notes = ["convolutions and products of the same shapes are one row, of all other operators "
             "those of a kind; of floor: floor over time"]  # fmt: skip
    if faster:
        notes.append("below their floor: kernels faster than the rate that the floor is made of, "
                     "or weights that a cache still held")  # fmt: skip
        notes += _better_rate(profile, faster, gflops, bandwidth_gb_s)
    return Table(f"{BEYOND}: {title(profile)}", columns, rows, notes, left=3)


def _against(took: float, floor: float) -> list[str]:
    """Floor, what is beyond it, and its share."""
    if not floor:
        return ["", ms(took), ""]
    return [ms(floor), ms(took - floor), f"{floor / took:.0%}" if took else ""]


def _better_rate(
    profile: Profile, faster: Sequence[Group], gflops: Rates, bandwidth_gb_s: float | None
) -> list[str]:
    """What the floor would be at the rate that large convolutions of this call reached."""
    reached: dict[str, float] = {}
    for group in faster:
        if group.ops[0].kind == CONVOLUTION and group.ms > LARGE * profile.plain_ms:
            dtype, times = group.ops[0].dtype, group.arithmetic_ms(gflops) / group.ms
            reached[dtype] = max(times, reached.get(dtype, SEEN))
    better = {d: gflops[d] * times for d, times in reached.items() if times > SEEN}
    if not better:
        return []
    floor = sum(op.floor_ms({**gflops, **better}, bandwidth_gb_s) for op in profile.ops)
    rates = ", ".join(f"{rate:,.0f} GFLOP/s in {dtype}" for dtype, rate in better.items())
    return [f"at the rate of the fastest large convolution here, {rates}, the floor of all would "
            f"be {ms(floor)} ms, and this call at {floor / profile.plain_ms:.0%}"]  # fmt: skip

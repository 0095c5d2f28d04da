"""A profile as people see it: what a call consists of, by kind and by operator."""

from __future__ import annotations

from mmf_deploy.results import Table

from .profile_beyond import SHOWN, beyond_table
from .profile_kinds import (
    ACTIVATION,
    ARITHMETIC,
    CONVOLUTION,
    ELEMENTWISE,
    LAYOUT,
    OTHER,
    PRODUCT,
)
from .profile_times import Profile, Rates
from .profile_words import labels, ms, number, share, title

WORTH_NAMING = 0.01
"""The conclusion names what takes at least this share of the time."""
UNSURE = 0.1
"""A profiler that makes a call this share longer leaves the split between operators uncertain."""
IN_WORDS = {
    CONVOLUTION: "convolutions",
    PRODUCT: "matrix products",
    LAYOUT: "layout changes",
    ACTIVATION: "activations",
    ELEMENTWISE: "elementwise operators",
    OTHER: "other operators",
}


def tables(profile: Profile, gflops: Rates | None, bandwidth_gb_s: float | None) -> list[Table]:
    """By kind, the operators with most time beyond their floor, and the most expensive ones.

    Args:
        gflops: what this machine reaches with these threads, GFLOP/s by dtype; without it there is
            no floor.
        bandwidth_gb_s: at which it reads memory.
    """
    kinds = _kinds(profile, gflops or {}, bandwidth_gb_s)
    beyond = [beyond_table(profile, gflops, bandwidth_gb_s)] if gflops else []
    return [kinds, *beyond, _operators(profile, gflops or {})]


def conclusion(profile: Profile, gflops: Rates | None) -> str:
    """One sentence: what the time of a call consists of."""
    done = _arithmetic(profile, gflops or {})
    rest = [
        (_below(g.what, bool(done)), g.ms - min(g.ms, g.arithmetic_ms(gflops or {})))
        for g in profile.by_kind()
    ]
    rest.append(("outside operators", profile.outside_ms))
    least = WORTH_NAMING * profile.plain_ms
    named = sorted((r for r in rest if r[1] >= least), key=lambda r: r[1], reverse=True)
    parts = [*done, *(f"{ms(took)} ms {what}" for what, took in named)]
    if (small := sum(took for _, took in rest) - sum(took for _, took in named)) > 0:
        parts.append(f"{ms(small)} ms all else")
    return f"of {ms(profile.plain_ms)} ms: {'; '.join(parts)}"


def _arithmetic(profile: Profile, gflops: Rates) -> list[str]:
    """What arithmetic takes, and where that is less than at the machine's rate."""
    kinds = profile.by_kind()
    at_rate = sum(group.arithmetic_ms(gflops) for group in kinds)
    if not at_rate:
        return []
    done = sum(min(group.ms, group.arithmetic_ms(gflops)) for group in kinds)
    faster = [IN_WORDS.get(g.what, g.what) for g in kinds if g.ms < g.arithmetic_ms(gflops)]
    if not faster:
        return [f"{ms(done)} ms arithmetic at the machine's rate"]
    return [f"{ms(done)} ms arithmetic ({ms(at_rate)} ms at the machine's rate: "
            f"{', '.join(faster)} are faster than that)"]  # fmt: skip


def _below(kind: str, rated: bool) -> str:
    """What the time of a kind is called that is not arithmetic at the machine's rate."""
    below = " below that rate" if rated and kind in ARITHMETIC else ""
    return IN_WORDS.get(kind, kind) + below


def _kinds(profile: Profile, gflops: Rates, bandwidth_gb_s: float | None) -> Table:
    whole = profile.plain_ms
    rows = []
    for group in profile.by_kind():
        cells = [group.what, str(len(group.ops)), ms(group.ms), share(group.ms, whole),
                 number(group.flops / 1e9), number(group.gflop_per_s)]  # fmt: skip
        if gflops:
            floor = group.floor_ms(gflops, bandwidth_gb_s)
            cells += [ms(floor) if floor else "", ms(group.ms - floor)]
        rows.append(cells)
    outside = profile.outside_ms
    last = ["outside operators", "", ms(outside), share(outside, whole), "", ""]
    rows.append([*last, *(["", ms(outside)] if gflops else [])])
    columns = ["kind of operator", "nodes", "ms", "share", "GFLOP", "GFLOP/s"]
    columns += ["floor ms", "beyond ms"] if gflops else []
    return Table(f"Where the time goes: {title(profile)}", columns, rows,
                 _notes(profile, gflops, bandwidth_gb_s))  # fmt: skip


def _notes(profile: Profile, gflops: Rates, bandwidth_gb_s: float | None) -> list[str]:
    lines = [conclusion(profile, gflops), *_about_the_profiler(profile)]
    if gflops:
        lines += _about_the_floor(profile, gflops, bandwidth_gb_s)
    uncounted = [op for op in profile.ops if op.kind == CONVOLUTION and not op.flops]
    if uncounted:
        lines.append(f"{len(uncounted)} convolutions are not in GFLOP: their weights' shapes are "
                     "not known")  # fmt: skip
    return lines


def _about_the_profiler(profile: Profile) -> list[str]:
    plain, total = profile.plain_ms, profile.total_ms
    line = f"a call takes {ms(plain)} ms, under the profiler {ms(total)} ms"
    if profile.clocks_ms:
        added = f"{1e3 * profile.clocks_ms:.1f} µs"
        line += f", which adds {added} each time it reads the clock: taken off here"
    lines = [line]
    if total > (1 + UNSURE) * plain:
        lines.append(f"the profiler makes a call {total / plain - 1:.0%} longer, so how the time "
                     "is split between operators is uncertain, most of all where many of them are "
                     "short")  # fmt: skip
    return [*lines, profile.note] if profile.note else lines


def _about_the_floor(profile: Profile, gflops: Rates, bandwidth_gb_s: float | None) -> list[str]:
    floor = sum(op.floor_ms(gflops, bandwidth_gb_s) for op in profile.ops)
    used = {op.dtype for op in profile.ops if op.flops}
    rates = ", ".join(f"{per_s:,.0f} GFLOP/s in {dtype}" for dtype, per_s in gflops.items()
                      if dtype in used)  # fmt: skip
    memory = f", or reading weights at {bandwidth_gb_s:.1f} GB/s" if bandwidth_gb_s else ""
    lines = [f"floor of all, {ms(floor)} ms: arithmetic at {rates}{memory}"]
    if any(g.ms < g.floor_ms(gflops, bandwidth_gb_s) for g in profile.by_kind()):
        lines.append("beyond below zero: faster than their floor, so than the rate that the floor "
                     "is made of")  # fmt: skip
    return lines


def _operators(profile: Profile, gflops: Rates) -> Table:
    rows = []
    for group in profile.by_shape()[:SHOWN]:
        cells = [*labels(group), str(len(group.ops)), ms(group.ms)]
        cells += [share(group.ms, profile.plain_ms), number(group.gflop_per_s)]
        if gflops:
            least = group.arithmetic_ms(gflops)
            cells.append(f"{least / group.ms:.0%}" if least and group.ms else "")
        rows.append(cells)
    columns = ["operator", "shapes", "dtype", "nodes", "ms", "share", "GFLOP/s"]
    columns += ["of the rate"] if gflops else []
    notes = ["operators of the same shapes are one row"]
    if gflops:
        notes.append("of the rate: what its arithmetic takes at the machine's rate, over its time; "
                     "padding zeros need no arithmetic")  # fmt: skip
    return Table(f"Most expensive operators: {title(profile)}", columns, rows, notes, left=3)

"""What a profile found: times by operator, and the tables that people see."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mmf_deploy.results import Table

from .profile_kinds import (
    ACTIVATION,
    ARITHMETIC,
    CONVOLUTION,
    ELEMENTWISE,
    LAYOUT,
    OTHER,
    PRODUCT,
)

SHOWN = 10
"""Rows of the table of operators."""
WORTH_NAMING = 0.01
"""The conclusion names what takes at least this share of the time."""
IN_WORDS = {
    CONVOLUTION: "convolutions",
    PRODUCT: "matrix products",
    LAYOUT: "layout changes",
    ACTIVATION: "activations",
    ELEMENTWISE: "elementwise operators",
    OTHER: "other operators",
}
Rates = Mapping[str, float]
"""GFLOP/s by dtype."""


@dataclass(frozen=True)
class OpTime:
    """One operator of the graph as it was executed.

    Attributes:
        name: in the graph, as the engine has it.
        op: its type, in the engine's words.
        kind: one of ``profile_kinds``.
        ms: of a call.
        flops: two per multiply-add of convolutions and matrix products, as papers count them;
            0 where the engine does not give the shapes.
        dtype: fp32, bf16, fp16 or int8 (what is multiplied), or another name of a type.
        bytes: read and written, weights included.
        padding_flops: of flops, those whose factor is a padding zero; a floor has none of them.
        weight_bytes: of bytes, weights.
        shape: inputs with weights, and the output, for people.
    """

    name: str
    op: str
    kind: str
    ms: float
    flops: float
    dtype: str
    bytes: float
    padding_flops: float = 0.0
    weight_bytes: float = 0.0
    shape: str = ""

    def arithmetic_ms(self, gflops: Rates) -> float:
        """Its arithmetic at the machine's rate of its dtype; 0 if that rate is not known."""
        rate = gflops.get(self.dtype)
        return (self.flops - self.padding_flops) / rate / 1e6 if rate else 0.0

    def floor_ms(self, gflops: Rates, bandwidth_gb_s: float | None) -> float:
        """The least it can take: its arithmetic, or reading its weights from memory.

        Activations do not count: a cache can hold them, and a fused operator does not write
        them.
        """
        reads = self.weight_bytes if self.kind in ARITHMETIC and bandwidth_gb_s else 0.0
        return max(self.arithmetic_ms(gflops), reads / (bandwidth_gb_s or 1.0) / 1e6)


@dataclass(frozen=True)
class Group:
    """Operators that have something in common.

    Attributes:
        what: that they have in common.
    """

    what: str
    ops: list[OpTime]

    @property
    def ms(self) -> float:
        """Of a call."""
        return sum(op.ms for op in self.ops)

    @property
    def flops(self) -> float:
        """Of a call."""
        return sum(op.flops for op in self.ops)

    @property
    def gflop_per_s(self) -> float:
        """What it reaches."""
        return self.flops / self.ms / 1e6 if self.ms else 0.0

    def arithmetic_ms(self, gflops: Rates) -> float:
        """Its arithmetic at the machine's rate, at most what it takes."""
        return min(self.ms, sum(op.arithmetic_ms(gflops) for op in self.ops))

    def floor_ms(self, gflops: Rates, bandwidth_gb_s: float | None) -> float:
        """The least that its operators can take, one after the other."""
        return sum(op.floor_ms(gflops, bandwidth_gb_s) for op in self.ops)


@dataclass(frozen=True)
class Profile:
    """The operators of one engine, in the order in which they ran.

    Attributes:
        total_ms: a whole call under the profiler, median.
        plain_ms: the same without it, in turns with those: what the benchmark measures.
        clocks_ms: what the profiler adds each time it reads the clock, as far as it shows; it is
            taken off the operators.
        note: what to know of the engine's profiler.
    """

    engine: str
    variant: str
    threads: int
    batch: int
    ops: list[OpTime]
    total_ms: float
    plain_ms: float
    clocks_ms: float = 0.0
    note: str = ""

    @property
    def name(self) -> str:
        """Engine and variant, without saying the same twice."""
        return f"{self.engine} {self.variant.removeprefix(f'{self.engine}-')}"

    @property
    def ops_ms(self) -> float:
        """All operators together."""
        return sum(op.ms for op in self.ops)

    @property
    def outside_ms(self) -> float:
        """Of a call without the profiler, what is no operator: dispatch, copies, Python."""
        return max(0.0, self.plain_ms - self.ops_ms)

    def by_kind(self) -> list[Group]:
        """The kinds of operators, longest first."""
        return _grouped((op.kind, op) for op in self.ops)

    def by_shape(self) -> list[Group]:
        """Operators of the same type, dtype and shapes together, longest first."""
        return _grouped(((op.op, op.dtype, op.shape or op.name), op) for op in self.ops)

    def tables(self, gflops: Rates | None, bandwidth_gb_s: float | None) -> list[Table]:
        """By kind, and the most expensive operators.

        Args:
            gflops: what this machine reaches with these threads, GFLOP/s by dtype.
            bandwidth_gb_s: at which it reads memory.
        """
        return [_kinds(self, gflops or {}, bandwidth_gb_s), _operators(self, gflops or {})]

    def conclusion(self, gflops: Rates | None) -> str:
        """One sentence: what the time of a call consists of."""
        kinds = self.by_kind()
        parts: list[tuple[str, float]] = []
        if gflops and any(group.arithmetic_ms(gflops) for group in kinds):
            done = sum(group.arithmetic_ms(gflops) for group in kinds)
            parts.append(("arithmetic at the machine's rate", done))
        rest = [(_beyond(g.what, bool(parts)), g.ms - g.arithmetic_ms(gflops or {})) for g in kinds]
        rest.append(("outside operators", self.outside_ms))
        least = WORTH_NAMING * self.plain_ms
        named = sorted((r for r in rest if r[1] >= least), key=lambda r: r[1], reverse=True)
        parts += named
        if (small := sum(ms for _, ms in rest) - sum(ms for _, ms in named)) > 0:
            parts.append(("all else", small))
        listed = "; ".join(f"{_ms(ms)} ms {what}" for what, ms in parts)
        return f"of {_ms(self.plain_ms)} ms: {listed}"


def _grouped(keyed: Iterable[tuple[str | tuple[str, ...], OpTime]]) -> list[Group]:
    found: dict[str | tuple[str, ...], list[OpTime]] = {}
    for key, op in keyed:
        found.setdefault(key, []).append(op)
    groups = [Group(k if isinstance(k, str) else " ".join(k), ops) for k, ops in found.items()]
    return sorted(groups, key=lambda group: group.ms, reverse=True)


def _beyond(kind: str, rated: bool) -> str:
    """What the time of a kind is called that is not arithmetic at the machine's rate."""
    below = " below that rate" if rated and kind in ARITHMETIC else ""
    return IN_WORDS.get(kind, kind) + below


def _kinds(profile: Profile, gflops: Rates, bandwidth_gb_s: float | None) -> Table:
    whole = profile.plain_ms
    rows = []
    for group in profile.by_kind():
        cells = [group.what, str(len(group.ops)), _ms(group.ms), _share(group.ms, whole),
                 _number(group.flops / 1e9), _number(group.gflop_per_s)]  # fmt: skip
        if gflops:
            floor = group.floor_ms(gflops, bandwidth_gb_s)
            cells += [_ms(floor) if floor else "", _ms(max(0.0, group.ms - floor))]
        rows.append(cells)
    outside = profile.outside_ms
    last = ["outside operators", "", _ms(outside), _share(outside, whole), "", ""]
    rows.append([*last, *(["", _ms(outside)] if gflops else [])])
    columns = ["kind of operator", "nodes", "ms", "share", "GFLOP", "GFLOP/s"]
    columns += ["floor ms", "beyond ms"] if gflops else []
    return Table(f"Where the time goes: {_title(profile)}", columns, rows,
                 _notes(profile, gflops, bandwidth_gb_s))  # fmt: skip


def _notes(profile: Profile, gflops: Rates, bandwidth_gb_s: float | None) -> list[str]:
    lines = [
        profile.conclusion(gflops),
        f"a call takes {_ms(profile.plain_ms)} ms, under the profiler {_ms(profile.total_ms)} ms",
    ]
    if profile.clocks_ms:
        added = f"{1e3 * profile.clocks_ms:.1f} µs"
        lines[-1] += f", which adds {added} each time it reads the clock: taken off here"
    if profile.note:
        lines.append(profile.note)
    if gflops:
        floor = sum(op.floor_ms(gflops, bandwidth_gb_s) for op in profile.ops)
        used = {op.dtype for op in profile.ops if op.flops}
        rates = ", ".join(f"{per_s:,.0f} GFLOP/s in {dtype}" for dtype, per_s in gflops.items()
                          if dtype in used)  # fmt: skip
        memory = f", or reading weights at {bandwidth_gb_s:.1f} GB/s" if bandwidth_gb_s else ""
        lines.append(f"floor of all, {_ms(floor)} ms: arithmetic at {rates}{memory}")
    uncounted = [op for op in profile.ops if op.kind == CONVOLUTION and not op.flops]
    if uncounted:
        lines.append(f"{len(uncounted)} convolutions are not in GFLOP: their weights' shapes are "
                     "not known")  # fmt: skip
    return lines


def _operators(profile: Profile, gflops: Rates) -> Table:
    rows = []
    for group in profile.by_shape()[:SHOWN]:
        first = group.ops[0]
        cells = [first.op, first.shape or first.name, first.dtype, str(len(group.ops))]
        cells += [_ms(group.ms), _share(group.ms, profile.plain_ms), _number(group.gflop_per_s)]
        if gflops:
            least = sum(op.arithmetic_ms(gflops) for op in group.ops)
            cells.append(f"{least / group.ms:.0%}" if least and group.ms else "")
        rows.append(cells)
    columns = ["operator", "shapes", "dtype", "nodes", "ms", "share", "GFLOP/s"]
    columns += ["of the rate"] if gflops else []
    notes = ["operators of the same shapes are one row"]
    if gflops:
        notes.append("of the rate: what its arithmetic takes at the machine's rate, over its time; "
                     "padding zeros need no arithmetic")  # fmt: skip
    return Table(f"Most expensive operators: {_title(profile)}", columns, rows, notes, left=3)


def _title(profile: Profile) -> str:
    threads = "1 thread" if profile.threads == 1 else f"{profile.threads} threads"
    return f"{profile.name}, batch {profile.batch}, {threads}"


def _ms(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:.1f}"


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else ""


def _number(value: float) -> str:
    """Three digits, or nothing for nothing."""
    return "" if not value else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

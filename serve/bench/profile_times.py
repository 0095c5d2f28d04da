"""What a profile found: times by operator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .profile_kinds import ARITHMETIC
from .subjects import shown_name

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
        """Its arithmetic at the machine's rate; more than it takes where it is faster than that."""
        return sum(op.arithmetic_ms(gflops) for op in self.ops)

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
        return shown_name(self.engine, self.variant)

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
        """Operators of the same type, kind, dtype and shapes together, longest first."""
        return _grouped((_alike(op), op) for op in self.ops)

    def by_work(self) -> list[Group]:
        """Those with arithmetic by shape, all others by kind, longest first."""
        return _grouped((_alike(op) if op.kind in ARITHMETIC else op.kind, op) for op in self.ops)


def _alike(op: OpTime) -> tuple[str, ...]:
    return op.op, op.kind, op.dtype, op.shape or op.name


def _grouped(keyed: Iterable[tuple[str | tuple[str, ...], OpTime]]) -> list[Group]:
    found: dict[str | tuple[str, ...], list[OpTime]] = {}
    for key, op in keyed:
        found.setdefault(key, []).append(op)
    groups = [Group(k if isinstance(k, str) else " ".join(k), ops) for k, ops in found.items()]
    return sorted(groups, key=lambda group: group.ms, reverse=True)

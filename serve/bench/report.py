"""A whole benchmark: rows, what is needed to repeat them, and the tables people see."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from mmf_deploy.results import Picture, Result, Table

from .rows import Row
from .subjects import BASELINE, MEMORY, shown_name


@dataclass(frozen=True)
class Rate:
    """What the machine can do.

    Attributes:
        what: a dtype of arithmetic, or "memory".
        per_s: GFLOP/s (a multiplication and an addition are two), or GB/s read.
        library: that reached it.
    """

    what: str
    threads: int
    per_s: float
    library: str


@dataclass(frozen=True)
class Report:
    """A whole benchmark.

    Attributes:
        left_out: a line about each variant that does not run here.
        graphs: by variant: nodes of its graph, bytes of its file, GFLOP of an image.
        limit: what the machine can do, measured in the same turns; empty if it was not.
        quality: by variant, as the bundle says: PSNR against fp32, Fréchet distance.
        quality_of_data: of the samples of the whole bundle.
        within: how well ratios were to be known, as a share.
    """

    command: str
    bundle: str
    digest: str
    parameters: int
    machine: dict[str, str]
    versions: dict[str, str]
    rows: list[Row]
    left_out: list[str] = field(default_factory=list)
    graphs: dict[str, dict[str, float]] = field(default_factory=dict)
    limit: list[Rate] = field(default_factory=list)
    quality: dict[str, dict[str, float]] = field(default_factory=dict)
    quality_of_data: dict[str, Any] = field(default_factory=dict)
    within: float = 0.02

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the common form with everything in it."""
        return self.result().as_dict()

    def result(self, pictures: Sequence[Picture] = ()) -> Result:
        """In the common form."""
        content = asdict(self)
        for name in ("command", "machine", "versions"):
            content.pop(name)
        return Result(
            kind="bench",
            title=f"{self.bundle}: milliseconds per image",
            command=self.command,
            machine=self.machine,
            versions=self.versions,
            tables=self.tables(),
            pictures=pictures,
            content=content,
        )

    def tables(self) -> list[Table]:
        """Latency, ratios to other baselines, and the limit."""
        return [
            _latency(self),
            *([_versus(self)] if any(row.versus for row in self.rows) else []),
            *([_limit(self)] if self.limit else []),
        ]


def read(found: Result) -> Report:
    """A report from its file; the tables and pictures made of it are the code's of today."""
    content = dict(found.content)
    return Report(
        command=found.command,
        machine=dict(found.machine),
        versions=dict(found.versions),
        rows=[Row(**row) for row in content.pop("rows")],
        limit=[Rate(**rate) for rate in content.pop("limit")],
        **content,
    )


def name(row: Row) -> str:
    """Engine and variant, without saying the same twice."""
    return shown_name(row.engine, row.variant)


def ms(value: float) -> str:
    """Milliseconds with three digits that count."""
    return f"{value:.3f}" if value < 10 else f"{value:.2f}" if value < 100 else f"{value:.1f}"


def times(ratio: float | None) -> str:
    """A ratio, or nothing."""
    return "" if ratio is None else f"{ratio:.2f}×"


def share(value: float | None) -> str:
    """A share in percent, or nothing."""
    return "" if value is None else f"{value:.0%}"


def _known_to(row: Row) -> float | None:
    return row.within if row.speedup is None else row.speedup_within


def _uncertain(value: float | None) -> str:
    return "" if value is None else f"±{value:.1%}"


_OPTIONAL: dict[str, Callable[[Row], str]] = {
    "load s": lambda r: "" if r.load_s is None else f"{r.load_s:.2f}",
    "peak MB": lambda r: "" if r.peak_memory_mb is None else f"{r.peak_memory_mb:,.0f}",
    "GPU ms": lambda r: "" if r.device_ms is None else ms(r.device_ms),
    "GPU MB": lambda r: "" if r.device_memory_mb is None else f"{r.device_memory_mb:,.0f}",
    "mJ": lambda r: "" if r.joules is None else f"{1e3 * r.joules:.3g}",
    "× eager": lambda r: times(r.speedup),
    "of floor": lambda r: share(r.of_floor),
}


def _latency(report: Report) -> Table:
    rows = report.rows
    shown = {c: f for c, f in _OPTIONAL.items() if any(f(row) for row in rows)}
    cells = []
    for row in rows:
        per_s = f"{row.images_per_s:,.0f}" if row.images_per_s >= 100 else f"{row.images_per_s:.1f}"
        first = [name(row), str(row.threads), str(row.batch), ms(row.median_ms), ms(row.p90_ms),
                 ms(row.p99_ms), per_s]  # fmt: skip
        cells.append([*first, *(form(row) for form in shown.values()), _uncertain(_known_to(row))])
    ratios = any(row.speedup is not None for row in rows)
    columns = ["engine", "thr.", "batch", "median", "p90", "p99", "img/s", *shown, "known to"]
    return Table(f"{report.bundle}: milliseconds per image", columns, cells, _notes(report, ratios))


def _notes(report: Report, ratios: bool) -> list[str]:
    known = "the ratio" if ratios else "the median"
    lines = [f"known to: 95% confidence interval of {known}, over turns"]
    if ratios:
        lines.append("× eager: times faster than PyTorch eager fp32, its fastest row of that "
                     "batch, in the same turns")  # fmt: skip
    if report.limit:
        lines.append("of floor: the least time that the machine's arithmetic and memory leave, "
                     "over the time taken")  # fmt: skip
    # by what the table shows: ±2.0% was not asked in vain
    known_to = [round(_known_to(row) or 0.0, 3) for row in report.rows]
    if vague := sum(known > report.within for known in known_to):
        lines.append(f"{vague} of {len(report.rows)} rows fell short of the ±{report.within:.1%} "
                     f"asked for, the farthest is known to ±{max(known_to):.1%}: more --seconds "
                     "narrow it")  # fmt: skip
    return [*lines, *(f"left out: {line}" for line in report.left_out)]


def _versus(report: Report) -> Table:
    others = list(dict.fromkeys(n for row in report.rows for n in row.versus))
    cells = [
        [name(row), str(row.threads), str(row.batch), times(row.speedup),
         *(times(row.versus.get(other)) for other in others)]
        for row in report.rows
        if row.versus
    ]  # fmt: skip
    heads = [f"× {other.removesuffix('-fp32')}" for other in others]
    return Table("Times faster than each baseline", ["engine", "thr.", "batch", "× eager", *heads],
                 cells)  # fmt: skip


def _limit(report: Report) -> Table:
    cells = []
    for rate in report.limit:
        memory = rate.what == MEMORY
        what = "memory, read" if memory else f"{rate.what} arithmetic"
        per_s = f"{rate.per_s:,.1f} GB/s" if memory else f"{rate.per_s:,.0f} GFLOP/s"
        cells.append([what, rate.library, str(rate.threads), per_s])
    least = _floors(report)
    return Table("What this machine can do", ["", "by", "thr.", "rate"], cells, least, left=2)


def _floors(report: Report) -> list[str]:
    """For every variant at the smallest batch: what it counts, and its floor."""
    lines = []
    batch = min(r.batch for r in report.rows)
    for row in report.rows:
        if row.floor_ms is None or row.batch != batch or row.engine == BASELINE:
            continue
        counted = report.graphs.get(row.variant, {}).get("gflop")
        work = f"{counted:.3g} GFLOP an image, " if counted else ""
        lines.append(f"{name(row)}, batch {batch}, {row.threads} thr.: {work}floor "
                     f"{ms(row.floor_ms)} ms an image, set by {row.bound}")  # fmt: skip
    return lines


def quality_of(report: Report) -> Mapping[str, float]:
    """What the frontier shows by variant: Fréchet distance where all have one, else PSNR."""
    key = quality_key(report)
    return {v: q[key] for v, q in report.quality.items() if key and key in q}


def quality_key(report: Report) -> str | None:
    """The measure of quality that every measured variant has, or None."""
    shown = {row.variant for row in report.rows if row.engine != BASELINE}
    for key in ("frechet", "psnr"):
        if shown and all(key in report.quality.get(v, {}) for v in shown):
            return key
    return None

"""Write the tables of the pages from the committed result files; tests check that they agree.

python benchmarks/render.py
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tables.bench import latency, speed
from tables.common import Write, common, either
from tables.demo import demo, web_page
from tables.export import forms, frozen_time, int8_curve
from tables.floor import beyond, verdict
from tables.quickstart import quickstart
from tables.serving import litserve, ray, service
from tables.training import bench_step, objectives

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Section:
    """What stands between two markers of a page, or of each of several.

    Attributes:
        pages: relative to the repository.
        result: file in ``benchmarks/results``.
        write: writes the section from the content of that file and the link to it.
        pending: the command that measures it. With one, the markers are always there, and say so
            while there is no result; without one, a section without a result has no markers.
    """

    pages: tuple[str, ...]
    result: str
    write: Write
    pending: str = ""


README, EXPORT, OBJECTIVE = "README.md", "docs/export.md", "docs/objective.md"
SERVE, DEMO, WEB = "docs/benchmark-serve.md", "docs/demo.md", "docs/web.md"
ALL = "docs/benchmarks.md"
DIGITS, CIFAR10 = "digits-cpu/bench.json", "cifar10-random-cpu/bench.json"
PROFILE, PLAN = "cifar10-random-cpu/profile.json", "plan-cpu/plan.json"
PAPER = "docs/reproduction.md"
EXPERIMENTS = ("table2", "table3", "baselines", "fig1", "fig2", "fig3a", "fig3b", "fig4", "fig5",
               "fig6", "curriculum", "tangents", "guidance", "fewstep")  # fmt: skip
where = partial(common, tables=["Where the time goes"])
queue = partial(common, tables=["simulated and measured"], pictures=[])
plan = partial(common, tables=["with a p99 under", "what batches take", "costs around the engine"])

SECTIONS = {
    "quickstart": Section((README,), "quickstart-cpu.json", either(quickstart)),
    "speed": Section((README,), CIFAR10, speed),
    "objectives": Section((OBJECTIVE,), "objectives-digits-cpu.json", either(objectives)),
    "frozen-time": Section((EXPORT,), DIGITS, frozen_time),
    "forms": Section((EXPORT,), "export-forms-cpu.json", either(forms)),
    "int8-curve": Section((EXPORT,), "export-int8-cpu.json", either(int8_curve)),
    "bench-step": Section((OBJECTIVE, ALL), "bench-step-cpu/bench-step.json", either(bench_step)),
    "service": Section((README, ALL), "serve-cpu.json", service),
    "load": Section((SERVE,), "load-cpu/load.json", common),
    "litserve": Section((SERVE, ALL), "litserve-cpu.json", litserve),
    "demo": Section((DEMO, ALL), "demo-cpu.json", demo),
    "web-page": Section((WEB, ALL), "web-page-cpu.json", web_page),
    "ray": Section(("docs/scaling.md", ALL), "serve-ray-cpu.json", ray),
    "digits": Section((ALL,), DIGITS, either(latency), "make bench-digits"),
    "cifar10": Section((ALL,), CIFAR10, either(latency), "make bench-cifar10"),
    "profile": Section((ALL,), PROFILE, where, "make bench-cifar10"),
    "floor": Section((ALL,), CIFAR10, verdict, "make bench-cifar10"),
    "beyond": Section((ALL,), PROFILE, beyond, "make bench-cifar10"),
    "limit": Section((ALL,), "limit-cpu.json", common, "make bench-limit"),
    "queue": Section((ALL, "docs/planning.md"), PLAN, queue, "make bench-plan"),
    "peers": Section((ALL,), "peers-cpu/peers.json", common, "make bench-peers"),
    "scale": Section((ALL,), "scale-cpu/scale.json", common, "make bench-scale"),
    "plan": Section((ALL, "docs/planning.md"), PLAN, plan, "make bench-plan"),
    "gpu": Section((ALL,), "cifar10-random-gpu/bench.json", common, "make bench-cifar10-gpu"),
    "repeat": Section((ALL,), "repeat-cpu.json", common, "make bench-repeat"),
    **{name: Section((PAPER,), f"reproduction-digits/{name}.json", common) for name in EXPERIMENTS},
    "cifar10-table3": Section((PAPER,), "reproduction-cifar10/table3.json", common),
}
PAGES = tuple(dict.fromkeys(page for section in SECTIONS.values() for page in section.pages))


def render(page: str, text: str) -> str:
    """The text of a page with every section between its markers written anew.

    A section that was never measured may be absent; then its markers must be, too.
    """
    for name in sorted({*re.findall(r"<!-- (?:begin|end) (\S+) -->", text)} - _of(page)):
        raise SystemExit(f"{page}: there is no section {name!r} for this page")
    for name in _of(page):
        section = SECTIONS[name]
        there = (RESULTS / section.result).exists()
        pattern = re.compile(f"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        markers = len(re.findall(f"<!-- (?:begin|end) {name} -->", text))
        if not markers and not there and not section.pending:
            continue
        if not there and not section.pending:
            raise SystemExit(
                f"{page}: {name!r} needs benchmarks/results/{section.result}, which is not there"
            )
        if markers != 2 or not pattern.search(text):
            raise SystemExit(
                f"{page}: expected '<!-- begin {name} -->' and '<!-- end {name} -->' once each"
            )
        written = _written(page, section) if there else f"Not measured yet: `{section.pending}`"
        text = pattern.sub(lambda m, written=written: f"{m[1]}{written}\n{m[2]}", text)
    return text


def _of(page: str) -> set[str]:
    return {name for name, section in SECTIONS.items() if page in section.pages}


def _written(page: str, section: Section) -> str:
    link = f"{'../' * page.count('/')}benchmarks/results/{section.result}"
    return section.write(json.loads((RESULTS / section.result).read_text()), link)


if __name__ == "__main__":
    for page in PAGES:
        path = ROOT / page
        path.write_text(render(page, path.read_text()))

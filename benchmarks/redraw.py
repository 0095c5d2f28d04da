"""Tables and pictures of committed results, made anew from their own numbers; measures nothing.

python benchmarks/redraw.py

For when the code that shows numbers has changed and the numbers have not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmf_deploy.serve.bench import report
from mmf_deploy.serve.bench.pictures import pictures
from mmf_deploy.serve.bench.profile_tables import tables
from mmf_deploy.serve.bench.profiles import from_content
from tables.demo import demo_result, web_page_result
from tables.serving import litserve_result, ray_result, service_result

from mmf_deploy import results
from mmf_deploy.errors import ConfigError
from mmf_deploy.results import Draw, Result

RESULTS = Path(__file__).parent / "results"
Drawn = tuple[Result, Mapping[str, Draw]]


def bench(found: Result) -> Drawn:
    """Tables and pictures."""
    made = report.read(found)
    drawn = pictures(made)
    return made.result(list(drawn)), {picture.file: draw for picture, draw in drawn.items()}


def profile(found: Result) -> Drawn:
    """Tables."""
    made = [
        table
        for one in found.content["profiles"]
        for table in tables(from_content(one), one["gflops"], one["bandwidth_gb_s"])
    ]
    kept = [table for table in found.tables if table.title == "Not profiled"]
    return replace(found, tables=[*made, *kept]), {}


def script(common: Callable[[dict[str, Any]], Result]) -> Callable[[Result], Drawn]:
    """Of what a script in this folder measured."""
    return lambda found: (common(found.as_dict()), {})


KINDS: dict[str, Callable[[Result], Drawn]] = {
    "bench": bench,
    "profile": profile,
    "service": script(service_result),
    "litserve": script(litserve_result),
    "ray": script(ray_result),
    "demo": script(demo_result),
    "web-page": script(web_page_result),
}
"""Those whose files have everything that their tables and pictures show."""


def main() -> None:
    """Every result of these kinds."""
    for path in sorted(RESULTS.rglob("*.json")):
        try:
            found = results.read(path)
        except ConfigError as e:
            print(f"skipped: {e}")
            continue
        if found.kind in KINDS:
            made, draw = KINDS[found.kind](found)
            print(results.write(path.parent, path.stem, made, draw))
    print("next: python benchmarks/render.py")


if __name__ == "__main__":
    main()

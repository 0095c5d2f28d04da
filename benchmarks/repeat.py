"""How well a benchmark repeats: the same command several times, its ratios side by side.

python benchmarks/repeat.py [--runs 3] [--out benchmarks/results] [-- options of mmf bench]

Writes repeat-cpu.json in the common form: for every engine, batch size and number of threads, the
ratio to PyTorch eager in each run, and how far the runs are apart.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mmf_deploy import results
from mmf_deploy.results import Result, Table

HERE = Path(__file__).parent


def run(options: list[str], out: Path) -> tuple[Result, float]:
    """One benchmark, and how long the whole command took."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "mmf_deploy.cli", "bench", *options, "--out", str(out)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)} failed with exit code {done.returncode}")
    return results.read(out / "bench.json"), time.perf_counter() - began


def compare(found: list[Result], seconds: list[float]) -> Result:
    """The runs side by side."""
    by_key: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for one in found:
        for row in one.content["rows"]:
            key = (row["engine"], row["variant"], row["threads"], row["batch"])
            by_key.setdefault(key, []).append(row)
    rows = []
    for (engine, variant, threads, batch), group in by_key.items():
        ratios = [row["speedup"] for row in group]
        if engine == "pytorch" or None in ratios or len(ratios) < len(found):
            continue
        middle = statistics.median(ratios)
        rows.append(
            {
                "engine": engine, "variant": variant, "threads": threads, "batch": batch,
                "ratios": ratios, "median": middle,
                "apart": round(max(abs(r / middle - 1) for r in ratios), 4),
            }
        )  # fmt: skip
    rows.sort(key=lambda row: (row["batch"], row["threads"]))
    worst = max(rows, key=lambda row: row["apart"])
    cells = [
        [f"{r['engine']} {r['variant']}", str(r["threads"]), str(r["batch"]),
         *(f"{x:.2f}×" for x in r["ratios"]), f"{r['apart']:.1%}"]
        for r in rows
    ]  # fmt: skip
    columns = ["engine", "thr.", "batch", *(f"run {k + 1}" for k in range(len(found))), "apart"]
    notes = [
        f"the command took {', '.join(f'{s:.0f} s' for s in seconds)}",
        "apart: the farthest of the runs from their median; the most is "
        f"{worst['apart']:.1%} ({worst['engine']} {worst['variant']}, batch {worst['batch']}, "
        f"{worst['threads']} thr.)",
    ]
    return Result(
        kind="repeat",
        title=f"{found[0].content['bundle']}: times faster than PyTorch eager, run by run",
        command="python benchmarks/repeat.py",
        machine=found[0].machine,
        versions=found[0].versions,
        tables=[Table("The ratio to PyTorch eager in each run", columns, cells, notes)],
        content={
            "bench": found[0].command, "rows": rows, "seconds": [round(s, 1) for s in seconds],
            "apart": worst["apart"],
        },
    )  # fmt: skip


def main() -> None:
    """Run, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("options", nargs="*", help="of mmf bench, after --")
    asked = parser.parse_args()
    found, seconds = [], []
    with tempfile.TemporaryDirectory(prefix="mmf-repeat-") as folder:
        for k in range(asked.runs):
            print(f"run {k + 1} of {asked.runs} …", flush=True)
            one, took = run(asked.options, Path(folder) / str(k))
            found.append(one)
            seconds.append(took)
    result = compare(found, seconds)
    for table in result.tables:
        table.print()
    print(results.write(asked.out, "repeat-cpu", result))


if __name__ == "__main__":
    main()

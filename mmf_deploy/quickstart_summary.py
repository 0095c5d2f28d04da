"""What the quickstart ends with: a record of what was measured, and the next commands."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from mmf_deploy import files
from mmf_deploy.errors import MMFError


@dataclass(frozen=True)
class Outcome:
    """What the five steps gave.

    Attributes:
        out, run, bundle, bench: where things lie.
        images: how many were compared between service and PyTorch.
        levels: the largest difference, of 255.
        ready_s: from starting the service to its readiness.
        http_ms: median time of one image by HTTP.
        seconds: everything together.
    """

    command: str
    out: Path
    run: Path
    bundle: Path
    bench: Path
    images: int
    levels: int
    ready_s: float
    http_ms: float
    seconds: float


def summarise(o: Outcome) -> dict[str, Any]:
    """Write quickstart.json, print the summary; returns the measured quality, if any."""
    measured = json.loads((o.bench / "bench.json").read_text())
    rows = fastest(measured["rows"])
    evaluation = o.run / "evaluation.json"
    quality: dict[str, Any] = json.loads(evaluation.read_text()) if evaluation.is_file() else {}
    record = {
        "command": o.command,
        "machine": measured["machine"],
        "versions": measured["versions"],
        "seconds": round(o.seconds, 1),
        "quality": quality,
        "latency": rows,
        "levels": o.levels,
        "ready_s": round(o.ready_s, 2),
        "http_ms": round(o.http_ms, 2),
    }
    files.write_atomic(o.out / "quickstart.json", (json.dumps(record, indent=1) + "\n").encode())
    typer.secho(f"\nDone in {o.seconds:.0f} s", bold=True)
    if quality:
        typer.echo(
            f"  quality    {quality['class_accuracy']:.1%} of samples show the class asked for; "
            f"Fréchet distance {quality['ratio']:.2f}× that of two halves of the real data"
        )
    for row in rows:
        name = f"{row['engine']} {row['variant']}, {_count(row['threads'], 'thread')}"
        typer.echo(
            f"  latency    {name:<32} batch {row['batch']:>2}  {row['median_ms']:7.3f} ms/image  "
            f"{row['speedup']:.2f}× PyTorch eager"
        )
    typer.echo(f"  service    ready in {o.ready_s:.2f} s, {o.http_ms:.1f} ms a request over HTTP")
    typer.echo(
        f"  parity     service and PyTorch within {o.levels} of 255 levels, {o.images} seeds"
    )
    typer.echo(f"  pictures   {o.out / 'samples.png'}, {o.bench / 'bench.png'}")
    typer.echo(f"  bundle     {o.bundle}")
    _next_commands(o.bundle)
    return quality


def _next_commands(bundle: Path) -> None:
    mmf = _program()
    typer.echo("\nNext")
    for line, what in (
        (f"{mmf} serve {bundle}", "a service on http://127.0.0.1:8000, its pages at /docs"),
        (f"{mmf} demo {bundle}", "play with it on http://127.0.0.1:7860"),
        (f"{mmf} sample {bundle} --label 7 --seeds 0-99", "sevens, as samples.png"),
        (f"{mmf} inspect {bundle}", "what is in the bundle"),
        (f"{mmf} train digits --set objective.lam=0 --out runs/lambda0", "another objective"),
    ):
        typer.echo(f"  {line:<70} {what}")


def check(quality: dict[str, Any]) -> None:
    """What the digits recipe is expected to reach."""
    if not (
        quality["classifier_accuracy"] >= 0.97
        and quality["class_accuracy"] >= 0.98
        and quality["ratio"] <= 2.0
    ):
        raise MMFError(
            f"the samples are worse than they should be: class accuracy "
            f"{quality['class_accuracy']:.1%} (expected 98%) and Fréchet ratio "
            f"{quality['ratio']:.2f} (expected at most 2)"
        )


def fastest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For every engine and batch size the row of its best number of threads."""
    best: dict[tuple[str, str, int], dict[str, Any]] = {}
    for row in rows:
        key = (row["engine"], row["variant"], row["batch"])
        if key not in best or row["median_ms"] < best[key]["median_ms"]:
            best[key] = row
    return list(best.values())


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("s" if number != 1 else "")


def _program() -> str:
    """How to call `mmf` from here: its virtual environment need not be active."""
    if shutil.which("mmf"):
        return "mmf"
    beside = Path(sys.executable).with_name("mmf")
    inside = beside.is_relative_to(Path.cwd())
    return str(beside.relative_to(Path.cwd()) if inside else beside)

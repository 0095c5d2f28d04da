"""`mmf quickstart`: the whole line on the embedded digits, as a user would type it.

Every stage is run by its own command in its own process; this file only shows them one
after the other, compares what comes out, and sums up.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from mmf_deploy import bundle as bundles
from mmf_deploy import files
from mmf_deploy.errors import ConfigError, MMFError, ParityError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
SEEDS = 64
START_TIMEOUT_S = 60.0


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Directory for everything it makes.")] = Path(
        "runs/quickstart"
    ),
    recipe: Annotated[str, typer.Option(help="The recipe to train.")] = "digits",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Set a key of the recipe. Repeatable.")
    ] = None,
) -> None:
    """Train, export, benchmark and serve a generator of handwritten digits."""
    began = time.monotonic()
    run, bundle, bench = out / "run", out / Path(recipe).stem, out / "bench"
    if bundle.exists() and not (bundle / bundles.MANIFEST).is_file():
        raise ConfigError(f"{bundle} exists and is not a bundle; give --out another directory")
    sets = [part for override in overrides or () for part in ("--set", override)]
    _step(1, "train", ["train", recipe, "--out", str(run), *sets])
    _step(2, "export", ["export", str(run), "--out", str(bundle), "--force"])
    _step(3, "benchmark", ["bench", str(bundle), "--baseline", str(run), "--out", str(bench),
                           "--seconds", "3"])  # fmt: skip
    _title(4, "serve, and generate through the service")
    served, started_in, once_ms = _through_service(bundle)
    _title(5, "compare with the PyTorch sampler, seed by seed")
    levels = _compare(served, run, out)
    shutil.copy(bundle / "samples.png", out / "samples.png")
    command = shlex.join(["mmf", "quickstart", *([recipe] if recipe != "digits" else []), *sets])
    seconds = time.monotonic() - began
    quality = _summary(command, out, run, bundle, bench, levels, started_in, once_ms, seconds)
    if recipe == "digits" and not sets:
        _check(quality)


def _title(number: int, what: str) -> None:
    typer.secho(f"\n[{number}/5] {what}", bold=True)


def _mmf(args: list[str]) -> list[str]:
    return [sys.executable, "-m", "mmf_deploy.cli", *args]


def _step(number: int, what: str, args: list[str]) -> None:
    _title(number, what)
    typer.echo(f"$ {shlex.join(['mmf', *args])}")
    _run(args)


def _run(args: list[str], stdout: int | None = None) -> None:
    code = subprocess.run(_mmf(args), check=False, stdout=stdout).returncode
    if code:
        error = ConfigError if code == ConfigError.exit_code else MMFError
        raise error(f"`{shlex.join(['mmf', *args])}` failed with exit code {code}, see above")


@contextlib.contextmanager
def _service(bundle: Path) -> Iterator[tuple[str, float]]:
    """A service on a free port: its URL and the seconds until it was ready."""
    args = ["serve", str(bundle), "--port", "0"]
    typer.echo(f"$ {shlex.join(['mmf', *args])}")
    began = time.monotonic()
    with subprocess.Popen(_mmf(args), stdout=subprocess.PIPE, text=True, env=_environment()) as p:
        try:
            assert p.stdout is not None  # stdout=PIPE
            url = ""
            # a service that says nothing is ended, which ends the reading below
            watchdog = threading.Timer(START_TIMEOUT_S, p.kill)
            watchdog.start()
            for line in p.stdout:
                typer.echo(f"  {line.rstrip()}")
                if "http://" in line:
                    url = line[line.index("http://") :].split()[0]
                    break
            watchdog.cancel()
            if not url:
                raise MMFError(f"the service was not ready in {START_TIMEOUT_S:.0f} s, see above")
            yield url, time.monotonic() - began
        finally:
            p.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                p.communicate(timeout=15)
            if p.poll() is None:
                p.kill()


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONUNBUFFERED": "1"}


def _through_service(bundle: Path) -> tuple[np.ndarray, float, float]:
    """uint8 [64, H, W, C] images of seeds 0 … 63, one by one requested and in one batch."""
    with _service(bundle) as (url, started_in):
        many = _post(url, {"n": SEEDS, "seed": 0})
        times = []
        for seed in range(SEEDS):
            began = time.perf_counter()
            alone = _post(url, {"n": 1, "seed": seed})
            times.append((time.perf_counter() - began) * 1e3)
            if not _levels(alone, many[seed : seed + 1]) <= 1:
                raise ParityError(
                    f"seed {seed} gives another image alone than in a batch of {SEEDS}"
                )
    once = float(np.median(times))
    typer.echo(f"ready after {started_in:.2f} s; one image by HTTP in {once:.1f} ms (median)")
    typer.echo(f"{SEEDS} seeds, each alone and all in one batch: the same images")
    return many, started_in, once


def _post(url: str, body: dict[str, Any]) -> np.ndarray:
    request = urllib.request.Request(
        f"{url}/v1/generate",
        data=json.dumps(body).encode(),
        headers={"content-type": "application/json", "accept": "application/x-npy"},
    )
    with urllib.request.urlopen(request, timeout=30) as reply:
        found: np.ndarray = np.load(io.BytesIO(reply.read()), allow_pickle=False)
    return found


def _levels(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(np.int16) - b.astype(np.int16)).max())


def _compare(served: np.ndarray, run: Path, out: Path) -> int:
    path = out / "pytorch.npy"
    args = ["sample", str(run), "--seeds", f"0-{SEEDS - 1}", "--out", str(path)]
    typer.echo(f"$ {shlex.join(['mmf', *args])}")
    _run(args, stdout=subprocess.DEVNULL)
    levels = _levels(served, np.load(path))
    typer.echo(f"largest difference over {SEEDS} seeds: {levels} of 255 levels")
    if levels > 1:
        raise ParityError(
            f"the service's images differ from PyTorch's by {levels} levels, allowed 1"
        )
    return levels


def _summary(
    command: str,
    out: Path,
    run: Path,
    bundle: Path,
    bench: Path,
    levels: int,
    started_in: float,
    once_ms: float,
    seconds: float,
) -> dict[str, Any]:
    measured = json.loads((bench / "bench.json").read_text())
    rows = _fastest(measured["rows"])
    evaluation = run / "evaluation.json"
    quality: dict[str, Any] = json.loads(evaluation.read_text()) if evaluation.is_file() else {}
    record = {
        "command": command,
        "machine": measured["machine"],
        "versions": measured["versions"],
        "seconds": round(seconds, 1),
        "quality": quality,
        "latency": rows,
        "levels": levels,
        "ready_s": round(started_in, 2),
        "http_ms": round(once_ms, 2),
    }
    files.write_atomic(out / "quickstart.json", (json.dumps(record, indent=1) + "\n").encode())
    typer.secho(f"\nDone in {seconds:.0f} s", bold=True)
    if quality:
        typer.echo(
            f"  quality    {quality['class_accuracy']:.1%} of samples show the class asked for; "
            f"Fréchet distance {quality['ratio']:.2f}× that of two halves of the real data"
        )
    for row in rows:
        ratio = "" if row["speedup"] is None else f"  {row['speedup']:.2f}× PyTorch eager"
        name = f"{row['engine']} {row['variant']}, {_count(row['threads'], 'thread')}"
        typer.echo(
            f"  latency    {name:<32} batch {row['batch']:>2}  "
            f"{row['median_ms']:7.3f} ms/image{ratio}"
        )
    typer.echo(f"  service    ready in {started_in:.2f} s, {once_ms:.1f} ms a request over HTTP")
    typer.echo(f"  parity     service and PyTorch within {levels} of 255 levels, {SEEDS} seeds")
    typer.echo(f"  pictures   {out / 'samples.png'}, {bench / 'bench.png'}")
    typer.echo(f"  bundle     {bundle}")
    mmf = _program()
    typer.echo("\nNext")
    for line, what in (
        (f"{mmf} serve {bundle}", "a service on http://127.0.0.1:8000, its pages at /docs"),
        (f"{mmf} sample {bundle} --label 7 --seeds 0-99", "sevens, as samples.png"),
        (f"{mmf} inspect {bundle}", "what is in the bundle"),
        (f"{mmf} train digits --set objective.lam=0 --out runs/lambda0", "another objective"),
    ):
        typer.echo(f"  {line:<70} {what}")
    return quality


def _check(quality: dict[str, Any]) -> None:
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


def _fastest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
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

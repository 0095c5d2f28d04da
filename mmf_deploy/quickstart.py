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
from mmf_deploy.errors import ConfigError, MMFError, ParityError
from mmf_deploy.quickstart_summary import Outcome, check, summarise

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
    served, ready_s, http_ms = _through_service(bundle)
    _title(5, "compare with the PyTorch sampler, seed by seed")
    levels = _compare(served, run, out)
    shutil.copy(bundle / "samples.png", out / "samples.png")
    command = shlex.join(["mmf", "quickstart", *([recipe] if recipe != "digits" else []), *sets])
    seconds = time.monotonic() - began
    quality = summarise(
        Outcome(command, out, run, bundle, bench, SEEDS, levels, ready_s, http_ms, seconds)
    )
    if recipe == "digits" and not sets:
        check(quality)


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
            watchdog.daemon = True
            watchdog.start()
            for line in p.stdout:
                typer.echo(f"  {line.rstrip()}")
                if "http://" in line:
                    url = line[line.index("http://") :].split()[0]
                    break
            watchdog.cancel()
            if not url:
                raise MMFError("the service did not become ready, see above")
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
    # a proxy of the environment has no business with this machine's own service
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(request, timeout=30) as reply:
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

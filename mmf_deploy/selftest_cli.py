"""`mmf selftest`: does an engine give the right images on this machine, and how fast?"""

from __future__ import annotations

import json
import platform
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmf_deploy.errors import ConfigError

if TYPE_CHECKING:
    from mmf_deploy.engines.base import Engine
    from mmf_deploy.selftest import Selftest

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt-cu13",
            "cuda-bindings", "torch")  # fmt: skip


@app.command()
def selftest(
    bundle: Annotated[
        Path | None, typer.Argument(help="A bundle; the embedded digits if not given.")
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="For example tensorrt; the variant's own if not given.")
    ] = None,
    variant: Annotated[
        str | None, typer.Option(help="Variant of the bundle; its first one if not given.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda; the variant's own if not given.")
    ] = None,
    mode: Annotated[
        str | None, typer.Option(help="A way of running, such as cudagraph or eager.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Compute threads; the engine chooses if not given.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="The checkpoint, for --engine pytorch only.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Directory for what is compiled on this machine.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Time per bucket, after the checks.")] = 0.3,
    out: Annotated[Path | None, typer.Option(help="A .json file for the result.")] = None,
) -> None:
    """Check an engine on this machine against the golden images, in every batch size; time it."""
    from mmf_deploy import bundle as bundles
    from mmf_deploy.embedded import digits_bundle
    from mmf_deploy.engines.base import EngineOptions, open_engine
    from mmf_deploy.progress import TaskProgress
    from mmf_deploy.selftest import run_selftest

    if not seconds > 0:
        raise ConfigError(f"--seconds {seconds:g}: expected more than 0")
    if out is not None and (out.suffix != ".json" or out.is_dir()):
        raise ConfigError(f"--out {out}: expected the name of a file that ends in .json")
    options = EngineOptions(device, threads, checkpoint, mode, cache)
    found = bundles.load(bundle or digits_bundle())
    opened = open_engine(engine, found, variant, options)
    typer.echo(f"self-test of {_subject(opened)} with {found.manifest.name}")
    with opened, TaskProgress("%", 100) as progress:
        result = run_selftest(opened, seconds, progress.show)
    _table(result)
    if out is not None:
        _write(out, opened, result)
        typer.echo(f"written: {out}")
    typer.echo(_verdict(opened, result))


def _subject(engine: Engine) -> str:
    how = "" if engine.mode == "default" else f" ({engine.mode})"
    return f"engine {engine.name}{how} on {engine.device}, variant {engine.variant.name}"


def _verdict(engine: Engine, result: Selftest) -> str:
    first = result.rows[0]
    return (
        f"selftest passed: {_subject(engine)}: golden within {result.golden:g} {result.unit}, "
        f"{len(result.rows)} batch sizes, {first.median_ms:.3f} ms at batch {first.batch}"
    )


def _table(result: Selftest) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="a call, arrays in to arrays out", title_justify="left")
    for column in ("batch", "bucket", "difference", "median ms", "p90 ms", "images/s"):
        table.add_column(column, justify="right")
    for row in result.rows:
        times = (row.median_ms, row.p90_ms)
        table.add_row(
            str(row.batch),
            str(row.bucket),
            f"{row.difference:g}",
            *("" if ms is None else f"{ms:.3f}" for ms in times),
            "" if row.images_per_s is None else f"{row.images_per_s:,.0f}",
        )
    Console(width=100).print(table)


def _write(out: Path, engine: Engine, result: Selftest) -> None:
    from mmf_deploy import files, machine

    record: dict[str, Any] = {
        "command": shlex.join(["mmf", "selftest", *sys.argv[2:]]),
        "bundle": engine.bundle.manifest.name,
        "digest": engine.bundle.digest,
        "engine": engine.name,
        "mode": engine.mode,
        "variant": engine.variant.name,
        "precision": engine.precision,
        "device": engine.device,
        # what an engine knows of its own device, where it does
        "device_facts": engine.about,
        "machine": machine.describe(),
        "versions": _versions(),
        "result": result.as_dict(),
    }
    files.write_atomic(out, (json.dumps(record, indent=1) + "\n").encode())


def _versions() -> dict[str, str]:
    from importlib import metadata

    from mmf_deploy import __version__

    found = {"mmf-deploy": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found

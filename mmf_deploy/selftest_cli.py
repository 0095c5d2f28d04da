"""`mmf selftest`: does an engine give the right images on this machine, and how fast?"""

from __future__ import annotations

import platform
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmf_deploy.errors import ConfigError

if TYPE_CHECKING:
    from mmf_deploy.engines.base import Engine
    from mmf_deploy.results import Result, Table
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
    max_batch: Annotated[
        int | None, typer.Option(min=1, help="Leave out larger batches than this.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Time per bucket, after the checks.")] = 0.3,
    out: Annotated[Path | None, typer.Option(help="A .json file; a .md comes with it.")] = None,
) -> None:
    """Check an engine on this machine against the golden images, in every batch size; time it."""
    from mmf_deploy import bundle as bundles
    from mmf_deploy import results
    from mmf_deploy.embedded import digits_bundle
    from mmf_deploy.engines.base import EngineOptions, open_engine
    from mmf_deploy.progress import TaskProgress
    from mmf_deploy.selftest import run_selftest

    if not seconds > 0:
        raise ConfigError(f"--seconds {seconds:g}: expected more than 0")
    if out is not None and (out.suffix != ".json" or out.is_dir()):
        raise ConfigError(f"--out {out}: expected the name of a file that ends in .json")
    options = EngineOptions(device, threads, checkpoint, mode, cache, max_batch)
    given = bundles.load(bundle or digits_bundle())
    opened = open_engine(engine, given, variant, options)
    typer.echo(f"self-test of {_subject(opened)} with {given.manifest.name}")
    with opened, TaskProgress("%", 100) as progress:
        found = run_selftest(opened, seconds, progress.show)
    result = _result(opened, found)
    result.tables[0].print()
    if out is not None:
        results.prepare(out.parent, pictures=False)
        typer.echo(results.write(out.parent, out.stem, result))
    typer.echo(_verdict(opened, found))


def _subject(engine: Engine) -> str:
    how = "" if engine.mode == "default" else f" ({engine.mode})"
    return f"engine {engine.name}{how} on {engine.device}, variant {engine.variant.name}"


def _verdict(engine: Engine, result: Selftest) -> str:
    first = result.rows[0]
    return (
        f"selftest passed: {_subject(engine)}: golden within {result.golden:g} {result.unit}, "
        f"{len(result.rows)} batch sizes, {first.median_ms:.3f} ms at batch {first.batch}"
    )


def _table(found: Selftest) -> Table:
    from mmf_deploy.results import Table

    timed = any(row.device_ms is not None for row in found.rows)
    columns = ["batch", "bucket", "difference", "median ms", "p90 ms", "images/s"]
    rows = []
    for row in found.rows:
        times = (row.median_ms, row.p90_ms)
        cells = [
            str(row.batch),
            str(row.bucket),
            f"{row.difference:g}",
            *("" if ms is None else f"{ms:.3f}" for ms in times),
            "" if row.images_per_s is None else f"{row.images_per_s:,.0f}",
        ]
        if timed:
            cells.append("" if row.device_ms is None else f"{row.device_ms:.3f}")
        rows.append(cells)
    notes = [
        f"differences to the same samples computed one by one, {found.unit}; allowed: "
        f"{found.allowed}"
    ]
    if found.memory_mb is not None:
        notes.append(f"most device memory: {found.memory_mb:,.0f} MB")
    return Table(
        "a call, arrays in to arrays out",
        [*columns, "device ms"] if timed else columns,
        rows,
        notes,
        left=0,
    )


def _result(engine: Engine, found: Selftest) -> Result:
    from mmf_deploy import machine
    from mmf_deploy.results import Result

    about = {"gpu": engine.about["gpu"]} if "gpu" in engine.about else {}
    return Result(
        kind="selftest",
        title=f"Self-test of {_subject(engine)}, {engine.bundle.manifest.name}",
        command=shlex.join(["mmf", "selftest", *sys.argv[2:]]),
        machine=machine.describe() | about,
        versions=_versions(),
        tables=[_table(found)],
        content={
            "bundle": engine.bundle.manifest.name,
            "digest": engine.bundle.digest,
            "engine": engine.name,
            "mode": engine.mode,
            "variant": engine.variant.name,
            "precision": engine.precision,
            "device": engine.device,
            # what an engine knows of its own device, where it does
            "device_facts": engine.about,
            "result": found.as_dict(),
        },
    )


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

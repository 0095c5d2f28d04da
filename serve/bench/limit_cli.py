"""`mmf bench-limit`: is the floor right? Plain graphs of known counts against it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from mmf_deploy.command_line import again, integers
from mmf_deploy.errors import ConfigError, ParityError
from mmf_deploy.progress import TaskProgress

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(name="bench-limit")
def bench_limit(
    ctx: typer.Context,
    threads: Annotated[
        str | None,
        typer.Option(help="Compute threads, comma-separated; 1 and all cores if not given."),
    ] = None,
    seconds: Annotated[
        float, typer.Option(help="For each graph in each dtype, after warm-up.")
    ] = 6.0,
    out: Annotated[
        Path | None, typer.Option(help="Directory for limit-cpu.json and limit-cpu.md.")
    ] = None,
) -> None:
    """Time a plain matrix product and a plain 3×3 convolution in turns with the machine's rates.

    The floor that `mmf bench` prints is made of these rates. Ends with an error where the fastest
    engine is more than 15% away from the floor of a plain fp32 graph.
    """
    from mmf_deploy import machine, results

    from .limit_check import check, failures, result
    from .measure import versions

    if not 0 < seconds < math.inf:
        raise ConfigError(f"--seconds {seconds:g}: expected more than 0")
    cores = machine.available_cores()
    counts = integers("--threads", threads, "1,2") if threads else sorted({1, cores})
    if out is not None:
        results.prepare(out, pictures=False)
    typer.echo(f"checking the floor with {', '.join(map(str, counts))} threads")
    with TaskProgress("%", 100) as progress:
        found = check(
            counts, seconds, on_progress=lambda what, share: progress.show(what, int(100 * share))
        )
        progress.show("checked", 100)
    packages = versions({"onnxruntime", "openvino", "pytorch"})
    whole = result(found, again(ctx, "mmf bench-limit"), machine.describe(), packages)
    for table in whole.tables:
        table.print()
    if out is not None:
        typer.echo(results.write(out, "limit-cpu", whole))
    if wrong := failures(found):
        raise ParityError("the floor is not within 15%: " + "; ".join(wrong))

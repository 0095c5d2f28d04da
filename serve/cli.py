"""`mmf-serve`: serve a bundle over HTTP."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmf_deploy.errors import ConfigError

if TYPE_CHECKING:
    from mmf_deploy.engines.base import Engine

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class LogLevel(enum.StrEnum):
    """How much goes to stderr."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"
    DEBUG = "debug"


@app.command()
def serve(
    bundle: Annotated[
        Path | None, typer.Argument(help="A bundle made by mmf-export; digits if not given.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 picks a free one.")] = 8000,
    engine: Annotated[
        str | None,
        typer.Option(help="An engine other than the variant's own, e.g. pytorch or openvino."),
    ] = None,
    variant: Annotated[
        str | None, typer.Option(help="Variant of the bundle; its first one if not given.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda; the variant's own if not given.")
    ] = None,
    mode: Annotated[
        str | None, typer.Option(help="One of the engine's modes, e.g. compile (docs/engines.md).")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Compute threads; the engine chooses if not given.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="The checkpoint, for --engine pytorch only.")
    ] = None,
    max_queue: Annotated[
        int, typer.Option(min=1, help="Most images that may wait; more are refused with 503.")
    ] = 1024,
    log_level: Annotated[LogLevel, typer.Option(help="Log to stderr.")] = LogLevel.WARNING,
) -> None:
    """Serve a bundle over HTTP. Prints one line when it is ready; Ctrl+C drains and stops."""
    if (checkpoint is not None) != (engine == "pytorch"):
        raise ConfigError("--checkpoint DIR goes with --engine pytorch, and only with it")
    from .listen import listen

    # a port in use is said at once, before anything slow
    listener = listen(host, port)
    with listener:
        options = (device, threads, checkpoint, mode)
        opened = _engine(bundle, engine, variant, options)
        from .server import serve as run
        from .service import Limits, Service

        run(Service(opened, Limits(max_queue_images=max_queue)), listener, log_level.value)


def _engine(
    bundle: Path | None,
    name: str | None,
    variant: str | None,
    given: tuple[str | None, int | None, Path | None, str | None],
) -> Engine:
    from mmf_deploy.bundle import load
    from mmf_deploy.embedded import digits_bundle
    from mmf_deploy.engines.base import EngineOptions, open_engine

    device, threads, checkpoint, mode = given
    options = EngineOptions(device, threads, checkpoint, mode)
    return open_engine(name, load(bundle or digits_bundle()), variant, options)

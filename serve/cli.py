"""`mmf-serve`: serve bundles over HTTP."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class LogLevel(enum.StrEnum):
    """How much goes to stderr."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"
    DEBUG = "debug"


class LogFormat(enum.StrEnum):
    """What a line of the log is."""

    TEXT = "text"
    JSON = "json"


def _option(help_text: str, name: str, **limits: Any) -> Any:
    return typer.Option(f"--{name}", help=help_text, show_default=False,
                        envvar=f"MMF_SERVE_{_variable(name)}", **limits)  # fmt: skip


def _by_variable(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "ENVIRONMENT"


def _variable(name: str) -> str:
    return name.partition("/")[0].upper().replace("-", "_")


ENGINE = "An engine other than the variant's own, e.g. pytorch or openvino."
VARIANT = "Variant of the bundle; its first one if not given."
MODE = "One of the engine's modes, e.g. compile (docs/engines.md)."
THREADS = "Compute threads; the engine chooses if not given."
MAX_QUEUE = "Most images that may wait; more are refused with 503 (1024)."
MAX_IMAGES = "Most images in one request (256)."
KEYS = "File of API keys (mmf api-keys); whoever has none is refused."
CORS = "Origin whose pages may call this service, e.g. https://example.org; repeatable."
WATCH = "Look every so many seconds whether a bundle has been replaced, and serve the new one."
DRAIN = "Seconds after a signal in which requests are still taken, so that clients can move (0.5)."
RAY = "Run as a Ray Serve deployment with so many replicas (docs/scaling.md)."


@app.command()
def serve(
    ctx: typer.Context,
    bundle: Annotated[
        Path | None,
        typer.Argument(
            help="A bundle made by mmf-export; digits if not given.", envvar="MMF_SERVE_BUNDLE"
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        _option("NAME=BUNDLE, repeatable: several models, the first the default one.", "model"),
    ] = None,
    config: Annotated[Path | None, _option("YAML file of settings.", "config")] = None,
    host: Annotated[str | None, _option("Address to listen on (127.0.0.1).", "host")] = None,
    port: Annotated[
        int | None, _option("Port; 0 picks a free one (8000).", "port", min=0, max=65535)
    ] = None,
    engine: Annotated[str | None, _option(ENGINE, "engine")] = None,
    variant: Annotated[str | None, _option(VARIANT, "variant")] = None,
    device: Annotated[
        str | None, _option("cpu or cuda; the variant's own if not given.", "device")
    ] = None,
    mode: Annotated[str | None, _option(MODE, "mode")] = None,
    threads: Annotated[int | None, _option(THREADS, "threads", min=1)] = None,
    checkpoint: Annotated[
        Path | None, _option("The checkpoint, for --engine pytorch only.", "checkpoint")
    ] = None,
    max_queue: Annotated[int | None, _option(MAX_QUEUE, "max-queue", min=1)] = None,
    max_images: Annotated[int | None, _option(MAX_IMAGES, "max-images", min=1)] = None,
    max_body: Annotated[
        int | None, _option("Largest request body in bytes (1 MiB).", "max-body", min=1024)
    ] = None,
    encoders: Annotated[
        int | None, _option("Threads that encode replies (2).", "encoders", min=1)
    ] = None,
    api_keys: Annotated[Path | None, _option(KEYS, "api-keys")] = None,
    cors: Annotated[list[str] | None, _option(CORS, "cors")] = None,
    watch: Annotated[float | None, _option(WATCH, "watch")] = None,
    drain_delay: Annotated[float | None, _option(DRAIN, "drain-delay")] = None,
    log_level: Annotated[
        LogLevel | None, _option("Log to stderr (warning); info has every request.", "log-level")
    ] = None,
    log_format: Annotated[LogFormat | None, _option("text or json (text).", "log-format")] = None,
    otel: Annotated[
        bool | None, _option("Send traces, as OTEL_* variables say.", "otel/--no-otel")
    ] = None,
    ray: Annotated[int | None, _option(RAY, "ray", min=1)] = None,
) -> None:
    """Serve bundles over HTTP. Prints one line when it is ready; Ctrl+C drains and stops.

    SIGHUP reads bundles and API keys again. Options are also lines of the --config file, and
    environment variables; several values of one are separated by blanks.
    """
    given = {k: v for k, v in locals().items() if k not in ("ctx", "model", "config", "ray")}
    from .settings import named_models, read

    given["models"] = named_models(model) if model else None
    given["cors"] = cors or None
    # one bundle or named models: a flag for one wins over a variable for the other
    for name, other, parameter in (("bundle", "models", "model"), ("models", "bundle", "bundle")):
        by_flag = given[name] is not None and not _by_variable(ctx, name.removesuffix("s"))
        if by_flag and _by_variable(ctx, parameter):
            given[other] = None
    settings = read(config, given)
    if ray is not None:
        from .ray_app import run as run_on_ray

        run_on_ray(settings, replicas=ray)
        return
    from .launch import launch

    launch(settings)

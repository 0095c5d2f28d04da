"""From settings to the engines of every model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmf_deploy.bundle import load
from mmf_deploy.embedded import digits_bundle
from mmf_deploy.engines.base import BUCKETS, Engine, EngineOptions, open_engine
from mmf_deploy.errors import MMFError

from .model import Source
from .service import Limits
from .settings import Settings


def limits_of(settings: Settings) -> Limits:
    """What the service takes on."""
    return Limits(
        max_images=settings.max_images,
        max_queue_images=settings.max_queue,
        max_body_bytes=settings.max_body,
        encoders=settings.encoders,
    )


def sources_of(settings: Settings) -> dict[str, Source]:
    """What gives the engines of each model; a single bundle goes under its own name.

    Raises:
        MMFError: the single bundle cannot be loaded.
    """
    if settings.models:
        return {name: _source(path, settings) for name, path in settings.models.items()}
    path = settings.bundle or digits_bundle()
    return {load(path).manifest.name: _source(path, settings)}


def _source(path: Path, settings: Settings) -> Source:
    def engines() -> Sequence[Engine]:
        return engines_of(path, settings)

    return engines


def engines_of(path: Path, settings: Settings) -> list[Engine]:
    """The engine that serves a bundle, and those of its siblings with other numbers of steps.

    A sibling has the same target and precision. One that cannot be built is left out: nobody
    asked for it by name.

    Raises:
        MMFError: the bundle is missing, corrupt or of another kind, or has no such variant.
    """
    bundle = load(path)
    options = EngineOptions(
        settings.device,
        settings.threads,
        settings.checkpoint,
        settings.mode,
        # on a GPU engines take 512 at once; preparing so much in the first burst would take
        # seconds and gigabytes
        max_batch=BUCKETS[-1],
    )
    main = open_engine(settings.engine, bundle, settings.variant, options)
    engines, seen = [main], {main.variant.steps}
    for other in bundle.manifest.variants:
        kind = (other.target, other.precision)
        if other.steps in seen or kind != (main.variant.target, main.variant.precision):
            continue
        try:
            engines.append(open_engine(settings.engine, bundle, other.name, options))
        except MMFError:
            continue
        seen.add(other.steps)
    return engines

"""`mmf-serve` after its options are read: port, models, server."""

from __future__ import annotations

import signal

from .api_keys import KeyRing
from .front import Front
from .listen import listen
from .loading import limits_of, sources_of
from .log_format import configure
from .server import serve
from .service import Service
from .settings import Settings
from .watching import Watch


def launch(settings: Settings) -> None:
    """Serve until a signal comes.

    Raises:
        MMFError: the port, a bundle, an engine or the file of keys is not usable.
    """
    # until there is something to reload, the signal for it must not end the process
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # a port in use is said at once, before anything slow
    with listen(settings.host, settings.port) as listener:
        configure(settings.log_level.value, settings.log_format.value)
        service = Service(sources_of(settings), limits_of(settings))
        front = front_of(settings, service)
        watch = None if settings.watch is None else Watch(service, settings.watch)
        try:
            serve(service, listener, front, watch, settings.drain_delay, settings.log_level.value)
        finally:
            if front.tracing is not None:
                from . import tracing

                tracing.finish(front.tracing)


def front_of(settings: Settings, service: Service) -> Front:
    """What stands before the routes.

    Raises:
        ConfigError: the file of keys is missing or wrong.
        DependencyError: tracing was asked for and is not installed.
    """
    keys = provider = None
    if settings.api_keys is not None:
        keys = KeyRing.read(settings.api_keys)
        service.on_reload.append(keys.reload)
    if settings.otel:
        from . import tracing

        provider = tracing.configure()
    return Front(keys=keys, cors=settings.cors, tracing=provider)

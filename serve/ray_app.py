"""The service on Ray Serve: a deployment of replicas, on a cluster or on this machine alone.

``serve run mmf_deploy.serve.ray_app:app bundle=BUNDLE`` and the files in deploy/ray are for a
cluster, ``mmf-serve --ray N`` is for one machine (docs/scaling.md).
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from mmf_deploy.errors import ConfigError, MMFError, require
from mmf_deploy.machine import available_cores

from .listen import listen
from .loading import sources_of
from .log_format import configure
from .ray_settings import PROXY_SETTINGS, RaySettings, placed, settings_of
from .settings import LogLevel, Settings

if TYPE_CHECKING:
    from ray.serve import Application

APPLICATION, DEPLOYMENT = "mmf", "Images"
"""What ``serve status`` and a serve config call them."""

GRACE_S = 60.0
"""How long a replica that is to go may take to answer what it has accepted."""

SLACK = 64
"""Requests beside those for images: health, metadata, documentation."""

OBJECT_STORE_BYTES = 80 << 20
"""About the least that Ray takes; neither requests nor replies go through it."""

LOOK_S = 5.0

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # whatever its name says: on Linux, too, 0 keeps Ray's own ports on the loopback interface
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "mmf_deploy.serve.ray_proxy:middlewares",
}
AUTHENTICATION = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def app(args: Mapping[str, Any]) -> Application:
    """The application of ``serve run mmf_deploy.serve.ray_app:app name=value …``.

    Args:
        args: what RaySettings has, by name.
    Raises:
        ConfigError: one is wrong.
        MMFError: a bundle cannot be loaded here.
    """
    return build(settings_of(args))


def build(settings: RaySettings) -> Application:
    """A deployment, described and not yet running.

    Raises:
        DependencyError: Ray is not installed.
        MMFError: a bundle cannot be loaded here.
    """
    serve = require("ray.serve", "ray")
    from .ray_replica import Replica

    settings = placed(settings)
    deployment = serve.deployment(
        serve.ingress(None)(Replica), name=DEPLOYMENT, **_options(settings)
    )
    bound: Application = deployment.bind(settings)
    return bound


def _options(settings: RaySettings) -> dict[str, Any]:
    limit = settings.max_queue + SLACK
    count: dict[str, Any] = {"num_replicas": settings.replicas}
    if settings.max_replicas is not None and settings.max_replicas > settings.replicas:
        count = {
            "autoscaling_config": {
                "min_replicas": settings.replicas,
                "max_replicas": settings.max_replicas,
                "target_ongoing_requests": settings.target,
                "upscale_delay_s": 5.0,
                "downscale_delay_s": 300.0,
            }
        }
    return count | {
        # a replica's own admission, which counts images, is to refuse before Ray does
        "max_ongoing_requests": limit,
        "max_queued_requests": limit,
        "backpressure_config": {"status_code": 503, "retry_after_s": 1.0},
        "graceful_shutdown_wait_loop_s": 0.2,
        "graceful_shutdown_timeout_s": GRACE_S,
        "health_check_period_s": 1.0,
        "health_check_timeout_s": 30.0,
        # golden images that were missed are missed again
        "max_constructor_retry_count": 2,
        "ray_actor_options": {"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
        "logging_config": {"enable_access_log": False},
    }


def run(settings: Settings, replicas: int = 1) -> None:
    """Serve with a Ray of this machine alone, until SIGINT or SIGTERM.

    Prints one line when every replica is ready.

    Raises:
        ConfigError: the port is in use, or there are not enough GPUs.
        DependencyError: Ray is not installed.
        MMFError: a bundle cannot be served; says why.
    """
    # taken and given back: a port in use is said at once, before anything slow
    with listen(settings.host, settings.port) as listener:
        host, port = listener.getsockname()[:2]
    configure(settings.log_level.value, settings.log_format.value)
    spread = placed(_spread(settings, replicas))
    _set_environment(quiet=settings.log_level not in (LogLevel.INFO, LogLevel.DEBUG))
    ray, serve = require("ray", "ray"), require("ray.serve", "ray")
    stop = threading.Event()
    try:
        ray.init(
            address="local",
            include_dashboard=False,
            num_cpus=available_cores(),
            object_store_memory=OBJECT_STORE_BYTES,
            logging_level=settings.log_level.value,
        )
        logging.getLogger("ray.serve").setLevel(settings.log_level.value.upper())
        _check_gpus(spread, ray.cluster_resources().get("GPU", 0))
        with _signals(stop):  # after Ray has taken SIGTERM for itself
            serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port})
            _deploy(serve, build(spread))
            shown = f"[{host}]" if ":" in host else host
            print(f"serving {_models(spread)} on http://{shown}:{port}", flush=True)
            while not stop.wait(LOOK_S):
                if not any(node["Alive"] for node in ray.nodes()):
                    raise MMFError(
                        "Ray on this machine died; its files say why, by default in "
                        "/tmp/ray/session_latest/logs"
                    )
            serve.delete(APPLICATION)  # drains, while the proxies still pass replies on
    finally:
        ray.shutdown()


def _spread(settings: Settings, replicas: int) -> RaySettings:
    """Replicas that share the machine's cores."""
    cores = available_cores()
    given = settings.model_dump(exclude_unset=True, exclude=set(PROXY_SETTINGS))
    threads = settings.threads or max(1, cores // replicas)
    # a share is an entry in Ray's books; if they are overdrawn, replicas wait for ever
    share = min(float(threads), cores / replicas)
    return RaySettings(**given | {"threads": threads, "replicas": replicas, "num_cpus": share})


def _set_environment(quiet: bool) -> None:
    """What Ray reads when it is imported, and its processes after it; what is set stays."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if quiet:  # Ray's own messages go to its files alone
        os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
    if not any(name in os.environ for name in AUTHENTICATION):
        # nobody else is to join: a token for this run, in no file
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _check_gpus(settings: RaySettings, found: float) -> None:
    needed = (settings.num_gpus or 0) * settings.replicas
    if needed > found:
        raise ConfigError(
            f"--ray {settings.replicas}: that many replicas take {needed:g} GPUs, one each, and "
            f"Ray finds {found:g} here; ask for fewer, or serve with --device cpu"
        )


def _deploy(serve: Any, application: Any) -> None:
    """Start the replicas and wait until each has reproduced the golden images."""
    try:
        serve.run(application, name=APPLICATION, route_prefix="/")
    except RuntimeError:
        found = serve.status().applications.get(APPLICATION)
        deployment = found and found.deployments.get(DEPLOYMENT)
        raise MMFError(f"no replica became ready: {_reason(deployment)}") from None


def _reason(deployment: Any) -> str:
    """The last line of the traceback that Ray keeps of a replica."""
    lines = [line.strip() for line in str(getattr(deployment, "message", "")).splitlines()]
    told = [line for line in lines if line]
    return told[-1].partition("Error: ")[2] or told[-1] if told else "Ray does not say why"


@contextmanager
def _signals(stop: threading.Event) -> Iterator[None]:
    def handle(sig: int, frame: FrameType | None) -> None:
        stop.set()

    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def _models(settings: Settings) -> str:
    bundles = {name: source()[0].bundle for name, source in sources_of(settings).items()}
    return ", ".join(f"{name} ({bundle.digest[:12]})" for name, bundle in bundles.items())

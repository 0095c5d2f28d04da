"""What replicas on Ray are told: the service's settings, how many they are, what each takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from mmf_deploy.embedded import digits_bundle
from mmf_deploy.errors import ConfigError, nearest

from .loading import sources_of
from .settings import Settings

CPU_TARGET = 4
"""Requests under way per replica on a CPU, where a batch takes about as long as its images."""

PROXY_SETTINGS = frozenset({"host", "port", "drain_delay"})
"""Ray's proxies listen, not the replicas."""


class RaySettings(Settings):
    """Settings of the service and of its replicas.

    Attributes:
        replicas: how many there are; with ``max_replicas`` how many there are at least.
        max_replicas: how many there may be under load; ``replicas`` if not given.
        target: requests under way that one replica shall have before there is to be another; by
            default a full batch on a GPU and 4 on a CPU.
        num_cpus: of the cluster that a replica takes; its ``threads``, or 1.
        num_gpus: likewise; 1 on CUDA, for one process per device.
    """

    replicas: int = Field(1, ge=1)
    max_replicas: int | None = Field(None, ge=1)
    target: float | None = Field(None, gt=0)
    num_cpus: float | None = Field(None, gt=0)
    num_gpus: float | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _counted(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(
                f"max_replicas is {self.max_replicas}, but there are {self.replicas} replicas at "
                "least; raise it or leave it out"
            )
        return self


def settings_of(args: Mapping[str, Any]) -> RaySettings:
    """Settings from names and values; texts are understood.

    Raises:
        ConfigError: one of them is wrong, or is not the replicas' to say.
    """
    for name in args:
        if name in PROXY_SETTINGS:
            raise ConfigError(
                f"{name}: Ray's proxies listen, not the replicas; see http_options in "
                "deploy/ray/serve.yaml"
            )
        if name not in RaySettings.model_fields:
            raise ConfigError(f"{name}: no such setting{nearest(name, RaySettings.model_fields)}")
    try:
        return RaySettings.model_validate(dict(args))
    except ValidationError as e:
        first = e.errors(include_url=False, include_context=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        text = first["msg"].removeprefix("Value error, ")
        if not name:
            raise ConfigError(text) from None
        raise ConfigError(f"{name}: {text[:1].lower() + text[1:]}, "
                          f"got {str(first['input'])[:60]!r}") from None  # fmt: skip


def placed(settings: RaySettings) -> RaySettings:
    """The same with nothing left open: absolute paths, threads, shares, a target.

    Raises:
        MMFError: a bundle cannot be loaded here; none is where GPUs and target are given.
    """
    here = Path.cwd()
    bundle = None if settings.models else here / (settings.bundle or digits_bundle())
    num_cpus = settings.num_cpus or float(settings.threads or 1)
    settings = settings.model_copy(
        update={
            "bundle": bundle,
            "models": {name: here / path for name, path in settings.models.items()},
            "checkpoint": settings.checkpoint and here / settings.checkpoint,
            "api_keys": settings.api_keys and here / settings.api_keys,
            "num_cpus": num_cpus,
            "threads": settings.threads or max(1, int(num_cpus)),
        }
    )
    if settings.num_gpus is not None and settings.target is not None:
        return settings
    engines = [engine for source in sources_of(settings).values() for engine in source()]
    gpu = any(engine.device.startswith("cuda") for engine in engines)
    largest = max(engine.buckets[-1] for engine in engines)
    return settings.model_copy(
        update={
            "num_gpus": float(gpu) if settings.num_gpus is None else settings.num_gpus,
            "target": settings.target or float(largest if gpu else min(largest, CPU_TARGET)),
        }
    )

"""GET /metrics where there are replicas: those of all of them, whichever one is asked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from .metrics import Metrics

Gather = Callable[[], Awaitable[Mapping[str, bytes]]]
"""Gives the metrics of every replica that answers, by its name."""


class AllMetrics:
    """Middleware that answers GET /metrics, with a label ``replica`` on every sample.

    A proxy hands a scrape to any replica, so counters of one alone would jump back and forth.
    """

    def __init__(self, app: ASGIApp, gather: Gather) -> None:
        self.app = app
        self.gather = gather

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass the request on."""
        if scope["type"] != "http" or (scope["method"], scope["path"]) != ("GET", "/metrics"):
            await self.app(scope, receive, send)
            return
        text = merged(await self.gather())
        reply = Response(text, headers={"Content-Type": Metrics.content_type})
        await reply(scope, receive, send)


def merged(texts: Mapping[str, bytes]) -> bytes:
    """One text in Prometheus' format from those of several replicas."""
    families: dict[str, Metric] = {}
    for replica, text in texts.items():
        for family in text_string_to_metric_families(text.decode()):
            found = families.setdefault(
                family.name, Metric(family.name, family.documentation, family.type)
            )
            found.samples += [
                s._replace(labels={**s.labels, "replica": replica}) for s in family.samples
            ]
    registry = CollectorRegistry()
    registry.register(_Families(families))
    return generate_latest(registry)


class _Families(Collector):
    def __init__(self, families: Mapping[str, Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        """As they are."""
        yield from self._families.values()

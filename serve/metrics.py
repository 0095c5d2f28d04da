"""What the service counts, for Prometheus: GET /metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from .batcher import Observer

if TYPE_CHECKING:
    from .model import Model

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Every metric of one service, in a registry of its own."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        # a second time series for each, which nobody reads
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = self._counter("requests", "HTTP replies.", "route", "method", "status")
        self.request_seconds = self._histogram("request_seconds", "From request to reply.", "route")
        self.in_flight = Gauge(
            "mmf_requests_in_flight", "Requests being answered.", registry=self.registry
        )
        self.images = self._counter("images", "Images made for requests.", "model", "variant")
        self.queue_seconds = self._histogram(
            "queue_seconds", "From a request's arrival to the start of its first batch.", "model"
        )
        self.infer_seconds = self._histogram("infer_seconds", "Of one batch.", "model")
        self.encode_seconds = self._histogram(
            "encode_seconds", "From a request's last image to its encoded reply.", "model"
        )
        self.batch_images = self._histogram(
            "batch_images", "Images in a batch, padding left out.", "model", buckets=IMAGES
        )
        self.padding = self._counter(
            "padding_images", "Places in batches that held no image.", "model"
        )
        self.shed = self._counter("shed", "Requests refused, by reason.", "model", "reason")
        self.dropped = self._counter(
            "dropped_images", "Accepted images dropped before they were made.", "model", "reason"
        )
        self.failed_batches = self._counter("failed_batches", "Batches that failed.", "model")
        self.reloads = self._counter("reloads", "Bundles read again.", "model", "outcome")

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"mmf_{name}_total", text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, *labels: str, buckets: tuple[float, ...] = SECONDS
    ) -> Histogram:
        return Histogram(f"mmf_{name}", text, labels, buckets=buckets, registry=self.registry)

    def observer(self, model: str) -> Observer:
        """What a model's batchers report to."""
        for outcome in ("replaced", "unchanged", "failed"):
            self.reloads.labels(model, outcome)  # else the first one is no increase of anything
        return _ModelObserver(self, model)

    def watch(self, ready: Callable[[], bool], models: Callable[[], Iterator[Model]]) -> None:
        """Read the state of the service whenever the metrics are asked for."""
        self.registry.register(_State(ready, models))

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self.registry)


class _ModelObserver(Observer):
    def __init__(self, metrics: Metrics, model: str) -> None:
        self._infer = metrics.infer_seconds.labels(model)
        self._batch = metrics.batch_images.labels(model)
        self._padding = metrics.padding.labels(model)
        self._failed = metrics.failed_batches.labels(model)
        self._dropped = metrics.dropped
        self._model = model

    def batch(self, size: int, bucket: int, seconds: float) -> None:
        self._infer.observe(seconds)
        self._batch.observe(size)
        self._padding.inc(bucket - size)

    def batch_failed(self, size: int) -> None:
        self._failed.inc()

    def dropped(self, images: int, reason: str) -> None:
        self._dropped.labels(self._model, reason).inc(images)


class _State(Collector):
    """Gauges that are read, not kept."""

    def __init__(self, ready: Callable[[], bool], models: Callable[[], Iterator[Model]]) -> None:
        self._ready = ready
        self._models = models

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges as they are now."""
        yield GaugeMetricFamily("mmf_ready", "1 when the service is ready.", float(self._ready()))
        queue = GaugeMetricFamily(
            "mmf_queue_images", "Images that wait.", labels=["model", "priority"]
        )
        running = GaugeMetricFamily(
            "mmf_running_images", "Images in the batches that run.", labels=["model"]
        )
        about = ["model", "digest", "variant", "engine", "device", "precision"]
        info = GaugeMetricFamily("mmf_model_info", "1 for what serves a model.", labels=about)
        for model in self._models():
            loaded = model.loaded
            for lane in loaded.lanes.values():
                engine = lane.engine
                info.add_metric(
                    [model.name, loaded.digest, engine.variant.name, engine.name, engine.device,
                     engine.precision],
                    1.0,
                )  # fmt: skip
            batchers = [b for lane in loaded.lanes.values() for b in lane.batchers]
            running.add_metric([model.name], sum(b.running for b in batchers))
            waiting = [b.waiting_by_priority for b in batchers]
            for priority in waiting[0] if waiting else ():
                count = sum(w[priority] for w in waiting)
                queue.add_metric([model.name, str(priority)], count)
        yield from (queue, running, info)

"""What routes ask of a service, and what it keeps about a request on its way."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from starlette.requests import Request

from .job import Job
from .made import Timing
from .model import Lane, Loaded
from .samples import Item, Part, Priority


@dataclass(frozen=True)
class Limits:
    """What the service takes on.

    Attributes:
        max_images: most images in one request.
        max_queue_images: most images of a model that may wait, and most that may wait to be
            encoded; larger requests are refused outright.
        max_body_bytes: largest request body.
        encoders: threads that encode replies.
    """

    max_images: int = 256
    max_queue_images: int = 1024
    max_body_bytes: int = 1 << 20
    encoders: int = 2

    @property
    def request_images(self) -> int:
        """Most images a request can have and still find room in an empty queue."""
        return min(self.max_images, self.max_queue_images)


@dataclass(frozen=True)
class Work:
    """What a route asks for.

    Attributes:
        steps: of the variant that makes them; those of the model's main one if None.
        deadline_s: seconds from now after which nobody wants them.
        trajectory: whether the whole way of each image is wanted, and not only its end. It counts
            as one image: in limits, budgets and metrics.
    """

    items: list[Item]
    steps: int | None = None
    priority: Priority = Priority.NORMAL
    deadline_s: float | None = None
    trajectory: bool = False


class Limiter(Protocol):
    """Budgets of clients, in images."""

    def take(self, request: Request, model: str, images: int) -> None:
        """Take images of a model from the budget of a request's client.

        Raises:
            RequestError: this client may not use that model.
            OverloadedError: 429, it is used up; says when there will be room.
        """

    def give_back(self, request: Request, images: int) -> None:
        """Return what was taken for work that was refused after all."""


@dataclass
class Accepted:
    """A request on its way.

    Attributes:
        images: how many are made.
        started_s, finished_s: when its first batch began and its last one ended.
        bucket, padding: of its largest batch.
    """

    loaded: Loaded
    lane: Lane
    job: Job
    images: int = 0
    started_s: float = math.inf
    finished_s: float = 0.0
    bucket: int = 0
    padding: int = 0

    def note(self, part: Part) -> None:
        """Take note of images that are made."""
        self.images += len(part.values)
        self.started_s = min(self.started_s, part.started_s)
        self.finished_s = max(self.finished_s, part.finished_s)
        if part.bucket > self.bucket:
            self.bucket, self.padding = part.bucket, part.bucket - part.batch

    def timing(self) -> Timing:
        """Where its time went."""
        assert self.lane.batcher is not None
        return Timing(
            queue_ms=(self.started_s - self.job.arrived_s) * 1000,
            infer_ms=(self.finished_s - self.started_s) * 1000,
            finished_s=self.finished_s,
            bucket=self.bucket,
            padding=self.padding,
            clock=self.lane.batcher.clock,
        )


def note(request: Request, loaded: Loaded, lane: Lane, images: int, timing: Timing) -> None:
    """Leave what the access log and the traces say of a request."""
    request.scope.setdefault("state", {})["log"] = {
        "model": loaded.name,
        "digest": loaded.digest,
        "variant": lane.engine.variant.name,
        "images": images,
        "queue_ms": round(timing.queue_ms, 3),
        "infer_ms": round(timing.infer_ms, 3),
        "encode_ms": round(timing.encode_ms, 3),
        "bucket": timing.bucket,
    }

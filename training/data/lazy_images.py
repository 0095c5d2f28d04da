"""Images that do not fit into memory: decoded when a batch asks for them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from mmf_deploy.errors import TrainingError
from mmf_deploy.spec import SampleSpec

from .base import Batch, images_to_x0
from .decode import Encoded, Pixels, UnreadableImageError, decode
from .loading import worker_threads

MAX_REPLACEMENTS = 100
AHEAD = 16  # batches, or parts of one, that may be in the making


class LazyImages:
    """Images decoded on demand by a few threads.

    An image that turns out to be unreadable is replaced by the next one, label included, so
    that a batch depends on its indices alone; ``notes`` counts them.

    Args:
        read: the encoded image of an index; called from several threads.
        readable: int64 [N], the index of each sample.
        labels: int64 [N] or None.
        size: side to crop and resize to; None for images that all have the spec's shape.
        notes: lines for whoever trains on this.
    """

    def __init__(
        self,
        read: Callable[[int], Encoded],
        readable: Tensor,
        labels: Tensor | None,
        spec: SampleSpec,
        size: int | None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self._read, self._readable, self.labels = read, readable, labels
        self._size, self._notes = size, notes
        self.spec = spec
        self._unreadable: set[int] = set()
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: deque[tuple[Tensor, list[Future[tuple[int, Pixels]]]]] = deque()

    @property
    def notes(self) -> tuple[str, ...]:
        """What whoever trains on this should know, so far."""
        if not self._unreadable:
            return self._notes
        found = f"{len(self._unreadable):,} images cannot be decoded; others take their place"
        return (*self._notes, found)

    def __len__(self) -> int:
        return len(self._readable)

    def batch(self, indices: Tensor) -> Batch:
        """The samples of int64 [B] indices.

        Raises:
            TrainingError: too many unreadable images in a row.
        """
        decoded = [future.result() for future in self._taken(indices)]
        x0 = images_to_x0(torch.from_numpy(np.stack([pixels for _, pixels in decoded])))
        taken = torch.tensor([index for index, _ in decoded])
        return Batch(x0, None if self.labels is None else self.labels[taken])

    def prefetch(self, indices: Tensor) -> None:
        """Begin to decode what ``batch`` will be asked for."""
        if len(self._ahead) == AHEAD:
            # never asked for: the run went back, or another one began
            for future in self._ahead.popleft()[1]:
                future.cancel()
        self._ahead.append((indices, self._decoding(indices)))

    def _decoding(self, indices: Tensor) -> list[Future[tuple[int, Pixels]]]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(worker_threads())
        return [self._pool.submit(self._sample, index) for index in indices.tolist()]

    def _taken(self, indices: Tensor) -> list[Future[tuple[int, Pixels]]]:
        """What was begun for these indices, or is now."""
        for position, (begun, futures) in enumerate(self._ahead):
            if torch.equal(begun, indices):
                del self._ahead[position]
                return futures
        return self._decoding(indices)

    def _sample(self, wanted: int) -> tuple[int, Pixels]:
        """The image at an index, or the first readable one after it, with its own index."""
        channels, height, width = self.spec.shape
        for step in range(min(len(self), MAX_REPLACEMENTS)):
            index = (wanted + step) % len(self)
            if index in self._unreadable:
                continue
            try:
                encoded = self._read(int(self._readable[index]))
                pixels, _ = decode(encoded, self._size, channels)
                if pixels.shape == (height, width, channels):
                    return index, pixels
            except UnreadableImageError:
                pass
            with self._lock:
                self._unreadable.add(index)
        raise TrainingError(
            f"{MAX_REPLACEMENTS} images in a row can no longer be read; are the files still there?"
        )

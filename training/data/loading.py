"""What every source that reads many samples shares: threads, progress and labels."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from mmf_deploy.errors import ConfigError
from mmf_deploy.machine import available_cores
from mmf_deploy.progress import TaskProgress

SHOW_AFTER_S = 3.0
CHUNK = 256

Item = TypeVar("Item")
Result = TypeVar("Result")


def worker_threads() -> int:
    """Threads for decoding: Pillow lets others run while it decodes."""
    return min(8, available_cores())


def map_in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], total: int | None, what: str
) -> Iterator[Result]:
    """``function`` of each item, in order, with progress once it takes more than a moment.

    Args:
        items: read in this thread, a few chunks ahead of what is consumed.
        total: how many there are; None, for not known, shows no progress.
        what: what goes on, for the progress, for example "decoding".
    """
    chunks = _chunks(items)
    began, done = time.monotonic(), 0
    progress: TaskProgress | None = None
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(worker_threads()))
        running = [pool.submit(_each, function, c) for c in islice(chunks, worker_threads() + 1)]
        while running:
            results = running.pop(0).result()
            running += [pool.submit(_each, function, c) for c in islice(chunks, 1)]
            yield from results
            done += len(results)
            if total and progress is None and time.monotonic() - began > SHOW_AFTER_S:
                progress = stack.enter_context(TaskProgress("images", total, done))
            if progress is not None:
                progress.show(what, done)


def _chunks(items: Iterable[Item]) -> Iterator[list[Item]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk


def _each(function: Callable[[Item], Result], items: list[Item]) -> list[Result]:
    return [function(item) for item in items]


def class_labels(
    raw: Sequence[int] | Tensor, where: str, classes: int | None = None
) -> tuple[Tensor, int]:
    """Labels as int64 [N] and the number of classes.

    Args:
        raw: whole numbers [N].
        where: what they are, for the message.
        classes: how many classes there are; None where the labels themselves must tell.
    Raises:
        ConfigError: a label outside 0 … K − 1 or, where the labels tell, a class without sample.
    """
    labels = torch.as_tensor(raw, dtype=torch.int64)
    low, high = int(labels.min()), int(labels.max())
    what = f"{where}: labels run from {low} to {high}"
    if low < 0 or (classes is not None and high >= classes):
        last = "K - 1" if classes is None else classes - 1
        raise ConfigError(
            f"{what}, expected 0 to {last}; correct them, or train without: data.label=null"
        )
    if classes is not None:
        return labels, classes
    present = len(np.unique(labels.numpy()))
    if present <= high:
        raise ConfigError(
            f"{what}, but only {present} of these {high + 1} classes have a sample; "
            "say how many classes there are with data.classes, or train without: data.label=null"
        )
    return labels, high + 1

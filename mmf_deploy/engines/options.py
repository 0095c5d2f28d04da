"""How an engine shall run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class EngineOptions:
    """How an engine shall run.

    Attributes:
        device: "cpu" or "cuda"; the variant's own if not given.
        threads: compute threads on the CPU; the engine's own choice if not given.
        checkpoint: the checkpoint a bundle was made from; only the pytorch engine needs it.
        mode: one of the engine's ``modes``; its first one if not given.
        cache: directory for what is compiled on this machine, where an engine keeps such things;
            the user's cache directory if not given.
        max_batch: most samples that run as one batch; larger buckets are left out, larger
            batches are split. The engine's own largest if not given.
    """

    device: str | None = None
    threads: int | None = None
    checkpoint: Path | None = None
    mode: str | None = None
    cache: Path | None = None
    max_batch: int | None = None

"""Golden outputs: what a bundle must reproduce through the engine that will serve it."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmf_deploy import noise
from mmf_deploy.errors import BundleError

if TYPE_CHECKING:
    from mmf_deploy.bundle import Bundle, Variant
    from mmf_deploy.engines.base import Engine

# what numpy and zipfile raise at a file that is not, or no longer, an archive of arrays
_UNREADABLE = (OSError, EOFError, LookupError, RuntimeError, TypeError, ValueError,
               zlib.error, zipfile.BadZipFile)  # fmt: skip


@dataclass(frozen=True)
class Golden:
    """Inputs and the outputs they must reproduce.

    Attributes:
        seeds: int64 [N].
        labels: int64 [N], or None for an unconditional generator.
        guidance: float32 [N], or None when guidance is not an input.
        outputs: uint8 [N, H, W, C] images, or float32 [N, D] vectors.
        tolerance: largest difference allowed per variant, in levels of 255 (images) or
            absolute (vectors).
    """

    seeds: NDArray[np.int64]
    labels: NDArray[np.int64] | None
    guidance: NDArray[np.float32] | None
    outputs: NDArray[Any]
    tolerance: dict[str, float]

    def save(self, path: Path) -> None:
        """Write golden.npz; the same content gives the same bytes."""
        arrays: dict[str, NDArray[Any]] = {"seeds": self.seeds, "outputs": self.outputs}
        if self.labels is not None:
            arrays["labels"] = self.labels
        if self.guidance is not None:
            arrays["guidance"] = self.guidance
        for variant, tolerance in self.tolerance.items():
            arrays[f"tolerance.{variant}"] = np.float64(tolerance)  # type: ignore[assignment]
        np.savez_compressed(path, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> Golden:
        """Read golden.npz.

        Raises:
            BundleError: it is not such a file.
        """
        try:
            # opened here, since np.load leaves the file open when it is not an archive
            with path.open("rb") as f, np.load(f, allow_pickle=False) as data:
                prefix = "tolerance."
                return cls(
                    seeds=data["seeds"],
                    labels=data.get("labels"),
                    guidance=data.get("guidance"),
                    outputs=data["outputs"],
                    tolerance={
                        k.removeprefix(prefix): float(data[k]) for k in data if k.startswith(prefix)
                    },
                )
        except _UNREADABLE as e:
            raise BundleError(f"{path}: not readable golden images ({e!r})") from e


def verify_golden(bundle: Bundle, engine: Engine, variant: Variant) -> float:
    """Reproduce the golden outputs through an open engine, alone and inside a full batch.

    Returns:
        the largest difference seen: levels of 255 for images, absolute for vectors.
    Raises:
        BundleError: a difference beyond the variant's tolerance, or a value that is not finite.
    """
    golden = bundle.golden()
    tolerance = golden.tolerance.get(variant.name)
    if tolerance is None:
        raise BundleError(f"{bundle.path}: no golden tolerance of variant {variant.name!r}")
    x1 = noise.gaussian_batch([int(s) for s in golden.seeds], bundle.spec.shape)
    worst = 0.0
    for rows in (slice(0, 1), slice(None)):
        label = None if golden.labels is None else golden.labels[rows]
        guidance = None if golden.guidance is None else golden.guidance[rows]
        found = engine.generate(x1[rows], label, guidance).astype(np.float64)
        expected = golden.outputs[rows].astype(np.float64)
        if found.shape != expected.shape:
            raise BundleError(
                f"{bundle.path}: golden outputs of shape {list(expected.shape)}; "
                f"{bundle.file(variant).name} gives {list(found.shape)}"
            )
        difference = np.abs(found - expected)
        largest = float(difference.max())
        if not largest <= tolerance:  # also catches NaN
            image = int(difference.reshape(len(difference), -1).max(axis=1).argmax())
            raise BundleError(
                f"{bundle.file(variant)}: golden image of seed {golden.seeds[image]} differs by "
                f"{largest:g} through engine {engine.name!r}; expected at most {tolerance:g}"
            )
        worst = max(worst, largest)
    return worst

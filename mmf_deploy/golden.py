"""Golden outputs: what a bundle must reproduce through the engine that will serve it."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmf_deploy import files, noise
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
        outputs: what PyTorch gives: uint8 [N, H, W, C] images, or float32 [N, D] vectors.
        other_steps: the same with another number of steps, by that number, for variants that take
            so many.
        tolerance: largest difference to ``outputs`` allowed per variant, in levels of 255
            (images) or absolute (vectors).
        samples: what each variant gave when it was verified, float32 [N, *shape]. A quantised
            variant differs from PyTorch, but not from itself.
        rms: largest root mean square difference to ``samples`` allowed per variant.
        graphs: SHA-256 of each variant's file, so that these outputs vouch for no other.
    """

    seeds: NDArray[np.int64]
    labels: NDArray[np.int64] | None
    guidance: NDArray[np.float32] | None
    outputs: NDArray[Any]
    tolerance: dict[str, float]
    samples: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    rms: dict[str, float] = field(default_factory=dict)
    graphs: dict[str, str] = field(default_factory=dict)
    other_steps: dict[str, NDArray[Any]] = field(default_factory=dict)

    def expected(self, variant: Variant) -> NDArray[Any]:
        """What PyTorch gives with the steps of a variant."""
        return self.other_steps.get(str(variant.steps), self.outputs)

    def save(self, path: Path) -> None:
        """Write golden.npz; the same content gives the same bytes."""
        arrays: dict[str, NDArray[Any]] = {"seeds": self.seeds, "outputs": self.outputs}
        if self.labels is not None:
            arrays["labels"] = self.labels
        if self.guidance is not None:
            arrays["guidance"] = self.guidance
        for name in _BY_VARIANT:
            for variant, value in getattr(self, name).items():
                arrays[f"{name}.{variant}"] = np.asarray(value)
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
                return cls(
                    seeds=data["seeds"],
                    labels=data.get("labels"),
                    guidance=data.get("guidance"),
                    outputs=data["outputs"],
                    **{name: _by_variant(data, name) for name in _BY_VARIANT},
                )
        except _UNREADABLE as e:
            raise BundleError(f"{path}: not readable golden images ({e!r})") from e


_BY_VARIANT: dict[str, Callable[[NDArray[Any]], Any]] = {
    "tolerance": float, "samples": np.asarray, "rms": float, "graphs": str,
    "other_steps": np.asarray,
}  # fmt: skip


def _by_variant(data: Any, name: str) -> dict[str, Any]:
    kind = _BY_VARIANT[name]
    return {k.removeprefix(f"{name}."): kind(data[k]) for k in data if k.startswith(f"{name}.")}


def verify_golden(bundle: Bundle, engine: Engine, variant: Variant) -> float:
    """Reproduce the golden outputs through an open engine, alone and inside a full batch.

    Returns:
        the largest difference to PyTorch seen: levels of 255 for images, absolute for vectors.
    Raises:
        BundleError: another graph than the golden outputs came from, a difference beyond the
            variant's tolerance, or a value that is not finite.
    """
    golden = bundle.golden()
    file = bundle.file(variant)
    if variant.name not in golden.tolerance:
        raise BundleError(f"{bundle.path}: no golden tolerance of variant {variant.name!r}")
    for name in ("graphs", "samples", "rms"):
        if golden.samples and variant.name not in getattr(golden, name):
            raise BundleError(
                f"{bundle.path}: golden.npz has no {name} of variant {variant.name!r}"
            )
    expected = golden.graphs.get(variant.name)
    if expected is not None and files.sha256(file) != expected:
        raise BundleError(
            f"{file}: not the file that the golden images came from: expected SHA-256 {expected}, "
            f"found {files.sha256(file)}; export it again"
        )
    x1 = noise.gaussian_batch([int(s) for s in golden.seeds], bundle.spec.shape)
    worst = 0.0
    for rows in (slice(0, 1), slice(None)):
        label = None if golden.labels is None else golden.labels[rows]
        guidance = None if golden.guidance is None else golden.guidance[rows]
        found = engine.run(x1[rows], label, guidance)
        if not np.isfinite(found.sample).all():
            raise BundleError(f"{file}: golden samples that are not finite through {engine.name!r}")
        shown = found.sample if found.image is None else found.image
        worst = max(worst, _compare_outputs(bundle, engine, variant, golden, rows, shown))
        _compare_samples(file, engine, variant, golden, rows, found.sample)
    return worst


def _compare_outputs(
    bundle: Bundle,
    engine: Engine,
    variant: Variant,
    golden: Golden,
    rows: slice,
    shown: NDArray[Any],
) -> float:
    """The largest difference to PyTorch's outputs."""
    file = bundle.file(variant)
    found, expected = shown.astype(np.float64), golden.expected(variant)[rows].astype(np.float64)
    if found.shape != expected.shape:
        raise BundleError(
            f"{bundle.path}: golden outputs of shape {list(expected.shape)}; "
            f"{file.name} gives {list(found.shape)}"
        )
    difference = np.abs(found - expected)
    largest = float(difference.max())
    tolerance = golden.tolerance[variant.name]
    if not largest <= tolerance:  # also catches NaN
        image = int(difference.reshape(len(difference), -1).max(axis=1).argmax())
        raise BundleError(
            f"{file}: golden image of seed {golden.seeds[image]} differs by "
            f"{largest:g} through engine {engine.name!r}; expected at most {tolerance:g}"
        )
    return largest


def _compare_samples(
    file: Path,
    engine: Engine,
    variant: Variant,
    golden: Golden,
    rows: slice,
    sample: NDArray[np.float32],
) -> None:
    if variant.name not in golden.samples:
        return
    # the precision it runs in now, not the one of its file: eager PyTorch may stand in for int8
    if engine.precision != variant.precision:
        return
    expected = golden.samples[variant.name][rows]
    if expected.shape != sample.shape:
        raise BundleError(f"{file}: golden samples of shape {list(expected.shape)}; it gives "
                          f"{list(sample.shape)}")  # fmt: skip
    rms = float(np.sqrt(np.mean((sample.astype(np.float64) - expected) ** 2)))
    allowed = golden.rms[variant.name]
    if not rms <= allowed:
        raise BundleError(
            f"{file}: golden samples differ from those it was verified with by {rms:.2g} (root "
            f"mean square) through engine {engine.name!r}; expected at most {allowed:.2g}. "
            "Export it again on this kind of machine"
        )

"""Bundle: what export leaves behind; everything that serving needs and nothing else.

    bundle.json        the Manifest below, with the SHA-256 of every other file
    model.fp32.onnx …  one single-file graph per variant
    golden.npz         seeds, labels, guidance and the images they must give
    samples.png  README.md (the model card)

Loading verifies every hash. ``verify_golden`` then reproduces the golden images
through the very engine that will serve, before anything is called ready.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from mmf_deploy import files, noise
from mmf_deploy.errors import BundleError, SpecError
from mmf_deploy.spec import SampleSpec

if TYPE_CHECKING:
    from mmf_deploy.engines.base import Engine

SCHEMA = 1
MANIFEST = "bundle.json"
GOLDEN = "golden.npz"

# what numpy and zipfile raise at a file that is not, or no longer, an archive of arrays
_UNREADABLE = (OSError, EOFError, LookupError, RuntimeError, TypeError, ValueError,
               zlib.error, zipfile.BadZipFile)  # fmt: skip


class Variant(BaseModel):
    """One graph of a bundle.

    Attributes:
        name: what a user asks for, for example ``fp32``.
        file: the ONNX file, relative to the bundle.
        precision: fp32, fp16, bf16 or int8.
        steps: network evaluations per sample.
        opset: ONNX opset of the graph.
        parity: measured difference to the PyTorch sampler when it was exported.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    file: str
    precision: str
    steps: int = 1
    opset: int
    parity: dict[str, float] = {}


class Source(BaseModel):
    """Where a bundle came from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    step: int
    weights: str
    weights_sha256: str
    parameters: int


class Manifest(BaseModel):
    """bundle.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA
    name: str
    spec: SampleSpec
    variants: list[Variant]
    source: Source
    recipe: dict[str, Any]
    quality: dict[str, Any] = {}
    versions: dict[str, str] = {}
    files: dict[str, str] = {}


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


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk.

    Attributes:
        path: its directory.
        manifest: the content of bundle.json.
        digest: SHA-256 of bundle.json, and so, through the hashes in it, of everything.
    """

    path: Path
    manifest: Manifest
    digest: str

    @property
    def spec(self) -> SampleSpec:
        """What one sample is."""
        return self.manifest.spec

    def variant(self, name: str | None = None) -> Variant:
        """The variant of that name; the first one if no name is given.

        Raises:
            BundleError: there is none of that name.
        """
        for variant in self.manifest.variants:
            if name in (None, variant.name):
                return variant
        have = ", ".join(v.name for v in self.manifest.variants)
        raise BundleError(f"{self.path}: no variant {name!r}; it has {have}")

    def file(self, variant: Variant) -> Path:
        """The ONNX file of a variant."""
        return self.path / variant.file

    def golden(self) -> Golden:
        """The golden inputs and outputs."""
        return Golden.load(self.path / GOLDEN)


def write(path: Path, manifest: Manifest, fill: Callable[[Path], None]) -> Bundle:
    """Write a bundle atomically.

    Args:
        fill: puts every file but bundle.json into the directory it is given.
    """
    with files.atomic_directory(path) as temporary:
        fill(temporary)
        hashes = {f.name: files.sha256(f) for f in sorted(temporary.iterdir())}
        complete = manifest.model_copy(update={"files": hashes})
        text = json.dumps(complete.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"
        (temporary / MANIFEST).write_text(text)
    return load(path)


def load(path: Path) -> Bundle:
    """Read a bundle and verify the hash of every file.

    Raises:
        BundleError: missing, of another schema, a path that leaves the directory, or a file
            that differs from its hash; the message names the file, what was expected and
            what was found.
    """
    file = path / MANIFEST
    if not file.is_file():
        raise BundleError(
            f"{path}: no bundle here (no {MANIFEST}); make one: mmf-export CHECKPOINT"
        )
    raw = file.read_bytes()
    manifest = _parse(file, raw)
    for name, expected in manifest.files.items():
        _verify(path, name, expected)
    for name in [GOLDEN, *(v.file for v in manifest.variants)]:
        if not files.stays_inside(path, name):
            raise BundleError(f"{file}: path {name!r} leaves the bundle's directory; refused")
        if name not in manifest.files:
            raise BundleError(f"{file}: {name} has no hash in the manifest; refused")
    return Bundle(path=path, manifest=manifest, digest=hashlib.sha256(raw).hexdigest())


def _parse(file: Path, raw: bytes) -> Manifest:
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as e:
        raise BundleError(f"{file}: not a valid manifest ({e})") from e
    found = content.get("schema_version") if isinstance(content, dict) else None
    if found != SCHEMA:
        raise BundleError(
            f"{file}: schema version {found}, this version reads {SCHEMA}; "
            "export it again: mmf-export CHECKPOINT --out BUNDLE"
        )
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{file}: not a valid manifest ({where}: {first['msg']})") from e
    except SpecError as e:
        raise BundleError(f"{file}: {e}") from e
    if not manifest.variants:
        raise BundleError(f"{file}: lists no variant; export it again")
    return manifest


def _verify(path: Path, name: str, expected: str) -> None:
    if not files.stays_inside(path, name):
        raise BundleError(
            f"{path / MANIFEST}: path {name!r} leaves the bundle's directory; refused"
        )
    if not (path / name).is_file():
        raise BundleError(f"{path / name}: missing; expected a file with SHA-256 {expected}")
    found = files.sha256(path / name)
    if found != expected:
        raise BundleError(
            f"{path / name}: corrupt: expected SHA-256 {expected}, found {found}; "
            "copy the bundle again or export it again"
        )


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
        raise BundleError(f"{bundle.path / GOLDEN}: no tolerance for variant {variant.name!r}")
    x1 = noise.gaussian_batch([int(s) for s in golden.seeds], bundle.spec.shape)
    worst = 0.0
    for rows in (slice(0, 1), slice(None)):
        label = None if golden.labels is None else golden.labels[rows]
        guidance = None if golden.guidance is None else golden.guidance[rows]
        found = engine.generate(x1[rows], label, guidance).astype(np.float64)
        expected = golden.outputs[rows].astype(np.float64)
        if found.shape != expected.shape:
            raise BundleError(
                f"{bundle.path / GOLDEN}: outputs of shape {list(expected.shape)}; "
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

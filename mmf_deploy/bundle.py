"""Bundle: what export leaves behind; everything that serving needs and nothing else.

    bundle.json        the Manifest below, with the SHA-256 of every other file
    model.fp32.onnx …  one single-file graph per variant
    golden.npz         seeds, labels, guidance and the images they must give
    samples.png  README.md (the model card)

Loading verifies every hash. ``verify_golden`` then reproduces the golden images
through the very engine that will serve, before anything is called ready (golden.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from mmf_deploy import files
from mmf_deploy.errors import BundleError, SpecError
from mmf_deploy.golden import Golden
from mmf_deploy.spec import SampleSpec

SCHEMA = 1
MANIFEST = "bundle.json"
GOLDEN = "golden.npz"


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
    """Where a bundle came from.

    Attributes:
        run: name of the recipe.
        command: what trains such a checkpoint again.
        weights: which of its weights were exported, and their file's hash.
        parameters: number of the network's parameters.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    command: str = ""
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
    """Read a bundle and verify the hash of every file; there may be no others.

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
    for entry in sorted(path.iterdir()):
        # a graph could read its weights from a file that no hash vouches for
        if entry.name not in {MANIFEST, *manifest.files} and not entry.name.startswith("."):
            raise BundleError(f"{entry}: not listed in the manifest; remove it, or export again")
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

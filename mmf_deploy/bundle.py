"""Bundle: what export leaves behind; everything that serving needs and nothing else.

    bundle.json        the Manifest below, with the SHA-256 of every other file
    model.fp32.onnx …  one single-file graph per variant
    golden.npz         seeds, labels, guidance and the images they must give
    samples.png  README.md (the model card)
    measured.json      latency and the like, of one machine: for people (measured.py)
    bundle.json.sig    who made it, if it is signed (signing.py)

Loading verifies every hash, and before that the signature if a key is given.
``verify_golden`` then reproduces the golden images through the very engine that will
serve, before anything is called ready (golden.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from mmf_deploy import files, measured, signing
from mmf_deploy.errors import BundleError, SpecError
from mmf_deploy.golden import Golden
from mmf_deploy.spec import SampleSpec

SCHEMA = 1
MANIFEST = "bundle.json"
GOLDEN = "golden.npz"


class Variant(BaseModel):
    """One artefact of a bundle, made for one target.

    Attributes:
        name: what a user asks for, for example ``fp32`` or ``openvino-int8``.
        file: relative to the bundle: an ONNX graph, or a package (.pt2); variants may share one.
        precision: fp32, fp16, bf16 or int8.
        steps: network evaluations per sample.
        opset: ONNX opset of the graph; None for what is not ONNX.
        target: what it was made for, for example ``onnxruntime-cpu`` (export/targets.py).
        engine: the engine, a key of ``ENGINES``, that runs it there.
        device: "cpu" or "cuda".
        verified: the engine and device that it was compared on when it was exported.
        trajectory: whether its graph also gives all points of the path, for people to see.
        form: the choices of graph form made for its target.
        graph: number of nodes, operators and dtypes (``GraphFacts``); empty for a package.
        parity: measured difference to the PyTorch sampler when it was exported.
        exceptions: gates that it failed and a person allowed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    file: str
    precision: str
    steps: int = 1
    opset: int | None = None
    target: str = "onnxruntime-cpu"
    engine: str = "onnxruntime"
    device: str = "cpu"
    verified: str = "onnxruntime on cpu"
    trajectory: bool = False
    form: dict[str, str] = {}
    graph: dict[str, Any] = {}
    parity: dict[str, float] = {}
    exceptions: list[str] = []


class Source(BaseModel):
    """Where a bundle came from.

    Attributes:
        run: name of the recipe.
        command: what trains such a checkpoint again.
        weights: which of its weights were exported, and their file's hash.
        parameters: number of the network's parameters.
        label, guidance: inputs of the network that the export froze; None where it did not.
        options: of the export, where they were not the defaults.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    command: str = ""
    step: int
    weights: str
    weights_sha256: str
    parameters: int
    label: int | None = None
    guidance: float | None = None
    options: list[str] = []


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
        """The file of a variant."""
        return self.path / variant.file

    def golden(self) -> Golden:
        """The golden inputs and outputs."""
        return Golden.load(self.path / GOLDEN)

    def measured(self) -> dict[str, Any]:
        """What the export measured on its machine; empty if it left nothing."""
        return measured.read(self.path)


def write(
    path: Path,
    manifest: Manifest,
    fill: Callable[[Path], None],
    sign_key: Path | None = None,
) -> Bundle:
    """Write a bundle atomically.

    Args:
        fill: puts every file but bundle.json into the directory it is given.
        sign_key: the private key to sign it with; it is read before anything is filled.
    Raises:
        ConfigError: the key cannot be read.
    """
    key = None if sign_key is None else signing.private_key(sign_key)
    with files.atomic_directory(path) as temporary:
        fill(temporary)
        made = sorted(f for f in temporary.iterdir() if f.name != measured.NAME)
        hashes = {f.name: files.sha256(f) for f in made}
        complete = manifest.model_copy(update={"files": hashes})
        text = json.dumps(complete.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"
        raw = text.encode()
        (temporary / MANIFEST).write_bytes(raw)
        if key is not None:
            (temporary / signing.SIGNATURE).write_bytes(signing.sign(raw, key))
    return _load(path, _manifest(path))


def sign(path: Path, sign_key: Path) -> str:
    """Verify every hash of a bundle and sign its manifest; a signature there is replaced.

    Returns:
        the fingerprint of the key.
    Raises:
        BundleError: it is not whole.
        ConfigError: the key cannot be read.
    """
    key = signing.private_key(sign_key)
    raw = _manifest(path)
    _load(path, raw)
    files.write_atomic(path / signing.SIGNATURE, signing.sign(raw, key))
    return signing.fingerprint(key.public_key())


def load(path: Path, verify_key: Path | None = None) -> Bundle:
    """Read a bundle and verify the hash of every file; there may be no others.

    Args:
        verify_key: the public key that must have signed it, checked before anything else
            in it is read; that of ``MMF_VERIFY_KEY`` if None. With neither a signature is
            not looked at.
    Raises:
        BundleError: missing, not signed by the key, of another schema, a path that leaves the
            directory, or a file that differs from its hash; the message names the file, what
            was expected and what was found.
        ConfigError: the key cannot be read.
    """
    raw = _manifest(path)
    key = verify_key or signing.key_from_environment()
    if key is not None:
        signing.verify(path, raw, key)
    return _load(path, raw)


def _manifest(path: Path) -> bytes:
    file = path / MANIFEST
    if not file.is_file():
        raise BundleError(
            f"{path}: no bundle here (no {MANIFEST}); make one: mmf-export CHECKPOINT"
        )
    return file.read_bytes()


def _load(path: Path, raw: bytes) -> Bundle:
    file = path / MANIFEST
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
        if entry.name in {MANIFEST, *manifest.files} or entry.name.startswith("."):
            continue
        if entry.name not in (signing.SIGNATURE, measured.NAME) or not entry.is_file():
            raise BundleError(f"{entry}: not listed in the manifest; remove it, or export again")
    measured.read(path)
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

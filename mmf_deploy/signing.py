"""Signed bundles: who made this bundle, besides that it is whole (docs/signing.md).

An Ed25519 signature over the bytes of ``bundle.json``, which holds the SHA-256 of every
other file, vouches for the whole bundle. It lies beside the manifest:

    bundle.json.sig    {"algorithm", "key": fingerprint, "signature": base64}

The fingerprint of a key is the SHA-256 of its public half in DER. Ed25519 is
deterministic: the same manifest and key give the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmf_deploy.errors import BundleError, ConfigError, require

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

SIGNATURE = "bundle.json.sig"
ENVIRONMENT = "MMF_VERIFY_KEY"
ALGORITHM = "ed25519"


def generate(path: Path) -> str:
    """Write a new key pair: ``path`` (PKCS 8 PEM, mode 0600) and ``path``.pub (PEM).

    Returns:
        the fingerprint.
    Raises:
        ConfigError: one of the files exists (a key is never overwritten), is a directory, or has no
            directory to lie in.
    """
    if path.is_dir():
        raise ConfigError(f"{path}: a directory; give the key a name, for example {path / 'key'}")
    private: Ed25519PrivateKey = _ed25519().Ed25519PrivateKey.generate()
    coded = _serialization()
    secret = private.private_bytes(
        coded.Encoding.PEM, coded.PrivateFormat.PKCS8, coded.NoEncryption()
    )
    public = private.public_key().public_bytes(
        coded.Encoding.PEM, coded.PublicFormat.SubjectPublicKeyInfo
    )
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: there is no directory {path.parent}; make it, or name another")
    _create(public_path(path), public, 0o644)
    try:
        _create(path, secret, 0o600)
    except BaseException:
        public_path(path).unlink()
        raise
    return fingerprint(private.public_key())


def public_path(path: Path) -> Path:
    """Where the public half of the key at ``path`` lies."""
    return path.with_name(f"{path.name}.pub")


def fingerprint(key: Ed25519PublicKey) -> str:
    """SHA-256 of a public key's SubjectPublicKeyInfo in DER, in hexadecimal."""
    coded = _serialization()
    der = key.public_bytes(coded.Encoding.DER, coded.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def private_key(path: Path) -> Ed25519PrivateKey:
    """Read a private key.

    Raises:
        ConfigError: it is missing, encrypted, public, or not an Ed25519 key.
    """
    data = _read(path)
    if b"PUBLIC KEY" in data:
        raise ConfigError(f"{path}: a public key; signing needs the private one beside it")
    load = _serialization().load_pem_private_key
    try:
        key = load(data, password=None)
    except TypeError:
        raise ConfigError(
            f"{path}: an encrypted key; expected one without a passphrase: "
            f"openssl pkey -in {path} -out PLAIN"
        ) from None
    except Exception as e:  # what a key cannot be made of has no common base class
        raise _not_a_key(path, "private") from e
    if not isinstance(key, _ed25519().Ed25519PrivateKey):
        raise _not_a_key(path, "private")
    found: Ed25519PrivateKey = key
    return found


def public_key(path: Path) -> Ed25519PublicKey:
    """Read a public key.

    Raises:
        ConfigError: it is missing, private, or not an Ed25519 key.
    """
    data = _read(path)
    if b"PRIVATE KEY" in data:
        raise ConfigError(
            f"{path}: a private key; verifying takes the public one ({public_path(path).name})"
        )
    load = _serialization().load_pem_public_key
    try:
        key = load(data)
    except Exception as e:  # as above
        raise _not_a_key(path, "public") from e
    if not isinstance(key, _ed25519().Ed25519PublicKey):
        raise _not_a_key(path, "public")
    found: Ed25519PublicKey = key
    return found


def key_from_environment() -> Path | None:
    """The public key that ``MMF_VERIFY_KEY`` names; None if the variable is not set.

    Raises:
        ConfigError: it is set to nothing, which may be a deployment gone wrong.
    """
    value = os.environ.get(ENVIRONMENT)
    if value == "":
        raise ConfigError(
            f"{ENVIRONMENT} is set, but empty: expected the path of a public key; "
            "unset it to load bundles whoever made them"
        )
    return None if value is None else Path(value)


def sign(manifest: bytes, key: Ed25519PrivateKey) -> bytes:
    """The content of ``bundle.json.sig`` for the bytes of a ``bundle.json``."""
    return _render(fingerprint(key.public_key()), key.sign(manifest))


def verify(path: Path, manifest: bytes, key_path: Path) -> str:
    """Check that a key signed the bytes of a manifest.

    Args:
        path: the bundle; its signature file is read, nothing else.
        manifest: the bytes of its ``bundle.json``.
    Returns:
        the fingerprint of the key.
    Raises:
        BundleError: unsigned, signed by another key, or not what was signed.
        ConfigError: the key cannot be read.
    """
    key = public_key(key_path)
    expected = fingerprint(key)
    file = path / SIGNATURE
    wanted = f"expected a signature by key {expected[:16]} ({key_path})"
    if not file.is_file():
        raise BundleError(
            f"{path}: not signed (no {SIGNATURE}); {wanted}; "
            "get the signed bundle, or sign it: mmf sign BUNDLE --key KEY"
        )
    found, signature = _parse(file, wanted)
    if found != expected:
        raise BundleError(
            f"{file}: signed by key {found[:16]}; {wanted}; "
            "verify with the key of its maker, or get a bundle of yours"
        )
    try:
        key.verify(signature, manifest)
    except Exception as e:  # InvalidSignature; whatever else it may be, it is no proof
        raise BundleError(
            f"{path}: its manifest is not what key {found[:16]} signed; {wanted} "
            "over these very bytes; do not use it: get the bundle again from its maker"
        ) from e
    return expected


def _render(key: str, signature: bytes) -> bytes:
    content = {
        "algorithm": ALGORITHM,
        "key": key,
        "signature": base64.b64encode(signature).decode(),
    }
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def _parse(file: Path, wanted: str) -> tuple[str, bytes]:
    """Fingerprint and signature; only the exact bytes that ``_render`` gives are taken."""
    with file.open("rb") as f:
        raw = f.read(4096)
    try:
        content = json.loads(raw)
        key, signature = str(content["key"]), base64.b64decode(content["signature"])
        whole = raw == _render(key, signature)
    except (ValueError, LookupError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise BundleError(
            f"{file}: not a readable signature; {wanted}; "
            "get the bundle again, or sign it again: mmf sign BUNDLE --key KEY"
        )
    return key, signature


def _create(path: Path, data: bytes, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise ConfigError(f"{path} exists; a key is never overwritten, choose another") from None
    with os.fdopen(descriptor, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise ConfigError(
            f"{path}: no readable key ({e.strerror}); make a pair: mmf keygen PATH"
        ) from e


def _not_a_key(path: Path, kind: str) -> ConfigError:
    return ConfigError(f"{path}: not a {kind} Ed25519 key in PEM; make a pair: mmf keygen PATH")


def _ed25519() -> Any:
    return require("cryptography.hazmat.primitives.asymmetric.ed25519", "sign")


def _serialization() -> Any:
    return require("cryptography.hazmat.primitives.serialization", "sign")

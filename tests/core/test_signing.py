"""A key is given: a bundle is loaded only if its maker holds the other half."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mmf_deploy import bundle, cli, files, signing
from mmf_deploy.errors import BundleError, ConfigError

FILES = ("model.fp32.onnx", bundle.GOLDEN, bundle.MANIFEST, signing.SIGNATURE)


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> dict[str, Path]:
    """Two private keys, ``ours`` and ``foreign``; each has its public half beside it."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "foreign"):
        signing.generate(folder / name)
    return {name: folder / name for name in ("ours", "foreign")}


@pytest.fixture
def public(keys) -> Path:
    return signing.public_path(keys["ours"])


@pytest.fixture
def signed(tiny_bundle, keys, tmp_path) -> Path:
    """A signed bundle that a test may spoil."""
    path = shutil.copytree(tiny_bundle, tmp_path / "signed")
    bundle.sign(path, keys["ours"])
    return path


@pytest.fixture
def mmf(monkeypatch, capsys):
    """Runs `mmf` in this process: (exit code, stdout, stderr)."""

    def run(*args) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mmf", *map(str, args)])
        try:
            cli.main()
            code = 0
        except SystemExit as e:
            code = e.code or 0
        return code, *capsys.readouterr()

    return run


def refused(path, key) -> str:
    with pytest.raises(BundleError) as caught:
        bundle.load(path, verify_key=key)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rewrite(path: Path, **changes) -> None:
    """Sign with nothing: write a signature file in the right form with other content."""
    file = path / signing.SIGNATURE
    file.write_text(
        json.dumps({**json.loads(file.read_text()), **changes}, indent=1, sort_keys=True) + "\n"
    )


def test_signed_bundle_loads_with_its_makers_key_without_one_and_with_the_same_digest(
    signed, tiny_bundle, public
):
    unsigned = bundle.load(tiny_bundle)
    for found in (bundle.load(signed, verify_key=public), bundle.load(signed)):
        assert found.digest == unsigned.digest
        assert found.manifest == unsigned.manifest


def test_signature_says_by_which_key(signed, keys):
    content = json.loads((signed / signing.SIGNATURE).read_text())
    key = signing.private_key(keys["ours"]).public_key()
    assert content["algorithm"] == "ed25519"
    assert content["key"] == signing.fingerprint(key)
    assert set(content) == {"algorithm", "key", "signature"}


def test_unsigned_bundle_is_refused_with_what_was_expected_and_what_to_do(tiny_bundle, public):
    message = refused(tiny_bundle, public)
    for part in (str(tiny_bundle), "not signed", str(public), "mmf sign BUNDLE --key"):
        assert part in message


def test_bundle_of_another_maker_is_refused_with_both_fingerprints(signed, keys, public):
    bundle.sign(signed, keys["foreign"])
    message = refused(signed, public)
    for name in keys:
        key = signing.private_key(keys[name]).public_key()
        assert signing.fingerprint(key)[:16] in message


def test_foreign_signature_under_our_fingerprint_is_refused(signed, keys, public):
    ours = json.loads((signed / signing.SIGNATURE).read_text())["key"]
    bundle.sign(signed, keys["foreign"])
    rewrite(signed, key=ours)
    assert "is not what key" in refused(signed, public)


def test_signature_of_another_manifest_is_refused(signed, keys, public):
    other = signing.sign(b"{}", signing.private_key(keys["ours"]))
    (signed / signing.SIGNATURE).write_bytes(other)
    assert "is not what key" in refused(signed, public)


def test_manifest_and_file_changed_together_are_refused(signed, public):
    """Every hash is right again, which is what only a signature can tell."""
    (signed / bundle.GOLDEN).write_bytes(b"other")
    record = json.loads((signed / bundle.MANIFEST).read_text())
    record["files"][bundle.GOLDEN] = files.sha256(signed / bundle.GOLDEN)
    (signed / bundle.MANIFEST).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    bundle.load(signed)
    assert "is not what key" in refused(signed, public)


@pytest.mark.parametrize("name", FILES)
def test_flipped_byte_of_any_file_is_refused(name, signed, public):
    file = signed / name
    whole = file.read_bytes()
    # every byte of the signature, and as many of the others as take no time
    for position in range(0, len(whole), max(1, len(whole) // 300)):
        spoilt = bytearray(whole)
        spoilt[position] ^= 1 << position % 8
        file.write_bytes(spoilt)
        assert str(signed) in refused(signed, public)
    file.write_bytes(whole)
    bundle.load(signed, verify_key=public)


@pytest.mark.parametrize("mask", [0x01, 0x20, 0x80, 0xFF])
def test_any_flipped_byte_of_the_signature_is_refused(mask, signed, public):
    file = signed / signing.SIGNATURE
    whole = file.read_bytes()
    for position in range(len(whole)):
        spoilt = bytearray(whole)
        spoilt[position] ^= mask
        file.write_bytes(spoilt)
        refused(signed, public)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"null", b'{"key": 3, "signature": 4}', b"\xff", b"[" * 9999],
    ids=lambda t: ascii(t[:10]),
)
def test_signature_file_that_is_garbage_is_refused_by_name(text, signed, public):
    (signed / signing.SIGNATURE).write_bytes(text)
    assert f"{signed / signing.SIGNATURE}: not a readable signature" in refused(signed, public)


def test_signature_in_another_form_is_refused(signed, public):
    file = signed / signing.SIGNATURE
    file.write_text(json.dumps(json.loads(file.read_text())))
    assert "not a readable signature" in refused(signed, public)


def test_nothing_else_is_read_before_the_signature_holds(signed, public):
    for entry in signed.iterdir():
        if entry.name != signing.SIGNATURE:
            entry.unlink()
    (signed / bundle.MANIFEST).write_bytes(b"[" * 100_000)  # would fail as a manifest
    assert "is not what key" in refused(signed, public)


def test_without_a_key_only_that_one_name_is_tolerated_and_only_as_a_file(signed):
    (signed / signing.SIGNATURE).write_bytes(b"whatever")
    bundle.load(signed)
    (signed / signing.SIGNATURE).unlink()
    (signed / signing.SIGNATURE).mkdir()
    with pytest.raises(BundleError, match=r"bundle\.json\.sig: not listed in the manifest"):
        bundle.load(signed)


def test_key_of_the_environment_is_demanded_of_every_bundle(
    signed, tiny_bundle, keys, public, monkeypatch
):
    monkeypatch.setenv(signing.ENVIRONMENT, str(public))
    bundle.load(signed)
    with pytest.raises(BundleError, match="not signed"):
        bundle.load(tiny_bundle)
    monkeypatch.setenv(signing.ENVIRONMENT, str(signing.public_path(keys["foreign"])))
    with pytest.raises(BundleError, match="signed by key"):
        bundle.load(signed)
    bundle.load(signed, verify_key=public)  # what is asked for goes first


def test_key_of_the_environment_that_is_empty_or_missing_is_no_leave(signed, tmp_path, monkeypatch):
    monkeypatch.setenv(signing.ENVIRONMENT, "")
    with pytest.raises(ConfigError, match="is set, but empty"):
        bundle.load(signed)
    monkeypatch.setenv(signing.ENVIRONMENT, str(tmp_path / "gone.pub"))
    with pytest.raises(ConfigError, match=r"gone\.pub: no readable key"):
        bundle.load(signed)


def rewritten(path, new, key=None) -> bundle.Bundle:
    """The bundle at ``path`` written anew."""
    found = bundle.load(path)

    def fill(directory: Path) -> None:
        for name in found.manifest.files:
            shutil.copy(path / name, directory / name)

    return bundle.write(new, found.manifest, fill, sign_key=key)


def test_signed_writes_are_byte_identical_and_verify(tiny_bundle, keys, public, tmp_path):
    one, two = (rewritten(tiny_bundle, tmp_path / n, keys["ours"]) for n in ("one", "two"))
    assert {f.name for f in one.path.iterdir()} == set(FILES)
    for file in one.path.iterdir():
        assert file.read_bytes() == (two.path / file.name).read_bytes(), file.name
    assert bundle.load(one.path, verify_key=public).digest == bundle.load(tiny_bundle).digest


def test_signing_later_gives_the_bytes_of_signing_at_once(signed, tiny_bundle, keys, tmp_path):
    at_once = rewritten(tiny_bundle, tmp_path / "at-once", keys["ours"]).path
    name = signing.SIGNATURE
    assert (signed / name).read_bytes() == (at_once / name).read_bytes()


def test_unreadable_key_stops_a_write_before_anything_is_made(tiny_bundle, tmp_path):
    with pytest.raises(ConfigError, match="no readable key"):
        bundle.write(
            tmp_path / "new",
            bundle.load(tiny_bundle).manifest,
            lambda directory: pytest.fail("filled"),
            sign_key=tmp_path / "gone",
        )
    assert list(tmp_path.iterdir()) == []


def test_bundle_may_be_written_unsigned_where_a_key_is_demanded(
    tiny_bundle, public, tmp_path, monkeypatch
):
    found = bundle.load(tiny_bundle)
    monkeypatch.setenv(signing.ENVIRONMENT, str(public))

    def fill(directory: Path) -> None:
        for name in found.manifest.files:
            shutil.copy(tiny_bundle / name, directory / name)

    assert bundle.write(tmp_path / "new", found.manifest, fill).digest == found.digest


def test_corrupt_bundle_is_not_signed(tiny_bundle, keys, tmp_path):
    path = shutil.copytree(tiny_bundle, tmp_path / "copy")
    with (path / "model.fp32.onnx").open("ab") as f:
        f.write(b"x")
    with pytest.raises(BundleError, match="corrupt"):
        bundle.sign(path, keys["ours"])
    assert not (path / signing.SIGNATURE).exists()


def test_private_key_is_for_its_owner_alone_and_no_key_is_ever_overwritten(tmp_path):
    path = tmp_path / "new" / "key"
    with pytest.raises(ConfigError, match="there is no directory"):
        signing.generate(path)
    path.parent.mkdir()
    previous = os.umask(0)
    try:
        signing.generate(path)
    finally:
        os.umask(previous)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    secret, public = path.read_bytes(), signing.public_path(path).read_bytes()
    assert secret.startswith(b"-----BEGIN PRIVATE KEY-----")
    assert public.startswith(b"-----BEGIN PUBLIC KEY-----")
    with pytest.raises(ConfigError, match="is never overwritten"):
        signing.generate(path)
    signing.public_path(path).unlink()
    with pytest.raises(ConfigError, match="is never overwritten"):
        signing.generate(path)
    assert path.read_bytes() == secret
    assert sorted(path.parent.iterdir()) == [path]  # no public half of another key beside it
    with pytest.raises(ConfigError, match="a directory"):
        signing.generate(tmp_path)


def test_wrong_kind_of_key_is_refused_with_the_right_one(keys, public, tmp_path):
    with pytest.raises(ConfigError, match="a public key; signing needs the private one"):
        signing.private_key(public)
    with pytest.raises(ConfigError, match="a private key; verifying takes the public one"):
        signing.public_key(keys["ours"])
    for read in (signing.private_key, signing.public_key):
        (tmp_path / "text").write_text("no key")
        with pytest.raises(ConfigError, match="Ed25519 key in PEM"):
            read(tmp_path / "text")
        with pytest.raises(ConfigError, match="no readable key"):
            read(tmp_path / "gone")


def test_key_of_another_algorithm_or_with_a_passphrase_is_refused(keys, tmp_path):
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    other = ec.generate_private_key(ec.SECP256R1())
    file = tmp_path / "key"
    file.write_bytes(other.private_bytes(pem, pkcs8, serialization.NoEncryption()))
    with pytest.raises(ConfigError, match="not a private Ed25519 key"):
        signing.private_key(file)
    subject = serialization.PublicFormat.SubjectPublicKeyInfo
    file.write_bytes(other.public_key().public_bytes(pem, subject))
    with pytest.raises(ConfigError, match="not a public Ed25519 key"):
        signing.public_key(file)
    locked = serialization.BestAvailableEncryption(b"secret")
    file.write_bytes(signing.private_key(keys["ours"]).private_bytes(pem, pkcs8, locked))
    with pytest.raises(ConfigError, match="an encrypted key"):
        signing.private_key(file)


def test_commands_make_a_key_sign_and_verify(mmf, tiny_bundle, tmp_path, monkeypatch):
    path, key = shutil.copytree(tiny_bundle, tmp_path / "b"), tmp_path / "key"
    code, out, err = mmf("keygen", key)
    assert (code, err) == (0, "")
    fingerprint = signing.fingerprint(signing.public_key(tmp_path / "key.pub"))
    assert fingerprint in out
    code, out, err = mmf("sign", path, "--key", key)
    assert (code, err) == (0, "")
    assert f"mmf verify {path} --key {key}.pub" in out
    code, out, err = mmf("verify", path, "--key", f"{key}.pub")
    assert (code, err) == (0, "")
    for part in (fingerprint[:16], bundle.load(path).digest, "every hash verified"):
        assert part in out
    monkeypatch.setenv(signing.ENVIRONMENT, f"{key}.pub")
    assert mmf("verify", path)[0] == 0
    code, out, err = mmf("inspect", tiny_bundle)
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {tiny_bundle}: not signed")


def test_commands_fail_with_one_line(mmf, tiny_bundle, keys, public, tmp_path):
    code, out, err = mmf("verify", tiny_bundle, "--key", public)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "not signed" in err
    code, out, err = mmf("sign", tiny_bundle, "--key", public)
    assert (code, out, err.count("\n")) == (2, "", 1)
    code, out, err = mmf("sign", tmp_path, "--key", keys["ours"])
    assert (code, out) == (1, "")
    assert "no bundle here" in err
    code, out, err = mmf("verify", tiny_bundle)
    assert (code, out) == (2, "")
    assert "--key" in err
    assert "Usage: mmf verify" in err


WITHOUT = """
import sys
sys.modules["cryptography"] = None  # importing it raises
from mmf_deploy.cli import main
main()
"""


def without_cryptography(*args, **environment) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    return done.returncode, done.stderr


def test_cryptography_is_needed_only_where_a_key_is_given(signed, public):
    assert without_cryptography("inspect", signed) == (0, "")
    code, err = without_cryptography("inspect", signed, **{signing.ENVIRONMENT: str(public)})
    assert code == 1
    assert err.startswith("error: this needs the package 'cryptography'")
    assert 'pip install "mmf-deploy[sign]"' in err
    assert err.count("\n") == 1


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
def test_openssl_agrees_with_the_signature_and_the_fingerprint(signed, public, tmp_path):
    content = json.loads((signed / signing.SIGNATURE).read_text())
    (tmp_path / "raw").write_bytes(base64.b64decode(content["signature"]))
    subprocess.run(
        ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin",
         "-in", signed / bundle.MANIFEST, "-sigfile", tmp_path / "raw"],
        check=True, capture_output=True,
    )  # fmt: skip
    der = subprocess.run(
        ["openssl", "pkey", "-pubin", "-in", public, "-outform", "DER"],
        check=True, capture_output=True,
    ).stdout  # fmt: skip
    assert hashlib.sha256(der).hexdigest() == content["key"]

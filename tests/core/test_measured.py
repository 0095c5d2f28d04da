"""measured.json is for people: damage shows, and nothing else depends on it."""

from __future__ import annotations

import json
import shutil

import pytest

from mmf_deploy import bundle, measured
from mmf_deploy.errors import BundleError

CONTENT = {
    "machine": {"cpu": "Ünïcode 9000"},
    "latency": {"fp32": {"batch1_ms": 1.5, "on": "onnxruntime on cpu"}},
    "int8": {"int8": {"curve": [], "quantised": 3}},
}


@pytest.fixture
def copy(tiny_bundle, tmp_path):
    """A bundle with measurements that a test may spoil."""
    path = shutil.copytree(tiny_bundle, tmp_path / "copy")
    (path / measured.NAME).write_bytes(measured.render(CONTENT))
    return path


def refused(path) -> str:
    with pytest.raises(BundleError) as caught:
        bundle.load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path / measured.NAME) in message
    return message


def test_what_was_written_is_read(copy):
    assert measured.read(copy) == CONTENT
    assert bundle.load(copy).measured() == CONTENT


def test_same_content_gives_the_same_bytes_in_any_order():
    assert measured.render(dict(reversed(CONTENT.items()))) == measured.render(CONTENT)


def test_every_flipped_byte_is_refused_with_what_to_do(copy):
    file = copy / measured.NAME
    whole = file.read_bytes()
    for position in range(len(whole)):
        for bit in (0x01, 0x20, 0x80):
            spoilt = bytearray(whole)
            spoilt[position] ^= bit
            file.write_bytes(spoilt)
            with pytest.raises(BundleError):
                measured.read(copy)
    assert "corrupt: it does not match the hash it carries" in refused(copy)
    assert "delete this file" in refused(copy)


@pytest.mark.parametrize("cut", [0, 1, 20, -1])
def test_file_that_was_cut_is_refused(cut, copy):
    file = copy / measured.NAME
    file.write_bytes(file.read_bytes()[:cut])
    refused(copy)


@pytest.mark.parametrize(
    "text",
    [b"[]", b"3", b"null", b"{}", b'{"measured": 3}', b'{"measured": [[1, 2]]}', b"\xff\xfe",
     b"[" * 100_000],
    ids=lambda text: ascii(text[:12]),
)  # fmt: skip
def test_file_that_is_something_else_is_refused(text, copy):
    (copy / measured.NAME).write_bytes(text)
    refused(copy)


def test_other_content_with_the_old_hash_is_refused(copy):
    file = copy / measured.NAME
    whole = json.loads(file.read_text())
    whole["measured"]["latency"]["fp32"]["batch1_ms"] = 0.1
    file.write_text(json.dumps(whole, indent=1, sort_keys=True) + "\n")
    refused(copy)


def test_another_key_beside_the_content_is_refused(copy):
    file = copy / measured.NAME
    whole = json.loads(file.read_text()) | {"more": 1}
    file.write_text(json.dumps(whole, indent=1, sort_keys=True) + "\n")
    refused(copy)


def test_deleting_it_takes_nothing_that_serving_needs(copy, tiny_bundle):
    with_it = bundle.load(copy)
    (copy / measured.NAME).unlink()
    without = bundle.load(copy)
    assert without.measured() == {}
    assert without.manifest == with_it.manifest
    assert without.digest == with_it.digest == bundle.load(tiny_bundle).digest


def test_directory_of_its_name_is_refused(copy):
    (copy / measured.NAME).unlink()
    (copy / measured.NAME).mkdir()
    assert "not listed in the manifest" in refused(copy)


def test_writing_a_bundle_leaves_it_out_of_the_manifest(tiny_bundle, tmp_path):
    before = bundle.load(tiny_bundle)

    def fill(directory):
        for name in before.manifest.files:
            shutil.copy(tiny_bundle / name, directory / name)
        (directory / measured.NAME).write_bytes(measured.render(CONTENT))

    written = bundle.write(tmp_path / "new", before.manifest, fill)
    assert measured.NAME not in written.manifest.files
    assert written.digest == before.digest
    assert written.measured() == CONTENT

"""Bundles are verified whole, or refused with the file and what is wrong with it."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import onnx
import pytest

from mmf_deploy import bundle
from mmf_deploy.engines.base import open_engine
from mmf_deploy.errors import BundleError
from mmf_deploy.files import sha256
from mmf_deploy.golden import Golden, verify_golden
from mmf_deploy.spec import SampleSpec

VECTORS = SampleSpec(shape=(4,))
LISTED = ("model.fp32.onnx", bundle.GOLDEN)


@pytest.fixture
def copy(tiny_bundle, tmp_path):
    """A bundle that a test may spoil."""
    return shutil.copytree(tiny_bundle, tmp_path / "copy")


def edit_manifest(path, **changes):
    record = json.loads((path / bundle.MANIFEST).read_text())
    (path / bundle.MANIFEST).write_text(json.dumps({**record, **changes}))


def repair_hashes(path):
    found = {f.name: sha256(f) for f in path.iterdir() if f.name != bundle.MANIFEST}
    edit_manifest(path, files=found)


def edit_golden(path, **changes):
    with np.load(path / bundle.GOLDEN) as data:
        arrays = {**data, **changes}
    np.savez(path / bundle.GOLDEN, **{k: v for k, v in arrays.items() if v is not None})
    repair_hashes(path)


def edit_constant(path, name, value):
    file = path / "model.fp32.onnx"
    model = onnx.load(file)
    (tensor,) = (t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.float32(value), name))
    onnx.save(model, file)
    repair_hashes(path)


def refused(path) -> str:
    with pytest.raises(BundleError) as caught:
        bundle.load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.count(str(path)) == 1
    return message


def verify(path) -> float:
    found = bundle.load(path)
    with open_engine("onnxruntime", found) as engine:
        return verify_golden(found, engine, found.variant())


def test_whole_bundle_is_loaded_with_the_digest_of_its_manifest(tiny_bundle):
    found = bundle.load(tiny_bundle)
    assert found.spec == SampleSpec(shape=(1, 8, 8), classes=10)
    assert found.digest == hashlib.sha256((tiny_bundle / "bundle.json").read_bytes()).hexdigest()
    assert found.manifest.files == {name: sha256(tiny_bundle / name) for name in LISTED}
    assert found.file(found.variant()) == tiny_bundle / "model.fp32.onnx"


def test_manifest_comes_back_as_it_was_written(tiny_bundle, tmp_path):
    manifest = bundle.load(tiny_bundle).manifest
    text = (tiny_bundle / "bundle.json").read_text()
    assert bundle.Manifest.model_validate_json(text) == manifest


def test_same_content_gives_the_same_bytes_and_the_same_digest(make_tiny_bundle):
    spec = SampleSpec(shape=(3, 4, 4), classes=2, guidance=(1, 3))
    one, two = make_tiny_bundle(spec), make_tiny_bundle(spec)
    assert one != two
    assert bundle.load(one).digest == bundle.load(two).digest
    for file in one.iterdir():
        assert file.read_bytes() == (two / file.name).read_bytes(), file.name


def test_golden_file_comes_back_as_it_was_written(tmp_path):
    golden = Golden(
        seeds=np.array([0, 2**63 - 1]),
        labels=np.array([3, 1]),
        guidance=np.array([1.5, 2], np.float32),
        outputs=np.array([[0.1, 2], [3, 4]], np.float32),
        tolerance={"fp32": 1e-4, "int8": 9.5},
    )
    golden.save(tmp_path / "golden.npz")
    found = Golden.load(tmp_path / "golden.npz")
    assert found.tolerance == golden.tolerance
    for name in ("seeds", "labels", "guidance", "outputs"):
        np.testing.assert_array_equal(getattr(found, name), getattr(golden, name))


def test_failed_write_leaves_nothing(tiny_bundle, tmp_path):
    def fill(directory):
        (directory / "model.fp32.onnx").write_bytes(b"half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        bundle.write(tmp_path / "new", bundle.load(tiny_bundle).manifest, fill)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", LISTED)
@pytest.mark.parametrize("where", [0.0, 0.5, 1.0])
def test_one_flipped_bit_is_refused_with_the_file_and_both_hashes(name, where, copy):
    file = copy / name
    expected = sha256(file)
    data = bytearray(file.read_bytes())
    data[int(where * (len(data) - 1))] ^= 0x10
    file.write_bytes(data)
    message = refused(copy)
    for part in (str(file), "corrupt", expected, sha256(file)):
        assert part in message


def test_one_flipped_byte_in_every_file_of_an_export_in_turn_is_refused_by_name(
    unet_bundle, tmp_path
):
    path = shutil.copytree(unet_bundle.path, tmp_path / "copy")
    names = sorted(f.name for f in path.iterdir())
    assert {bundle.MANIFEST, "README.md", "samples.png"} < set(names)
    for name in names:
        whole = (path / name).read_bytes()
        # in the manifest a digit of a hash: the byte that its file is judged by
        victim = "README.md" if name == bundle.MANIFEST else name
        digit = unet_bundle.manifest.files["README.md"].encode()
        position = whole.index(digit) if name == bundle.MANIFEST else len(whole) // 2
        spoilt = bytearray(whole)
        spoilt[position] ^= 0x01
        (path / name).write_bytes(spoilt)
        assert f"{path / victim}: corrupt" in refused(path), name
        (path / name).write_bytes(whole)
    assert bundle.load(path).digest == unet_bundle.digest


def test_every_file_but_the_manifest_has_its_hash_in_it(unet_bundle):
    present = {f.name for f in unet_bundle.path.iterdir()}
    assert set(unet_bundle.manifest.files) == present - {bundle.MANIFEST, "measured.json"}
    assert present >= {"model.fp32.onnx", "golden.npz", "samples.png", "README.md"}


def test_manifest_with_any_byte_spoilt_is_refused_or_has_another_digest(copy):
    file = copy / bundle.MANIFEST
    whole, digest = file.read_bytes(), bundle.load(copy).digest
    refusals = 0
    for position in range(0, len(whole), 7):
        spoilt = bytearray(whole)
        spoilt[position] ^= 0x80 if position % 2 else 0x01
        file.write_bytes(spoilt)
        try:
            assert bundle.load(copy).digest != digest
        except BundleError:
            refusals += 1
    assert refusals > len(whole) // 14


@pytest.mark.parametrize("name", LISTED)
def test_missing_file_is_refused_by_name(name, copy):
    (copy / name).unlink()
    assert f"{copy / name}: missing" in refused(copy)


@pytest.mark.parametrize("kind", ["absent", "empty", "file"])
def test_path_without_a_bundle_is_refused_with_what_to_do(kind, tmp_path):
    path = tmp_path / "b"
    if kind == "empty":
        path.mkdir()
    elif kind == "file":
        path.write_text("")
    assert "no bundle here (no bundle.json); make one: mmf-export" in refused(path)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "link", "..", "nul\0", "a\\..\\b"])
@pytest.mark.parametrize("place", ["files", "variant"])
def test_path_that_leaves_the_bundle_is_refused_before_it_is_read(place, name, copy, tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("secret")
    (copy / "link").symlink_to(outside)
    if place == "files":
        edit_manifest(copy, files={name: sha256(outside)})
    else:
        (variant,) = json.loads((copy / bundle.MANIFEST).read_text())["variants"]
        edit_manifest(copy, variants=[{**variant, "file": name}])
    message = refused(copy)
    assert f"{name!r} leaves the bundle's directory" in message
    assert sha256(outside) not in message


def test_file_behind_a_link_that_leaves_the_bundle_is_refused_though_its_hash_is_right(
    copy, tmp_path
):
    model = copy / "model.fp32.onnx"
    model.rename(tmp_path / "model.fp32.onnx")
    model.symlink_to(tmp_path / "model.fp32.onnx")
    assert "'model.fp32.onnx' leaves the bundle's directory" in refused(copy)


@pytest.mark.parametrize("name", LISTED)
def test_file_without_a_hash_is_refused(name, copy):
    hashes = json.loads((copy / bundle.MANIFEST).read_text())["files"]
    del hashes[name]
    edit_manifest(copy, files=hashes)
    assert f"{name} has no hash in the manifest" in refused(copy)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_other_schema_version_is_refused_with_both_and_what_to_do(version, copy):
    edit_manifest(copy, schema_version=version)
    message = refused(copy)
    assert f"schema version {version}, this version reads 1" in message
    assert "export it again" in message


def test_unknown_key_is_refused_by_name(copy):
    edit_manifest(copy, recipee={})
    assert "recipee" in refused(copy)


def test_key_of_the_wrong_type_is_refused_by_name(copy):
    (variant,) = json.loads((copy / bundle.MANIFEST).read_text())["variants"]
    edit_manifest(copy, variants=[{**variant, "opset": "new"}])
    assert "variants.0.opset" in refused(copy)


def test_manifest_without_a_variant_is_refused(copy):
    edit_manifest(copy, variants=[])
    assert "lists no variant" in refused(copy)


def test_specification_that_contradicts_itself_is_refused(copy):
    edit_manifest(copy, spec={"shape": [4, 4]})
    assert "expected (C, H, W) or (D,)" in refused(copy)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"3", b"null", b'"text"', b"\xff\xfe\x00", b"[" * 100_000],
    ids=lambda t: ascii(t[:10]),
)
def test_manifest_that_is_garbage_is_refused(text, copy):
    (copy / bundle.MANIFEST).write_bytes(text)
    assert str(copy / bundle.MANIFEST) in refused(copy)


def test_unknown_variant_is_refused_with_those_there_are(tiny_bundle):
    with pytest.raises(BundleError, match="no variant 'int8'; it has fp32"):
        bundle.load(tiny_bundle).variant("int8")


@pytest.mark.parametrize(
    "data", [b"", b"PK", b"\x93NUMPY", b"text" * 100], ids=lambda d: ascii(d[:8])
)
def test_golden_file_that_is_garbage_is_refused_by_name(data, copy):
    (copy / bundle.GOLDEN).write_bytes(data)
    repair_hashes(copy)
    with pytest.raises(BundleError, match=r"golden\.npz: not readable golden images"):
        bundle.load(copy).golden()


def test_golden_file_with_any_byte_spoilt_is_read_or_refused(copy):
    file = copy / bundle.GOLDEN
    whole = file.read_bytes()
    refusals = 0
    for position in range(0, len(whole), 11):
        spoilt = bytearray(whole)
        spoilt[position] ^= 0xFF
        file.write_bytes(spoilt)
        try:
            Golden.load(file)
        except BundleError:
            refusals += 1
    assert refusals > len(whole) // 22


def test_golden_file_that_is_one_array_or_lacks_one_is_refused(copy):
    np.save(copy / "one.npy", np.zeros(3))
    (copy / "one.npy").rename(copy / bundle.GOLDEN)
    with pytest.raises(BundleError, match="not readable golden images"):
        Golden.load(copy / bundle.GOLDEN)
    np.savez(copy / bundle.GOLDEN, seeds=np.zeros(3, np.int64))
    with pytest.raises(BundleError, match="outputs"):
        Golden.load(copy / bundle.GOLDEN)


def test_golden_images_are_reproduced(tiny_bundle):
    assert verify(tiny_bundle) <= 1


def test_changed_weight_is_refused_by_the_golden_images_though_its_hash_is_right(copy):
    edit_constant(copy, "half", 0.52)
    with pytest.raises(BundleError) as caught:
        verify(copy)
    for part in ("model.fp32.onnx", "golden image of seed", "'onnxruntime'", "expected at most 1"):
        assert part in str(caught.value)


def test_difference_that_shows_in_one_image_only_is_found(copy):
    with np.load(copy / bundle.GOLDEN) as data:
        outputs = data["outputs"].copy()
    outputs[4, 3, 3, 0] ^= 0x08
    edit_golden(copy, outputs=outputs)
    with pytest.raises(BundleError, match="seed 123456789 differs by 8"):
        verify(copy)


def test_values_that_are_not_finite_are_refused(make_tiny_bundle, tmp_path):
    path = shutil.copytree(make_tiny_bundle(VECTORS), tmp_path / "copy")
    assert verify(path) <= 1e-5
    edit_constant(path, "half", np.nan)
    with pytest.raises(BundleError, match="not finite"):
        verify(path)


def test_variant_without_a_tolerance_is_refused(copy):
    edit_golden(copy, **{"tolerance.fp32": None})
    with pytest.raises(BundleError, match="no golden tolerance of variant 'fp32'"):
        verify(copy)


def test_golden_images_of_another_shape_are_refused(copy):
    edit_golden(copy, outputs=np.zeros((6, 8, 8, 3), np.uint8))
    with pytest.raises(BundleError, match=r"golden outputs of shape \[1, 8, 8, 3\]"):
        verify(copy)
    edit_golden(copy, outputs=np.zeros((1, 8, 8, 1), np.uint8), **{"tolerance.fp32": 255.0})
    with pytest.raises(BundleError, match=r"golden outputs of shape \[1, 8, 8, 1\]"):
        verify(copy)

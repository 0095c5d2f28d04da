"""AOTInductor packages: compiled once here, then run by the engine that would serve them."""

import json
import shutil
import zipfile

import numpy as np
import pytest
import torch
from mmf_deploy.export.graph import fixed_inputs
from mmf_deploy.export.to_aoti import export_aoti

from mmf_deploy import bundle
from mmf_deploy.engines import aoti
from mmf_deploy.engines.base import EngineOptions, open_engine
from mmf_deploy.errors import ConfigError, DependencyError, EngineError
from mmf_deploy.images import to_uint8
from mmf_deploy.nn.build import build_network
from mmf_deploy.nn.sampler import Sampler, time_grid
from mmf_deploy.spec import SampleSpec

VECTOR = SampleSpec(shape=(2,), classes=3)
IMAGE = SampleSpec(shape=(1, 8, 8), classes=3, guidance=(1, 4))
MLP = {"type": "mlp", "width": 16, "depth": 2, "zero_init": 1.0}
UNET = {"type": "unet", "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1,
        "attn_resolutions": [4], "zero_init": 1.0}  # fmt: skip


def make_sampler(spec, network):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = build_network(spec, network).eval().requires_grad_(False)
    return Sampler(net, time_grid(1), spec.is_image).eval()


def as_bundle(spec, package, precision="fp32"):
    """A bundle around a package; nothing but the engine looks at it."""
    variant = bundle.Variant(
        name="aoti", file=package.name, precision=precision, target="aoti", engine="aoti"
    )
    source = bundle.Source(
        run="tiny", step=0, weights="none", weights_sha256="0" * 64, parameters=2
    )
    manifest = bundle.Manifest(name="tiny", spec=spec, variants=[variant], source=source, recipe={})
    return bundle.Bundle(path=package.parent, manifest=manifest, digest="")


def opened(spec, package, **options):
    return open_engine(None, as_bundle(spec, package), options=EngineOptions(**options))


@pytest.fixture(scope="module")
def sampler():
    return make_sampler(VECTOR, MLP)


@pytest.fixture(scope="module")
def package(sampler, tmp_path_factory):
    path = tmp_path_factory.mktemp("aoti") / "model.pt2"
    before = {k: (v.dtype, v.clone()) for k, v in sampler.state_dict().items()}
    export_aoti(sampler, VECTOR, path)
    for name, (dtype, value) in before.items():
        now = sampler.state_dict()[name]
        assert now.dtype == dtype
        assert torch.equal(now, value)
    return path


@torch.inference_mode()
def expected(sampler, given):
    return [o.numpy() for o in sampler(**given.tensors())]


def test_package_gives_pytorchs_samples_at_every_batch_size(package, sampler):
    with opened(VECTOR, package, threads=1) as engine:
        assert (engine.name, engine.device, engine.precision) == ("aoti", "cpu", "fp32")
        for batch in (1, 2, 3, 17, 64, 130):
            given = fixed_inputs(VECTOR, batch)
            found = engine.run(given.noise, given.label)
            assert found.image is None
            np.testing.assert_allclose(found.sample, expected(sampler, given)[0], atol=1e-5)


def test_outputs_belong_to_the_caller_and_a_closed_engine_refuses(package):
    given = fixed_inputs(VECTOR, 2)
    with opened(VECTOR, package) as engine:
        first = engine.run(given.noise, given.label).sample
        kept = first.copy()
        engine.run(-given.noise, given.label)
        np.testing.assert_array_equal(first, kept)
    with pytest.raises(EngineError, match="outside its with-block"):
        engine.run(given.noise, given.label)
    with engine:
        np.testing.assert_array_equal(engine.run(given.noise, given.label).sample, kept)


def changed(package, folder, **about):
    """A copy of the package with other metadata."""
    copy = folder / "changed.pt2"
    with zipfile.ZipFile(package) as old, zipfile.ZipFile(copy, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("wrapper_metadata.json"):
                content = json.dumps(json.loads(content) | about).encode()
            new.writestr(name, content)
    return copy


def test_package_for_a_cpu_with_other_instructions_is_refused_before_it_is_run(package, tmp_path):
    other = changed(package, tmp_path, **{aoti.FLAGS_KEY: "avx avx1024_foo"})
    with pytest.raises(EngineError, match=r"for a CPU with avx1024_foo, which this one lacks"):
        opened(VECTOR, other).__enter__()


def test_package_says_which_instructions_it_was_compiled_for(package):
    flags = aoti.cpu_flags()
    with zipfile.ZipFile(package) as content:
        name = next(n for n in content.namelist() if n.endswith("wrapper_metadata.json"))
        about = json.loads(content.read(name))
    assert set(about[aoti.FLAGS_KEY].split()) == flags
    assert about["AOTI_DEVICE_KEY"] == "cpu"


def test_package_for_another_device_is_refused(package, tmp_path):
    other = changed(package, tmp_path, AOTI_DEVICE_KEY="cuda")
    with pytest.raises(EngineError, match="for device 'cuda', not 'cpu'; pass --device cuda"):
        opened(VECTOR, other).__enter__()


@pytest.mark.parametrize("kind", ["garbage", "zip", "cut"])
def test_file_that_is_no_package_is_refused_by_name(kind, package, tmp_path):
    path = tmp_path / "model.pt2"
    if kind == "garbage":
        path.write_bytes(b"garbage")
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as f:
            f.writestr("x", "y")
    else:
        path.write_bytes(package.read_bytes()[:-1000])
    with pytest.raises(EngineError, match=r"model\.pt2: not an AOTInductor package"):
        opened(VECTOR, path).__enter__()


def test_package_whose_code_is_damaged_is_refused_by_name(package, tmp_path):
    other = tmp_path / "model.pt2"
    with zipfile.ZipFile(package) as old, zipfile.ZipFile(other, "w") as new:
        for name in old.namelist():
            new.writestr(name, b"no library" if name.endswith(".so") else old.read(name))
    with pytest.raises(EngineError, match=r"model\.pt2: PyTorch cannot load it: ") as caught:
        opened(VECTOR, other).__enter__()
    assert "\n" not in str(caught.value)


def test_package_that_is_gone_is_refused(package, tmp_path):
    found = as_bundle(VECTOR, shutil.copy(package, tmp_path / "model.pt2"))
    (tmp_path / "model.pt2").unlink()
    with pytest.raises(EngineError, match="gone since the bundle was verified"):
        open_engine("aoti", found).__enter__()


def test_an_engine_for_graphs_refuses_a_package_and_names_the_one_that_runs_it(package):
    found = as_bundle(VECTOR, package)
    with pytest.raises(EngineError, match=r"does not run model\.pt2.*--engine aoti does"):
        open_engine("onnxruntime", found).__enter__()


def test_compiling_without_a_compiler_says_what_to_install(sampler, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(DependencyError, match="'no-such-compiler' is not installed: apt-get"):
        export_aoti(sampler, VECTOR, tmp_path / "model.pt2")


def test_precision_that_is_not_offered_is_refused(sampler, tmp_path):
    with pytest.raises(ConfigError, match="'int8': an aoti package has fp32, bf16"):
        export_aoti(sampler, VECTOR, tmp_path / "model.pt2", precision="int8")


def test_instructions_are_read_whatever_else_the_kernel_lists(tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text("model name\t: x\nflags\t\t: fpu vme sse2 avx512f amx_tile constant_tsc\n")
    assert aoti.cpu_flags(info) == {"sse2", "avx512f", "amx_tile"}
    info.write_text("processor: 0\nFeatures\t: fp asimd evtstrm sve2\n")
    assert aoti.cpu_flags(info) == {"fp", "asimd", "sve2"}
    assert aoti.cpu_flags(tmp_path / "absent") == set()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_guided_unet_gives_pytorchs_images(precision, tmp_path):
    sampler = make_sampler(IMAGE, UNET)
    path = tmp_path / "model.pt2"
    export_aoti(sampler, IMAGE, path, precision)
    with opened(IMAGE, path, threads=1) as engine:
        for batch in (1, 5, 64):
            given = fixed_inputs(IMAGE, batch)
            found = engine.run(given.noise, given.label, given.guidance)
            sample = expected(sampler, given)[0]
            error = np.sqrt(np.mean((found.sample - sample) ** 2)) / sample.std()
            assert error < 1e-5 if precision == "fp32" else 1e-4 < error < 0.03
            difference = found.image.astype(int) - to_uint8(found.sample).astype(int)
            assert np.abs(difference).max() <= 1

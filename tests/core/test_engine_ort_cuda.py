"""ONNX Runtime on a GPU: what a machine without one can check, and what one with it must."""

import ctypes
import mmap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest

from mmf_deploy import bundle
from mmf_deploy.engines import gpu_facts as facts
from mmf_deploy.engines import ort_cuda, ort_probe
from mmf_deploy.engines.base import BUCKETS, EngineOptions, open_engine
from mmf_deploy.engines.ort import OnnxRuntimeEngine
from mmf_deploy.errors import EngineError
from mmf_deploy.golden import verify_golden
from mmf_deploy.noise import gaussian_batch
from mmf_deploy.spec import SampleSpec

GUIDED = SampleSpec(shape=(3, 4, 4), classes=4, guidance=(1, 4))
CAPI = Path(ort.__file__).parent / "capi"
PROVIDER = {
    ort_cuda.CUDA: "libonnxruntime_providers_cuda.so",
    ort_cuda.TENSORRT: "libonnxruntime_providers_tensorrt.so",
}


def inputs(batch, first_seed=0):
    seeds = range(first_seed, first_seed + batch)
    return {
        "noise": gaussian_batch(seeds, GUIDED.shape),
        "label": np.arange(batch) % 4,
        "guidance": np.linspace(1, 4, batch, dtype=np.float32),
    }


@pytest.fixture
def guided(make_tiny_bundle):
    return bundle.load(make_tiny_bundle(GUIDED))


@pytest.fixture
def session(guided):
    return ort.InferenceSession(
        str(guided.file(guided.variant())), providers=["CPUExecutionProvider"]
    )


class Recorded:
    """A session that notes the options of every run."""

    def __init__(self, session):
        self._session = session
        self.runs = []

    def __getattr__(self, name):
        return getattr(self._session, name)

    def run_with_iobinding(self, binding, options):
        self.runs.append((binding, options))
        self._session.run_with_iobinding(binding, options)


# buffers and padding: the real session, with its buffers in the CPU's memory


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 8, 63, 64])
def test_a_padded_batch_gives_what_the_batch_alone_gives(batch, session):
    bound = ort_cuda.BoundSession(ort, session, BUCKETS, ("cpu", 0), graphs=True)
    given = inputs(batch)
    found = bound.run(given)
    expected = dict(zip(("sample", "image"), session.run(None, given), strict=True))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name].shape, found[name].dtype) == (value.shape, value.dtype)
        np.testing.assert_array_equal(found[name], value)


def test_every_bucket_has_one_graph_and_buffers_that_stay(session):
    recorded = Recorded(session)
    bound = ort_cuda.BoundSession(ort, recorded, BUCKETS, ("cpu", 0), graphs=True)
    for batch in (3, 4, 1, 3, 64, 4, 1):
        bound.run(inputs(batch))
    ids = [options.get_run_config_entry("gpu_graph_id") for _, options in recorded.runs]
    assert ids == ["4", "4", "1", "4", "64", "4", "1"]
    bindings = {id(binding) for binding, _ in recorded.runs}
    assert len(bindings) == 3
    addresses = {b.data_ptr() for slot in bound._slots.values() for b in slot.inputs.values()}
    for batch in (3, 64, 1):
        bound.run(inputs(batch))
    assert addresses == {
        b.data_ptr() for slot in bound._slots.values() for b in slot.inputs.values()
    }


def test_without_cuda_graphs_no_graph_is_asked_for(session):
    recorded = Recorded(session)
    ort_cuda.BoundSession(ort, recorded, BUCKETS, ("cpu", 0), graphs=False).run(inputs(2))
    with pytest.raises(RuntimeError, match="gpu_graph_id"):
        recorded.runs[0][1].get_run_config_entry("gpu_graph_id")


def test_bound_outputs_belong_to_the_caller(session):
    bound = ort_cuda.BoundSession(ort, session, BUCKETS, ("cpu", 0), graphs=True)
    first = bound.run(inputs(2))
    kept = {name: value.copy() for name, value in first.items()}
    bound.run(inputs(2, first_seed=9))
    for name, value in kept.items():
        np.testing.assert_array_equal(first[name], value)


# the engine on "cuda", with the CPU's provider in the place of the GPU's


@pytest.fixture
def on_cuda(monkeypatch):
    """As if there were a GPU: opens an engine on it; ``on_cuda.asked`` is what it asked for."""
    asked = []

    class OnCpu(ort_cuda.BoundSession):
        def __init__(self, ort, session, buckets, place, graphs):
            asked.append(("place", place))
            super().__init__(ort, session, buckets, ("cpu", 0), graphs)

    def opened(ort, path, settings, providers):
        asked.extend(providers)
        return ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(ort_probe, "gpu_problem", lambda index, tensorrt: None)
    monkeypatch.setattr(ort_cuda, "BoundSession", OnCpu)
    monkeypatch.setattr(ort_cuda, "open_session", opened)

    def open_(found, **options):
        return open_engine("onnxruntime", found, options=EngineOptions(**options))

    open_.asked = asked
    return open_


@pytest.mark.parametrize("mode", OnnxRuntimeEngine.modes)
def test_golden_images_come_through_the_bound_path(mode, on_cuda, guided, tmp_path):
    with on_cuda(guided, device="cuda:1", mode=mode, cache=tmp_path) as engine:
        assert verify_golden(guided, engine, engine.variant) <= 1
        assert engine.run(**inputs(130)).sample.shape == (130, *GUIDED.shape)
    asked = dict(on_cuda.asked)
    assert asked["place"] == ("cuda", 1)
    assert asked[ort_cuda.CUDA]["device_id"] == "1"
    assert asked[ort_cuda.CUDA]["enable_cuda_graph"] == ("1" if mode == "default" else "0")
    assert (ort_cuda.TENSORRT in asked) == (mode == "tensorrt")
    with pytest.raises(EngineError, match="outside its with-block"):
        engine.run(**inputs(1))


@pytest.mark.parametrize(
    ("mode", "sizes"), [("default", [512, 1]), ("eager", [512, 1]), ("tensorrt", [64] * 8 + [1])]
)
def test_large_batches_run_as_one_except_where_tensorrt_builds_for_them(
    mode, sizes, on_cuda, guided, tmp_path, monkeypatch
):
    seen = []
    run = ort_cuda.BoundSession.run
    monkeypatch.setattr(
        ort_cuda.BoundSession,
        "run",
        lambda self, feeds: seen.append(len(feeds["noise"])) or run(self, feeds),
    )
    with on_cuda(guided, device="cuda", mode=mode, cache=tmp_path) as engine:
        engine.record_device_time = True  # it has no clock that could be read
        assert engine.run(**inputs(513)).sample.shape == (513, *GUIDED.shape)
        assert (engine.device_ms, engine.device_memory_mb()) == (None, None)
    assert seen == sizes


def test_tensorrt_comes_before_cuda_and_keeps_its_files_by_weights(on_cuda, guided, tmp_path):
    with on_cuda(guided, device="cuda", mode="tensorrt", cache=tmp_path):
        pass
    (first, options), (second, _), _ = on_cuda.asked
    assert (first, second) == (ort_cuda.TENSORRT, ort_cuda.CUDA)
    digest = guided.manifest.files["model.fp32.onnx"]
    assert options["trt_engine_cache_path"] == str(tmp_path / "onnxruntime-tensorrt" / digest[:16])
    assert Path(options["trt_engine_cache_path"]).is_dir()
    assert options["trt_profile_min_shapes"] == "noise:1x3x4x4,label:1,guidance:1"
    assert options["trt_profile_opt_shapes"] == "noise:8x3x4x4,label:8,guidance:8"
    assert options["trt_profile_max_shapes"] == "noise:64x3x4x4,label:64,guidance:64"


def test_failure_of_a_run_on_the_gpu_is_an_engine_error(on_cuda, guided, monkeypatch):
    with on_cuda(guided, device="cuda") as engine:
        monkeypatch.setattr(engine._bound, "run", lambda feeds: 1 / 0)
        with pytest.raises(EngineError, match="failed on a batch of 2"):
            engine.run(**inputs(2))


# options


def test_fp32_computes_without_tf32_and_other_precisions_may_use_it():
    for precision, allowed in (("fp32", "0"), ("fp16", "1"), ("int8", "1")):
        _, options = ort_cuda.cuda_provider(0, precision, graphs=True)
        assert options["use_tf32"] == allowed
        assert options["cudnn_conv_algo_search"] == "EXHAUSTIVE"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_tensorrt_may_compute_in_the_variants_precision_alone(precision):
    _, options = ort_cuda.tensorrt_provider(0, precision, Path("c"), {"noise": (2,)}, 4)
    enabled = [p for p in ("fp16", "bf16", "int8") if options[f"trt_{p}_enable"] == "1"]
    assert enabled == ([] if precision == "fp32" else [precision])
    assert options["trt_profile_opt_shapes"] == options["trt_profile_max_shapes"] == "noise:4x2"


def contains(library, words):
    with library.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return {word for word in words if content.find(word.encode()) >= 0}


@pytest.mark.parametrize("name", PROVIDER)
def test_options_are_words_that_the_installed_provider_knows(name):
    library = CAPI / PROVIDER[name]
    if not library.is_file():
        pytest.skip(f"the onnxruntime installed here has no {name}")
    options = {
        ort_cuda.CUDA: ort_cuda.cuda_provider(0, "fp32", True)[1],
        ort_cuda.TENSORRT: ort_cuda.tensorrt_provider(0, "fp32", Path(), {"noise": (2,)}, 4)[1],
    }[name]
    words = {*options, "EXHAUSTIVE"} if name == ort_cuda.CUDA else set(options)
    assert contains(library, words) == words
    assert contains(library, {"no_such_option"}) == set()


def test_the_runtime_knows_the_graph_ids():
    core = next(CAPI.glob("onnxruntime_pybind11_state*"))
    assert contains(core, {"gpu_graph_id", "no_such_option"}) == {"gpu_graph_id"}


# refusals


def opened_on_a_gpu(found, **options):
    return open_engine("onnxruntime", found, options=EngineOptions(**options))


@pytest.mark.parametrize(
    ("device", "index"),
    [("cuda", 0), ("cuda:0", 0), ("cuda:12", 12), ("cuda:", None), ("cuda:x", None),
     ("cuda:-1", None), ("cuda:1²", None), ("cpu", None), ("CUDA", None), (None, None)],
)  # fmt: skip
def test_device_names_a_gpu(device, index):
    assert ort_cuda.device_index(device) == index


@pytest.mark.parametrize("mode", ["eager", "tensorrt"])
@pytest.mark.parametrize("device", [None, "cpu"])
def test_modes_of_the_gpu_are_refused_on_the_cpu(mode, device, guided):
    with (
        pytest.raises(EngineError, match=f"mode '{mode}' is for device 'cuda'"),
        opened_on_a_gpu(guided, device=device, mode=mode),
    ):
        pytest.fail("opened")


def test_unknown_mode_is_refused_with_the_nearest(guided):
    with (
        pytest.raises(EngineError, match="did you mean 'tensorrt'"),
        opened_on_a_gpu(guided, mode="tensort"),
    ):
        pytest.fail("opened")


@pytest.mark.skipif(
    ort_cuda.CUDA in ort.get_available_providers(), reason="the GPU package is installed"
)
def test_the_package_for_cpus_is_named_with_what_replaces_it(guided):
    with (
        pytest.raises(EngineError, match=r'for CPUs only.*pip install "mmf-deploy\[gpu\]"'),
        opened_on_a_gpu(guided, device="cuda"),
    ):
        pytest.fail("opened")


def test_provider_that_is_left_out_is_an_error_and_never_the_cpu(guided):
    class Fallen:
        def get_providers(self):
            return ["CPUExecutionProvider"]

    left_out = SimpleNamespace(InferenceSession=lambda *_, **__: Fallen())
    path = guided.file(guided.variant())
    with pytest.raises(EngineError, match=r"left out CUDAExecutionProvider.*on CPUExecution"):
        ort_cuda.open_session(left_out, path, None, [ort_cuda.cuda_provider(0, "fp32", True)])


def test_provider_that_this_build_does_not_have_is_an_error_in_one_line(guided):
    path = guided.file(guided.variant())
    with pytest.raises(EngineError, match=r"cannot load it with NoProvider") as caught:
        ort_cuda.open_session(ort, path, ort.SessionOptions(), [("NoProvider", {})])
    assert "\n" not in str(caught.value)


class Driver:
    """A CUDA driver that finds ``count`` GPUs."""

    def __init__(self, count, code=0):
        self.count, self.code = count, code

    def cuInit(self, flags):  # noqa: N802
        return self.code

    def cuDeviceGetCount(self, reference):  # noqa: N802
        reference._obj.value = self.count
        return 0


@pytest.fixture
def gpu_package(monkeypatch):
    """As if onnxruntime-gpu were installed; called with what loading each library gives."""

    def installed(libraries, providers=(ort_cuda.TENSORRT, ort_cuda.CUDA)):
        def load(name, *_):
            found = libraries.get(Path(name).name)
            if isinstance(found, str):
                raise OSError(f"{found}: cannot open shared object file: No such file")
            return found

        module = SimpleNamespace(
            get_available_providers=lambda: list(providers),
            preload_dlls=lambda: print("Failed to load something"),
            __file__="/x/onnxruntime/__init__.py",
        )
        monkeypatch.setattr(ort_probe.importlib, "import_module", lambda name: module)
        monkeypatch.setattr(ctypes, "CDLL", load)

    return installed


CUDA_SO, TENSORRT_SO = PROVIDER[ort_cuda.CUDA], PROVIDER[ort_cuda.TENSORRT]
ONE_GPU = {"libcuda.so.1": Driver(1)}
PROBLEMS = {
    "no-driver": ({"libcuda.so.1": "libcuda.so.1"}, 0, False, "no NVIDIA driver (libcuda.so.1"),
    "no-gpu": ({"libcuda.so.1": Driver(0)}, 0, False, "finds no GPU (code 0)"),
    "driver-fails": ({"libcuda.so.1": Driver(0, 100)}, 0, False, "finds no GPU (code 100)"),
    "one-gpu": (ONE_GPU, 1, False, "'cuda:1', but the last GPU is 'cuda:0'"),
    "library": (ONE_GPU | {CUDA_SO: "libcurand.so.10"}, 0, False, "load: libcurand.so.10 (cannot"),
    "tensorrt": (
        ONE_GPU | {"libnvinfer.so.10": "libnvinfer.so.10", TENSORRT_SO: "libnvinfer.so.10"},
        0, True, "needs TensorRT 10 (libnvinfer.so.10); TensorRT 11 is --engine tensorrt",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PROBLEMS)
def test_what_is_missing_is_named_in_one_line(case, gpu_package, capsys):
    libraries, index, tensorrt, expected = PROBLEMS[case]
    gpu_package(libraries)
    problem = ort_probe.gpu_problem(index, tensorrt)
    assert problem is not None
    assert expected in problem
    assert "\n" not in problem
    assert capsys.readouterr().out == ""


def test_nothing_is_missing_where_everything_loads(gpu_package):
    gpu_package(ONE_GPU)
    assert ort_probe.gpu_problem(0, tensorrt=True) is None
    gpu_package(ONE_GPU, providers=(ort_cuda.CUDA,))
    assert ort_probe.gpu_problem(0, tensorrt=False) is None
    assert "no TensorRT provider" in (ort_probe.gpu_problem(0, tensorrt=True) or "")


# what a result says of the GPU


class NamedDriver(Driver):
    """A CUDA driver that describes its GPU 1."""

    def cuDeviceGet(self, reference, index):  # noqa: N802
        reference._obj.value = 40 + index
        return self.code

    def cuDeviceGetName(self, buffer, size, device):  # noqa: N802
        buffer.value = f"NVIDIA Stand {device.value}".encode()[:size]
        return 0

    def cuDeviceGetAttribute(self, reference, attribute, device):  # noqa: N802
        reference._obj.value = {75: 9, 76: 0}[attribute]
        return 0


VERSION = "570.86.10"
VERSIONS = (
    f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {VERSION}  Sat Jan 18 01:15:15 UTC 2025\n",
    f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {VERSION}  Release Build\nGCC 13\n",
)


@pytest.mark.parametrize("text", VERSIONS)
def test_gpu_and_driver_are_told_without_torch(text, monkeypatch, tmp_path):
    file = tmp_path / "version"
    file.write_text(text)
    monkeypatch.setattr(facts, "DRIVER", file)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: NamedDriver(2))
    assert facts.gpu_facts(1) == {
        "gpu": "NVIDIA Stand 41", "compute_capability": "9.0", "driver": VERSION,
    }  # fmt: skip
    monkeypatch.setattr(ctypes, "CDLL", lambda name: NamedDriver(2, code=100))
    assert facts.gpu_facts(1) == {"driver": VERSION}


def test_nothing_is_told_where_there_is_no_driver(monkeypatch, tmp_path):
    def load(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(facts, "DRIVER", tmp_path / "none")
    assert facts.gpu_facts(0) == {}


# a real GPU


@pytest.fixture
def gpu():
    problem = ort_probe.gpu_problem(0, tensorrt=False)
    if problem is not None:
        pytest.skip(problem)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["default", "eager"])
@pytest.mark.usefixtures("gpu")
def test_gpu_reproduces_the_golden_images_and_the_cpus_samples(mode, unet_bundle):
    x1 = gaussian_batch(range(130), (1, 8, 8))
    label = np.arange(130) % 3
    with opened_on_a_gpu(unet_bundle, device="cpu") as cpu:
        expected = cpu.run(x1, label).sample
    with opened_on_a_gpu(unet_bundle, device="cuda", mode=mode) as engine:
        assert verify_golden(unet_bundle, engine, engine.variant) <= 1
        for batch in (1, 3, 64, 130, 3, 1):  # captured, then replayed
            found = engine.run(x1[:batch], label[:batch]).sample
            np.testing.assert_allclose(found, expected[:batch], atol=1e-4)


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu")
def test_tensorrt_provider_reproduces_the_golden_images(unet_bundle, tmp_path):
    problem = ort_probe.gpu_problem(0, tensorrt=True)
    if problem is not None:
        pytest.skip(problem)
    with opened_on_a_gpu(unet_bundle, device="cuda", mode="tensorrt", cache=tmp_path) as engine:
        assert verify_golden(unet_bundle, engine, engine.variant) <= 1
    assert any((tmp_path / "onnxruntime-tensorrt").rglob("*.engine"))

"""What the builder and the runtime ask of TensorRT, over a stand-in that writes it down.

That the names and signatures are TensorRT's is test_trt_api.py's matter.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import SimpleNamespace

import pytest

from mmf_deploy.engines.trt_plan import BuildOptions, BuildRequest, tensors_of
from mmf_deploy.errors import EngineError
from mmf_deploy.spec import SampleSpec

SPEC = SampleSpec(shape=(3, 4, 5), classes=7, guidance=(2, 4))
TENSORS = tensors_of(SPEC)
MODULES = ["trt_log", "trt_build", "trt_runtime"]
pytest.importorskip("cuda.bindings", reason="cuda-bindings is not installed")


def enum(*names):
    return SimpleNamespace(**{name: name for name in names})


class Base:
    pass


class StandIn:
    """The module tensorrt, as far as it is used, with what the tests look at."""

    __version__ = "11.4.0.106"
    DataType = SimpleNamespace(**{n: SimpleNamespace(name=n) for n in ("FLOAT", "INT64", "UINT8")})
    HardwareCompatibilityLevel = enum("NONE", "SAME_COMPUTE_CAPABILITY", "AMPERE_PLUS")
    BuilderFlag = enum("TF32", "VERSION_COMPATIBLE", "REFIT")
    MemoryPoolType = enum("WORKSPACE")
    ExecutionContextAllocationStrategy = enum("ON_PROFILE_CHANGE")
    Dims = staticmethod(list)
    IProgressMonitor = Base
    ILogger = type("ILogger", (), {"Severity": enum("INTERNAL_ERROR", "ERROR", "WARNING", "INFO")})

    def __init__(self) -> None:
        self.network = SimpleNamespace(num_inputs=0, num_outputs=0)
        self.set_tensors({t.name: (t.dtype, t.batched(-1)) for t in TENSORS})
        self.parser_errors: list[SimpleNamespace] = []
        self.plan: bytes | None = b"plan"
        self.configs: list[Config] = []
        self.progress = [("build", None, 2), ("build", 0), ("build", 1), "build"]
        self.engine: EngineStandIn | None = EngineStandIn()
        self.usable_timings = True

    def set_tensors(self, tensors):
        kinds = {"float32": self.DataType.FLOAT, "int64": self.DataType.INT64,
                 "uint8": self.DataType.UINT8}  # fmt: skip
        found = {n: SimpleNamespace(name=n, dtype=kinds[d], shape=s)
                 for n, (d, s) in tensors.items()}  # fmt: skip
        inputs = [t for n, t in found.items() if n in ("noise", "label", "guidance")]
        outputs = [t for t in found.values() if t not in inputs]
        self.network = SimpleNamespace(
            num_inputs=len(inputs), num_outputs=len(outputs),
            get_input=inputs.__getitem__, get_output=outputs.__getitem__,
        )  # fmt: skip

    def Builder(self, logger):  # noqa: N802
        self.log = logger
        return BuilderStandIn(self)

    def OnnxParser(self, network, logger):  # noqa: N802
        errors = self.parser_errors
        return SimpleNamespace(
            parse_from_file=lambda path: not errors,
            num_errors=len(errors), get_error=errors.__getitem__,
        )  # fmt: skip

    def Runtime(self, logger):  # noqa: N802
        self.log = logger
        return SimpleNamespace(
            engine_host_code_allowed=False, deserialize_cuda_engine=lambda plan: self.engine
        )


class Config:
    def __init__(self, trt):
        self.trt, self.flags, self.profiles, self.limits = trt, {"TF32"}, [], {}
        self.given_timings, self.timings = [], None

    def set_memory_pool_limit(self, pool, size):
        self.limits[pool] = size

    def set_flag(self, flag):
        self.flags.add(flag)

    def clear_flag(self, flag):
        self.flags.discard(flag)

    def add_optimization_profile(self, profile):
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, stored):
        self.given_timings.append(stored)
        return SimpleNamespace(serialize=lambda: stored + b"+")

    def set_timing_cache(self, timings, ignore_mismatch):
        assert ignore_mismatch is False
        self.timings = timings
        return self.trt.usable_timings or self.given_timings[-1] == b""


class BuilderStandIn:
    def __init__(self, trt):
        self.trt = trt

    def create_network(self, flags):
        assert flags == 0
        return self.trt.network

    def create_builder_config(self):
        self.trt.configs.append(Config(self.trt))
        return self.trt.configs[-1]

    def create_optimization_profile(self):
        shapes = {}

        def set_shape(name, low, best, high):
            assert low == best == high
            shapes[name] = best

        return SimpleNamespace(shapes=shapes, set_shape=set_shape)

    def build_serialized_network(self, network, config):
        monitor = config.progress_monitor
        for event in self.trt.progress:
            if isinstance(event, str):
                monitor.phase_finish(event)
            elif len(event) == 3:
                monitor.phase_start(*event)
            elif not monitor.step_complete(*event):
                return None
        return self.trt.plan


class EngineStandIn:
    def __init__(self):
        self.num_optimization_profiles = 2
        self.context = ContextStandIn()

    def create_execution_context(self, strategy):
        assert strategy == "ON_PROFILE_CHANGE"
        return self.context


class ContextStandIn:
    def __init__(self):
        self.calls, self.shapes, self.refused = [], {}, None
        self.batch = None

    def _say(self, name, *args):
        self.calls.append((name, *args))
        return name != self.refused

    def set_optimization_profile_async(self, profile, stream):
        return self._say("profile", profile, stream)

    def set_input_shape(self, name, shape):
        self.batch, self.shapes[name] = shape[0], shape
        return self._say("shape", name)

    def get_tensor_shape(self, name):
        inferred = {t.name: t.batched(self.batch) for t in TENSORS if not t.is_input}
        return list((inferred | self.shapes)[name])

    def set_tensor_address(self, name, address):
        return self._say("address", name, address)

    def execute_async_v3(self, stream):
        return self._say("execute", stream)


@pytest.fixture
def trt(monkeypatch):
    stand = StandIn()
    monkeypatch.setitem(sys.modules, "tensorrt", stand)
    names = [f"mmf_deploy.engines.{m}" for m in MODULES]
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield stand
    for name in names:  # these belong to the stand-in
        sys.modules.pop(name, None)


def request(tmp_path, buckets=(1, 8), **options) -> BuildRequest:
    return BuildRequest(
        tmp_path / "model.onnx", TENSORS, buckets, BuildOptions(**options), tmp_path / "timings"
    )


def build(asked) -> bytes:
    return import_module("mmf_deploy.engines.trt_build").build_plan(asked)


# --- building ------------------------------------------------------------------------------


def test_one_profile_a_bucket_of_that_batch_alone(trt, tmp_path, capsys):
    assert build(request(tmp_path)) == b"plan"
    (config,) = trt.configs
    assert [p.shapes for p in config.profiles] == [
        {"noise": [n, 3, 4, 5], "label": [n], "guidance": [n]} for n in (1, 8)
    ]


def test_fp32_is_fp32_and_every_option_arrives(trt, tmp_path):
    build(request(tmp_path))
    (config,) = trt.configs
    assert config.flags == set()  # TF32 was on
    assert config.limits == {"WORKSPACE": 2048 * 2**20}
    assert config.builder_optimization_level == 3
    assert config.hardware_compatibility_level == "NONE"
    build(request(tmp_path, tf32=True, refit=True, version_compatible=True, hardware="ampere",
                  optimization_level=5, workspace_mib=64))  # fmt: skip
    config = trt.configs[1]
    assert config.flags == {"TF32", "REFIT", "VERSION_COMPATIBLE"}
    assert config.limits == {"WORKSPACE": 64 * 2**20}
    assert config.builder_optimization_level == 5
    assert config.hardware_compatibility_level == "AMPERE_PLUS"


def parser_error(node, name, operator, text):
    return SimpleNamespace(
        node=lambda: node, node_name=lambda: name, node_operator=lambda: operator,
        desc=lambda: text,
    )  # fmt: skip


def test_all_errors_of_the_parser_are_in_one_line_that_says_what_is_needed(trt, tmp_path):
    trt.parser_errors = [
        parser_error(3, "q0", "QuantizeLinear", "zero point\n must be 0"),
        parser_error(9, "t", "Transpose", "no UINT8"),
    ]
    with pytest.raises(EngineError) as e:
        build(request(tmp_path))
    text = str(e.value)
    assert "\n" not in text
    assert "node 3 'q0' (QuantizeLinear): zero point must be 0; node 9 't' (Transpose)" in text
    assert "zero point 0" in text
    assert "opset 25 or lower" in text
    assert "--target tensorrt" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": ("float32", (-1,))}, "outputs sample, image, extra; expected sample, image"),
        ({"label": ("float32", (-1,))}, r"label is FLOAT \[-1\]; expected int64 \[-1\]"),
        ({"noise": ("float32", (2, 3, 4, 5))}, r"noise is FLOAT \[2, 3, 4, 5\]"),
        ({"sample": ("float32", (-1, 3, 4))}, "sample is FLOAT"),
    ],
)
def test_a_graph_that_is_not_this_generators_is_refused_before_its_build(
    change, message, trt, tmp_path
):
    trt.set_tensors({t.name: (t.dtype, t.batched(-1)) for t in TENSORS} | change)
    with pytest.raises(EngineError, match=message):
        build(request(tmp_path))
    assert trt.configs == []


def test_sizes_that_tensorrt_learns_later_are_no_objection(trt, tmp_path):
    late = {"sample": ("float32", (-1, -1, 4, -1)), "image": ("uint8", (-1, -1, -1, 3))}
    trt.set_tensors({t.name: (t.dtype, t.batched(-1)) for t in TENSORS} | late)
    assert build(request(tmp_path)) == b"plan"


def test_a_build_that_fails_gives_the_reasons_from_the_log(trt, tmp_path):
    trt.plan = None
    log = import_module("mmf_deploy.engines.trt_log").tensorrt_log()
    log.log("ERROR", "out of  memory")
    log.log("INFO", "nothing")
    with pytest.raises(EngineError, match=r"build a plan of .*model\.onnx: out of memory$"):
        build(request(tmp_path))
    assert not (tmp_path / "timings").exists()


def test_timings_are_read_and_written(trt, tmp_path, caplog):
    build(request(tmp_path))
    assert (tmp_path / "timings").read_bytes() == b"+"
    build(request(tmp_path))
    assert trt.configs[1].given_timings == [b"+"]
    assert (tmp_path / "timings").read_bytes() == b"++"
    assert caplog.text == ""
    trt.usable_timings = False  # of another GPU, or damaged
    build(request(tmp_path))
    assert trt.configs[2].given_timings == [b"++", b""]
    assert (tmp_path / "timings").read_bytes() == b"+"
    assert "timing anew" in caplog.text


def test_an_interrupt_during_the_build_stops_it_and_comes_out(trt, tmp_path, monkeypatch):
    module = import_module("mmf_deploy.engines.trt_build")

    def interrupted(self, what, done, status=""):
        raise KeyboardInterrupt

    monkeypatch.setattr(module.TaskProgress, "show", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(request(tmp_path))


# --- running -------------------------------------------------------------------------------


def opened(tmp_path, **options):
    native = import_module("mmf_deploy.engines.trt_runtime").NativeTensorRT()
    return native.open(b"plan", request(tmp_path, **options))


ADDRESSES = {t.name: 4096 * (k + 1) for k, t in enumerate(TENSORS)}


def test_a_context_gets_profile_shapes_and_addresses_before_it_runs(trt, tmp_path):
    run = opened(tmp_path).bind(1, 8, TENSORS, ADDRESSES, 77)
    context = trt.engine.context
    assert context.calls[0] == ("profile", 1, 77)
    assert context.calls[1:4] == [("shape", n) for n in ("noise", "label", "guidance")]
    assert context.calls[4:] == [("address", n, a) for n, a in ADDRESSES.items()]
    assert context.shapes["noise"] == (8, 3, 4, 5)
    context.calls.clear()
    run()
    assert context.calls == [("execute", 77)]


@pytest.mark.parametrize("refused", ["profile", "shape", "address"])
def test_what_a_context_refuses_is_an_error_with_the_reason(refused, trt, tmp_path):
    plan = opened(tmp_path)
    trt.engine.context.refused = refused
    trt.log.log("ERROR", "because")
    with pytest.raises(EngineError, match=r"^TensorRT cannot .*: because$"):
        plan.bind(1, 8, TENSORS, ADDRESSES, 77)


def test_a_run_that_fails_is_an_error_and_memory_that_lacks_too(trt, tmp_path):
    plan = opened(tmp_path)
    run = plan.bind(1, 8, TENSORS, ADDRESSES, 77)
    trt.engine.context.refused = "execute"
    with pytest.raises(EngineError, match="cannot run a batch of 8: it gave no reason"):
        run()
    trt.engine.context = None
    with pytest.raises(EngineError, match="cannot prepare for batches of 8"):
        plan.bind(1, 8, TENSORS, ADDRESSES, 77)


def test_an_output_larger_than_its_memory_is_refused(trt, tmp_path):
    plan = opened(tmp_path)
    trt.engine.context.get_tensor_shape = lambda name: [9, 9, 9, 9]
    with pytest.raises(EngineError, match=r"noise has shape \(9, 9, 9, 9\); expected \(8, 3"):
        plan.bind(1, 8, TENSORS, ADDRESSES, 77)


def test_plans_that_cannot_be_loaded_or_have_other_profiles_are_refused(trt, tmp_path):
    with pytest.raises(EngineError, match="the plan has 2 profiles, expected 3"):
        opened(tmp_path, buckets=(1, 2, 4))
    trt.engine = None
    with pytest.raises(EngineError, match="TensorRT cannot load the plan"):
        opened(tmp_path)


def test_a_closed_plan_lets_go_of_its_contexts_even_if_a_run_is_kept(trt, tmp_path):
    import gc
    import weakref

    plan = opened(tmp_path)
    run = plan.bind(1, 8, TENSORS, ADDRESSES, 77)
    context = weakref.ref(trt.engine.context)
    trt.engine = None
    plan.close()
    plan.close()
    gc.collect()
    assert context() is None
    with pytest.raises(EngineError, match="used after it was closed"):
        plan.bind(1, 8, TENSORS, ADDRESSES, 77)
    del run


def test_warnings_of_tensorrt_go_to_the_log(trt, caplog):
    log = import_module("mmf_deploy.engines.trt_log").tensorrt_log()
    log.log("WARNING", "slow kernel")
    log.log("INFO", "chatter")
    assert "slow kernel" in caplog.text
    assert "chatter" not in caplog.text
    assert str(log.failure("go on")) == "TensorRT cannot go on: it gave no reason"

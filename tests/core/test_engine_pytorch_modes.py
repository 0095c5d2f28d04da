"""The PyTorch engine's modes: an honest baseline computes the same thing, only faster."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from mmf_deploy import checkpoint
from mmf_deploy.engines import torch_modes
from mmf_deploy.engines.base import EngineOptions, open_engine
from mmf_deploy.engines.buckets import BUCKETS, GPU_BUCKETS
from mmf_deploy.engines.torch_engine import PyTorchEngine
from mmf_deploy.errors import EngineError
from mmf_deploy.golden import verify_golden
from mmf_deploy.nn.build import network_from
from mmf_deploy.nn.fixed_inputs import fix_inputs
from mmf_deploy.nn.half_precision import HalfPrecision
from mmf_deploy.nn.sampler import Sampler, time_grid
from mmf_deploy.noise import gaussian_batch
from mmf_deploy.selftest import run_selftest
from mmf_deploy.spec import SampleSpec

SHAPE = (1, 8, 8)
COMPILED = ("compile", "compile-bf16", "compile-fp16")
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
# root mean square error that rounding factors to 8 and to 11 bits may cause
LIMIT = {"fp32": 1e-5, "tf32": 5e-3, "bf16": 0.03, "fp16": 4e-3}


def inputs(batch, first_seed=0):
    return gaussian_batch(range(first_seed, first_seed + batch), SHAPE), np.arange(batch) % 3


@pytest.fixture
def opened(unet_bundle, unet_run):
    def open_(mode=None, **options):
        given = EngineOptions(threads=1, checkpoint=unet_run, mode=mode, **options)
        return open_engine("pytorch", unet_bundle, options=given)

    return open_


@pytest.fixture(scope="module")
def eager(unet_bundle, unet_run):
    """float32 samples of ``inputs(64)``, eagerly."""
    given = EngineOptions(threads=1, checkpoint=unet_run)
    with open_engine("pytorch", unet_bundle, options=given) as engine:
        return engine.run(*inputs(64)).sample


def relative(found, expected) -> float:
    return float(np.sqrt(np.mean((found - expected) ** 2)) / expected.std())


def test_modes_are_every_way_in_every_precision_and_channels_last():
    assert set(PyTorchEngine.modes) == {
        "eager", "tf32", "bf16", "fp16",
        "compile", "compile-tf32", "compile-bf16", "compile-fp16",
        "cudagraph", "cudagraph-tf32", "cudagraph-bf16", "cudagraph-fp16",
        "channels_last",
    }  # fmt: skip
    assert PyTorchEngine.modes[0] == "eager"


def test_eager_is_what_runs_when_no_mode_is_given(opened, eager):
    with opened() as engine:
        assert (engine.mode, engine.precision) == ("eager", "fp32")
        np.testing.assert_array_equal(engine.run(*inputs(64)).sample, eager)


def test_channels_last_computes_the_same_in_another_layout(opened, eager):
    with opened("channels_last") as engine:
        assert engine.precision == "fp32"
        assert relative(engine.run(*inputs(64)).sample, eager) < 1e-5
        large = [p for p in engine._module.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1]
        assert large
        assert all(p.is_contiguous(memory_format=torch.channels_last) for p in large)


@pytest.mark.parametrize("mode", HALF)
def test_half_precision_rounds_products_and_nothing_at_the_boundary(mode, opened, eager):
    with opened(mode) as engine:
        output = engine.run(*inputs(64))
        kinds = {
            type(m).__name__: p.dtype
            for m in engine._module.modules()
            for p in m.parameters(recurse=False)
        }
    assert engine.precision == mode
    assert output.sample.dtype == np.float32
    assert output.image.dtype == np.uint8
    # rounded, and no more than that
    assert 1e-5 < relative(output.sample, eager) < LIMIT[mode]
    assert kinds["Conv2d"] == kinds["Linear"] == HALF[mode]
    assert kinds["GroupNorm"] == kinds["Embedding"] == torch.float32


@pytest.mark.parametrize("dtype", HALF.values())
def test_half_precision_leaves_time_and_step_in_float32(dtype, unet_run):
    sampler = Sampler(network_from(checkpoint.read(unet_run)), time_grid(2))
    seen = []
    sampler.net.map_layer0.register_forward_pre_hook(lambda _, given: seen.append(given[0].dtype))
    with torch.inference_mode():
        x1 = torch.randn(1, *SHAPE)
        sample, _ = HalfPrecision(sampler, dtype)(x1, torch.zeros(1, dtype=torch.int64))
    assert seen == [torch.float32] * 2
    assert sample.dtype == torch.float32
    # a step in 16 bits would leave the sample with so many
    assert (sample.to(dtype).float() != sample).float().mean() > 0.9


def test_statistics_of_norms_and_softmax_do_not_overflow_in_fp16():
    given = torch.full((1, 4, 8, 8), 300.0)  # whose square is beyond what fp16 holds
    given[:, :, ::2] *= -1
    with torch.inference_mode(), torch.autocast("cpu", torch.float16):
        normed = nn.GroupNorm(1, 4)(given.half())
        weights = torch.softmax(torch.tensor([60000.0, -60000.0, 60000.0]).half(), 0)
    assert torch.allclose(normed.float().abs(), torch.ones(1), atol=1e-3)
    assert weights.tolist() == [0.5, 0.0, 0.5]


# settings of the process, batch sizes, time and memory on the device


@pytest.fixture
def on_gpu(monkeypatch):
    """As if there were a GPU to choose; the settings of the process come back afterwards."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    yield lambda: (matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark)
    matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


def test_tf32_is_on_in_its_modes_and_off_in_all_others(on_gpu):
    for mode in (*torch_modes.MODES, *reversed(torch_modes.MODES)):  # they may take turns
        torch_modes.take_the_gpu(mode, torch.device("cuda"))
        tf32, fixed = mode.endswith("tf32"), mode.startswith(("compile", "cudagraph"))
        assert on_gpu() == (tf32, tf32, fixed), mode


def test_tf32_is_refused_on_a_gpu_that_would_compute_fp32_under_its_name(monkeypatch):
    gpu = torch.device("cuda")
    for capability, problem in (((7, 5), True), ((8, 0), False), ((9, 0), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        found = torch_modes.problem("cudagraph-tf32", gpu)
        assert (found is not None) == problem
        assert torch_modes.problem("cudagraph-bf16", gpu) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    expected = "mode 'tf32' needs a GPU of compute capability 8.0, this one has 7.5"
    assert torch_modes.problem("tf32", gpu) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, BUCKETS), ({"device": "cuda"}, GPU_BUCKETS), ({"device": "cuda:1"}, GPU_BUCKETS),
     ({"device": "cuda", "max_batch": 64}, BUCKETS), ({"max_batch": 5}, (1, 2, 4)),
     ({"max_batch": 1000}, BUCKETS)],
)  # fmt: skip
def test_buckets_reach_512_on_a_gpu_and_no_further_than_was_asked_for(options, expected, opened):
    assert GPU_BUCKETS[-1] == 512
    assert opened(**options).buckets == expected


def test_device_has_no_clock_and_no_memory_of_its_own_on_the_cpu(opened):
    with opened() as engine:
        engine.record_device_time = True
        engine.run(*inputs(2))
        assert (engine.device_ms, engine.device_memory_mb()) == (None, None)


def test_time_on_the_device_is_between_events_around_the_run(monkeypatch):
    journal = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing
            self.number = len(journal)
            journal.append("create")

        def record(self):
            journal.append(f"record {self.number}")

        def synchronize(self):
            journal.append(f"wait {self.number}")

        def elapsed_time(self, end):
            journal.append(f"from {self.number} to {end.number}")
            return 1.5

    monkeypatch.setattr(torch.cuda, "Event", Event)
    given = (torch.ones(1), None, None)
    outputs, elapsed_ms = torch_modes.timed(lambda _: journal.append("run") or given, given)
    assert outputs is given
    assert journal == ["create", "create", "record 0", "run", "record 1"]  # nothing waits
    assert elapsed_ms() == 1.5
    assert journal[-2:] == ["wait 1", "from 0 to 1"]


def test_time_of_a_split_batch_is_the_sum_of_its_parts_and_of_no_earlier_run(opened, monkeypatch):
    monkeypatch.setattr(torch_modes, "timed", lambda run, given: (run(given), lambda: 2.0))
    with opened(max_batch=2) as engine:
        # the engine believes in a GPU, its network lies on the CPU
        monkeypatch.setattr(engine, "_take_the_process", lambda: None)
        monkeypatch.setattr(PyTorchEngine, "_on_gpu", True)
        engine.run(*inputs(5))
        assert engine.device_ms is None
        engine.record_device_time = True
        for batch, expected in ((5, 6.0), (1, 2.0), (2, 2.0)):
            engine.run(*inputs(batch))
            assert engine.device_ms == expected
        engine.record_device_time = False
        engine.run(*inputs(5))
        assert engine.device_ms is None


# padding and preparation, with an eager sampler in the place of a compiled one


@pytest.fixture
def preparations(monkeypatch):
    """Batch sizes that were prepared, in order; nothing is compiled."""
    sizes = []

    def prepared(module, mode, given):
        sizes.append(len(given[0]))
        return lambda inputs: module(*inputs)

    monkeypatch.setattr(torch_modes, "prepared", prepared)
    return sizes


@pytest.mark.parametrize("mode", COMPILED)
def test_compiled_modes_pad_to_a_bucket_and_prepare_it_once(mode, opened, eager, preparations):
    precision = torch_modes.MODES[mode].precision
    limit = LIMIT[precision]
    x1, label = inputs(64)
    with opened(mode) as engine:
        for batch in (3, 1, 4, 3, 64, 1):
            output = engine.run(x1[:batch], label[:batch])
            assert output.sample.shape == (batch, *SHAPE)
            assert output.image.shape == (batch, 8, 8, 1)
            assert relative(output.sample, eager[:batch]) < limit
        assert preparations == [4, 1, 64]
        assert engine.precision == precision
    with opened(mode) as engine:
        engine.run(x1[:4], label[:4])
    assert preparations == [4, 1, 64, 4]  # closed engines keep nothing


@pytest.mark.parametrize("mode", ["eager", "channels_last", "bf16", "fp16"])
def test_other_modes_take_a_batch_as_it_is(mode, opened, preparations):
    with opened(mode) as engine:
        engine.run(*inputs(3))
        engine.run(*inputs(5))
    assert preparations == [3, 5]


# inputs that the export froze


@pytest.mark.parametrize("mode", ["eager", "bf16"])
def test_frozen_label_is_fed_as_a_constant(mode, unet_bundle, unet_run, opened):
    manifest = unet_bundle.manifest
    frozen = replace(
        unet_bundle,
        manifest=manifest.model_copy(
            update={
                "spec": SampleSpec(shape=SHAPE),
                "source": manifest.source.model_copy(update={"label": 2}),
            }
        ),
    )
    x1, _ = inputs(4)
    options = EngineOptions(threads=1, checkpoint=unet_run, mode=mode)
    with open_engine("pytorch", frozen, options=options) as engine:
        found = engine.run(x1).sample
    with opened(mode) as engine:
        np.testing.assert_array_equal(found, engine.run(x1, np.full(4, 2)).sample)
        assert relative(found, engine.run(x1, np.full(4, 1)).sample) > 0.01


def test_frozen_guidance_reaches_the_network():
    def seen(x, r, t, label=None, guidance=None):
        return x * 0 + guidance[:, None] + label[:, None]

    class Seen(torch.nn.Module):
        forward = staticmethod(seen)

    net = fix_inputs(Seen(), None, 2.5)
    x, time = torch.zeros(3, 2), torch.ones(1)
    assert net(x, time, time, torch.arange(3)).tolist() == [[2.5] * 2, [3.5] * 2, [4.5] * 2]


# refusals


@pytest.mark.parametrize("mode", COMPILED)
def test_compiled_modes_without_a_compiler_say_what_to_install(mode, opened, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with (
        pytest.raises(EngineError, match=r"'no-such-compiler' is not installed: apt-get install"),
        opened(mode),
    ):
        pytest.fail("opened")


@pytest.mark.parametrize(
    "mode", [m for m in torch_modes.MODES if m.startswith("cudagraph") or m.endswith("tf32")]
)
def test_cuda_graphs_and_tf32_are_refused_on_the_cpu(mode, opened):
    with pytest.raises(EngineError, match=f"mode '{mode}' is for device 'cuda'"):
        opened(mode).__enter__()


def test_unknown_mode_is_refused_with_the_nearest(opened):
    with pytest.raises(EngineError, match="did you mean 'compile'"):
        opened("compiled").__enter__()
    problem = PyTorchEngine.unavailable(opened("compiled").options)
    assert problem is not None
    assert "did you mean 'compile'" in problem


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_that_is_not_there_is_refused(opened):
    with pytest.raises(EngineError, match="'cuda:1', but PyTorch sees no GPU"):
        opened(device="cuda:1").__enter__()


class Branching(nn.Module):
    def forward(self, noise, label=None, guidance=None):
        return (noise if noise.sum() > 0 else -noise,)


def test_what_cannot_be_compiled_whole_is_an_error_and_never_runs_eagerly():
    given = (torch.ones(2, 2), None, None)
    with (
        torch.inference_mode(),
        pytest.raises(EngineError, match="PyTorch cannot compile the sampler: ") as caught,
    ):
        torch_modes.prepared(Branching(), "compile", given)
    assert "\n" not in str(caught.value)


# the compiler itself


@pytest.mark.slow
@pytest.mark.parametrize("mode", COMPILED)
def test_compiled_sampler_gives_the_same_samples(mode, opened, eager, unet_bundle):
    x1, label = inputs(64)
    limit = LIMIT[torch_modes.MODES[mode].precision]
    with opened(mode) as engine:
        for batch in (1, 3, 4):
            assert relative(engine.run(x1[:batch], label[:batch]).sample, eager[:batch]) < limit
        if mode == "compile":
            assert verify_golden(unet_bundle, engine, engine.variant) <= 1


@pytest.mark.slow
def test_more_shapes_than_dynamo_keeps_for_a_function_are_all_compiled():
    class Doubled(nn.Module):
        def forward(self, noise, label=None, guidance=None):
            return (noise * 2,)

    module = Doubled()
    with torch.inference_mode():
        for batch in range(1, torch._dynamo.config.recompile_limit + 4):
            given = (torch.ones(batch, 2), None, None)
            run = torch_modes.prepared(module, "compile", given)
            assert torch.equal(run(given)[0], given[0] * 2)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", torch_modes.MODES)
def test_every_mode_gives_the_same_samples_on_a_gpu(mode, opened, eager):
    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no GPU")
    x1, label = inputs(64)
    limit = max(1e-4, LIMIT[torch_modes.MODES[mode].precision])
    with opened(mode, device="cuda") as engine:
        engine.record_device_time = True
        for batch in (1, 3, 64, 3, 1):
            assert relative(engine.run(x1[:batch], label[:batch]).sample, eager[:batch]) < limit
            assert engine.device_ms > 0
        assert engine.device_memory_mb() > 0


@pytest.mark.gpu
def test_a_batch_of_512_runs_as_one_on_a_gpu(opened, eager):
    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no GPU")
    x1, label = inputs(512)
    sizes = []
    with opened("cudagraph-bf16", device="cuda") as engine:
        run = engine._run
        engine._run = lambda noise, *rest: sizes.append(len(noise)) or run(noise, *rest)
        assert relative(engine.run(x1, label).sample[:64], eager) < LIMIT["bf16"]
    assert sizes == [512]


@pytest.mark.gpu
@pytest.mark.parametrize("mode", [m for m in torch_modes.MODES if not m.startswith("compile")])
def test_every_mode_passes_its_selftest_on_a_gpu(mode, opened):
    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no GPU")
    with opened(mode, device="cuda", max_batch=128) as engine:
        found = run_selftest(engine, 0.01)
    timed = [row for row in found.rows if row.median_ms is not None]
    assert timed[-1].batch == 128
    assert all(row.device_ms > 0 for row in timed)

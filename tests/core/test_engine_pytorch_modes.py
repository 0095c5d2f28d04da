"""The PyTorch engine's modes: an honest baseline computes the same thing, only faster."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from mmf_deploy import checkpoint
from mmf_deploy.engines import torch_modes
from mmf_deploy.engines.base import EngineOptions, open_engine
from mmf_deploy.engines.torch_engine import PyTorchEngine
from mmf_deploy.errors import EngineError
from mmf_deploy.golden import verify_golden
from mmf_deploy.nn.bf16 import Bfloat16
from mmf_deploy.nn.build import network_from
from mmf_deploy.nn.fixed_inputs import fix_inputs
from mmf_deploy.nn.sampler import Sampler, time_grid
from mmf_deploy.noise import gaussian_batch
from mmf_deploy.spec import SampleSpec

SHAPE = (1, 8, 8)
COMPILED = ("compile", "compile-bf16")


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


def test_eager_is_what_runs_when_no_mode_is_given(opened, eager):
    assert PyTorchEngine.modes == torch_modes.MODES
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


def test_bf16_rounds_products_and_nothing_at_the_boundary(opened, eager):
    with opened("bf16") as engine:
        output = engine.run(*inputs(64))
        kinds = {
            type(m).__name__: p.dtype
            for m in engine._module.modules()
            for p in m.parameters(recurse=False)
        }
    assert engine.precision == "bf16"
    assert output.sample.dtype == np.float32
    assert output.image.dtype == np.uint8
    # rounded to 8 bits of mantissa, and rounded at all
    assert 1e-4 < relative(output.sample, eager) < 0.03
    assert kinds["Conv2d"] == kinds["Linear"] == torch.bfloat16
    assert kinds["GroupNorm"] == kinds["Embedding"] == torch.float32


def test_bf16_leaves_time_and_step_in_float32(unet_run):
    sampler = Sampler(network_from(checkpoint.read(unet_run)), time_grid(2))
    seen = []
    sampler.net.map_layer0.register_forward_pre_hook(lambda _, given: seen.append(given[0].dtype))
    with torch.inference_mode():
        x1 = torch.randn(1, *SHAPE)
        sample, _ = Bfloat16(sampler)(x1, torch.zeros(1, dtype=torch.int64))
    assert seen == [torch.float32] * 2
    assert sample.dtype == torch.float32
    # a step in bf16 would leave the sample with 8 bits of mantissa
    assert (sample.bfloat16().float() != sample).float().mean() > 0.9


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
    limit = 1e-5 if mode == "compile" else 0.03
    x1, label = inputs(64)
    with opened(mode) as engine:
        for batch in (3, 1, 4, 3, 64, 1):
            output = engine.run(x1[:batch], label[:batch])
            assert output.sample.shape == (batch, *SHAPE)
            assert output.image.shape == (batch, 8, 8, 1)
            assert relative(output.sample, eager[:batch]) < limit
        assert preparations == [4, 1, 64]
        assert engine.precision == ("fp32" if mode == "compile" else "bf16")
    with opened(mode) as engine:
        engine.run(x1[:4], label[:4])
    assert preparations == [4, 1, 64, 4]  # closed engines keep nothing


@pytest.mark.parametrize("mode", ["eager", "channels_last", "bf16"])
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


def test_cuda_graphs_are_refused_on_the_cpu(opened):
    with pytest.raises(EngineError, match="mode 'cudagraph' is for device 'cuda'"):
        opened("cudagraph").__enter__()


def test_unknown_mode_is_refused_with_the_nearest(opened):
    with pytest.raises(EngineError, match="did you mean 'compile'"):
        opened("compiled").__enter__()


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
    limit = 1e-5 if mode == "compile" else 0.03
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
    limit = 0.03 if mode.endswith("bf16") else 1e-4
    with opened(mode, device="cuda") as engine:
        for batch in (1, 3, 64, 3, 1):
            assert relative(engine.run(x1[:batch], label[:batch]).sample, eager[:batch]) < limit

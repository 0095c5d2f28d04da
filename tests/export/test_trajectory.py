"""Graphs of several steps give the points on the way, too."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmf_deploy.export.fold import plain_sampler
from mmf_deploy.export.graph import fixed_inputs
from mmf_deploy.export.origin import from_checkpoint

from mmf_deploy.engines.base import open_engine
from mmf_deploy.errors import EngineError, ShapeError
from mmf_deploy.images import to_uint8


@pytest.fixture(scope="module")
def multi(checkpoints, bundles):
    """A checkpoint and a bundle of it that has variants of one step and of two."""
    return checkpoints("conditional"), bundles("conditional")


def test_the_variants_of_several_steps_have_it_where_the_graph_is_fp32(multi):
    _, bundle = multi
    for variant in bundle.manifest.variants:
        whole = variant.form["precision"] in ("storage", "hint") or variant.precision == "fp32"
        assert variant.trajectory == (whole and variant.steps > 1), variant.name


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 3, 70])
def test_it_equals_pytorch_point_by_point_and_ends_in_the_sample(multi, batch):
    checkpoint, bundle = multi
    inputs = fixed_inputs(bundle.spec, batch, first_seed=500)
    sampler = plain_sampler(from_checkpoint(checkpoint), 2)
    expected = torch.stack(sampler.trajectory(**inputs.tensors()), dim=1).numpy()
    with open_engine(None, bundle, "fp32-2step") as engine:
        found = engine.trajectory(inputs.noise, inputs.label)
        output = engine.run(inputs.noise, inputs.label)
    assert found.shape == (batch, 3, *bundle.spec.shape)
    assert (found[:, 0] == inputs.noise).all(), "noise first"
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(found[:, -1], output.sample, atol=1e-5)
    levels = to_uint8(found[:, -1]).astype(int) - output.image
    assert np.abs(levels).max() <= 1


def test_a_variant_without_one_says_how_to_get_one(multi):
    _, bundle = multi
    inputs = fixed_inputs(bundle.spec, 1)
    for name in ("fp32", "int8-2step"):
        with (
            open_engine(None, bundle, name) as engine,
            pytest.raises(EngineError, match="--steps 1,4"),
        ):
            engine.trajectory(inputs.noise, inputs.label)
    with (
        open_engine("onnxruntime", bundle, "fp32-2step") as engine,
        pytest.raises(ShapeError, match="label"),
    ):
        engine.trajectory(inputs.noise)

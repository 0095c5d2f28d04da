"""The folded sampler gives the same samples as the whole network, from fewer operations."""

from __future__ import annotations

from collections import Counter

import onnx
import pytest
import torch
from mmf_deploy.export.assemble import freeze
from mmf_deploy.export.fold import FoldedSampler, foldable, frozen_sampler, plain_sampler
from mmf_deploy.export.graph import fixed_inputs
from mmf_deploy.export.plan import Request
from torch import nn

from mmf_deploy.nn.sampler import Sampler

KINDS = ("conditional", "unconditional", "guided", "vector")


def operators(graph) -> Counter:
    return Counter(node.op_type for node in onnx.load(graph).graph.node)


def frozen(origin, tmp_path, **inputs):
    return freeze(origin, Request(tmp_path, tmp_path, **inputs))


def assert_same_samples(found, expected):
    for one, other in zip(found, expected, strict=True):
        if one.dtype == torch.uint8:
            assert (one.int() - other.int()).abs().max() <= 1
        else:
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_folded_sampler_gives_the_samples_of_the_network(kind, steps, origins):
    origin = origins(kind)
    folded = frozen_sampler(origin, steps)
    assert isinstance(folded, FoldedSampler)
    inputs = fixed_inputs(origin.spec, 7).tensors()
    assert_same_samples(folded(**inputs), plain_sampler(origin, steps)(**inputs))


@torch.no_grad()
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("kind", ["conditional", "guided"])
def test_null_label_is_a_row_of_the_table(kind, steps, origins):
    origin = origins(kind)
    inputs = fixed_inputs(origin.spec, 4).tensors()
    inputs["label"] = torch.full((4,), origin.spec.classes)
    found = frozen_sampler(origin, steps)(**inputs)
    assert_same_samples(found, plain_sampler(origin, steps)(**inputs))
    inputs["label"] = torch.zeros(4, dtype=torch.int64)
    other = frozen_sampler(origin, steps)(**inputs)
    assert (other[0] - found[0]).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(
    "fixed", [{"label": 2}, {"guidance": 2.5}, {"label": 1, "guidance": 4.0}], ids=str
)
@pytest.mark.parametrize("folds", [True, False])
def test_frozen_inputs_give_what_the_network_gives_for_them(
    folds, fixed, steps, origins, convolutions, tmp_path
):
    origin = origins("guided") if folds else convolutions(3, (1.0, 4.0))
    constant = frozen(origin, tmp_path, **fixed)
    assert constant.spec.conditional == ("label" not in fixed)
    assert constant.spec.guided == ("guidance" not in fixed)
    inputs = fixed_inputs(origin.spec, 5).tensors()
    for name, value in fixed.items():
        inputs[name] = torch.full_like(inputs[name], value)
    expected = plain_sampler(origin, steps)(**inputs)
    left = {name: value for name, value in inputs.items() if name not in fixed}
    assert_same_samples(plain_sampler(constant, steps)(**left), expected)
    assert_same_samples(frozen_sampler(constant, steps)(**left), expected)


@torch.no_grad()
def test_frozen_label_of_a_generator_without_guidance(origins, tmp_path):
    origin = origins("conditional")
    noise = fixed_inputs(origin.spec, 5).tensors()["noise"]
    expected = plain_sampler(origin, 1)(noise, torch.full((5,), 2))
    constant = frozen(origin, tmp_path, label=2)
    assert_same_samples(frozen_sampler(constant, 1)(noise), expected)
    assert_same_samples(plain_sampler(constant, 1)(noise), expected)


def test_nothing_of_the_embedding_is_left_where_time_and_label_are_all_it_takes(graphs):
    for kind in ("conditional", "unconditional"):
        found = operators(graphs(kind))
        assert not found.keys() & {"Sin", "Cos", "Gemm"}, kind
        # attention alone multiplies matrices
        assert found["MatMul"] == 2 * found["Softmax"] > 0, kind
    looked_up = ("Gather", "GatherND")
    assert sum(operators(graphs("conditional"))[name] for name in looked_up) == 1
    assert sum(operators(graphs("unconditional"))[name] for name in looked_up) == 0
    # of a vector's network its own layers: the input, two of depth and the output
    found = operators(graphs("vector"))
    assert not found.keys() & {"Sin", "Cos"}
    assert found["Gemm"] + found["MatMul"] == 4


def test_guidance_as_an_input_leaves_its_own_embedding_alone(graphs):
    found = operators(graphs("guided"))
    assert (found["Sin"], found["Cos"]) == (1, 1)
    # of the scale, two layers, and all shifts in one product
    assert found["Gemm"] + found["MatMul"] - 2 * found["Softmax"] == 4


def test_fewer_nodes_than_with_the_times_made_in_the_graph(plain_bundle):
    folded, plain = (plain_bundle.variant(name).graph for name in ("fp32", "plain-fp32"))
    assert folded["nodes"] < plain["nodes"]
    assert plain["operators"]["Sin"] > 0
    assert not folded["operators"].keys() & {"Sin", "Cos", "Gemm"}


def test_steps_cost_only_the_body_of_the_network(bundles):
    one, two = (bundles("conditional").variant(name).graph for name in ("fp32", "fp32-2step"))
    assert not two["operators"].keys() & {"Sin", "Cos", "Gemm"}
    assert two["nodes"] < 2 * one["nodes"]


def test_each_step_has_a_table_of_its_own_times(origins):
    folded = frozen_sampler(origins("conditional"), 2)
    assert len(folded.folded) == 2
    assert (folded.folded[0].table - folded.folded[1].table).abs().max() > 1e-3


def test_folding_shares_the_weights_of_the_network(origins):
    net = origins("conditional").net
    assert frozen_sampler(origins("conditional"), 1).net is net


def test_network_that_cannot_be_folded_is_exported_as_it_is(convolutions):
    origin = convolutions(3)
    assert not foldable(origin.net)
    assert type(frozen_sampler(origin, 2)) is Sampler
    interface = ("condition", "embed", "shift_layers", "body")
    for missing in interface:
        partial = nn.Module()
        for name in interface:
            if name != missing:
                setattr(partial, name, lambda: None)
        assert not foldable(partial), missing

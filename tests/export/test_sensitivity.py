"""Which layers are quantised: the largest set above the floor, the noisiest layers given up."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from mmf_deploy.export import quantize, sensitivity
from mmf_deploy.export.assemble import export_origin
from mmf_deploy.export.calibrate import calibrate
from mmf_deploy.export.graph import fixed_inputs
from mmf_deploy.export.parity import psnr
from mmf_deploy.export.plan import Request
from mmf_deploy.export.quantize import Layer
from mmf_deploy.export.reference import Reference
from mmf_deploy.export.sensitivity import (
    CURVE,
    SEEDS_ALONE,
    SEEDS_TOGETHER,
    Chooser,
    Point,
    median_ms,
)
from mmf_deploy.export.targets import Form
from onnx import numpy_helper

from mmf_deploy.errors import ParityError
from mmf_deploy.spec import SampleSpec

IMAGE = SampleSpec(shape=(1, 8, 8))


class Noisy(Chooser):
    """Layers whose noise is known and adds up; nothing is quantised or run."""

    def __init__(self, noise, macs=None) -> None:
        made = [Layer(name, f"{name}.w", f"{name}.i", f"{name}.o", (macs or {}).get(name, 10))
                for name in noise]  # fmt: skip
        known = np.zeros((64, 1, 8, 8), np.float32)
        expected = Reference(IMAGE, fixed_inputs(IMAGE, 64), known, None)
        super().__init__(onnx.ModelProto(), made, None, False, expected, Path("nowhere"))
        self.noise = noise
        self.tried: list[tuple[frozenset[str], int]] = []

    def _noise(self, nodes, seeds) -> float:
        self.tried.append((frozenset(nodes), seeds))
        return sum(self.noise[name] for name in nodes)


MANY = {f"layer{k}": 1e-6 * (1 + (k * 7) % 20) for k in range(20)}
ALL_OF_THEM = psnr(sum(MANY.values()), 2.0)


def total(nodes) -> float:
    return psnr(sum(MANY[name] for name in nodes), 2.0)


def test_nothing_is_given_up_where_everything_stays_above_the_floor():
    chooser = Noisy(MANY)
    choice = chooser.choose(ALL_OF_THEM)
    assert choice.nodes == tuple(MANY)
    assert (choice.kept, choice.curve, choice.alone) == ((), (), None)
    # one trial, and no search
    assert chooser.tried == [(frozenset(MANY), SEEDS_TOGETHER)]


@pytest.mark.parametrize("more", [0.01, 1, 3, 10])
def test_chosen_set_is_the_largest_above_the_floor_without_the_noisiest(more):
    floor = ALL_OF_THEM + more
    chooser = Noisy(MANY)
    choice = chooser.choose(floor)
    assert total(choice.nodes) >= floor
    assert total([*choice.nodes, choice.kept[-1]]) < floor
    noisiest = sorted(MANY, key=MANY.__getitem__, reverse=True)
    assert choice.kept == tuple(noisiest[: len(choice.kept)])
    # in the order of the graph, and every layer is in one of the two
    assert choice.nodes == tuple(name for name in MANY if name not in choice.kept)
    # each alone over few seeds, then a bisection over many
    alone = [nodes for nodes, seeds in chooser.tried if seeds == SEEDS_ALONE]
    together = [nodes for nodes, seeds in chooser.tried if seeds == SEEDS_TOGETHER]
    assert sorted(map(len, alone)) == [1] * len(MANY)
    assert len(together) <= 2 + np.log2(len(MANY))


def test_noise_counts_for_each_multiplication_that_is_saved():
    noise = {"dear": 4e-5, "cheap": 2e-5, "fine": 1e-7}
    macs = {"dear": 1000, "cheap": 10, "fine": 100}
    choice = Noisy(noise, macs).choose(psnr(4.2e-5, 2.0))
    assert choice.kept == ("cheap",)
    assert Noisy(noise).choose(psnr(4.2e-5, 2.0)).kept == ("dear",)


def test_floor_that_not_even_one_layer_reaches_is_refused():
    with pytest.raises(ParityError, match="200 dB is not reached with a single layer quantised"):
        Noisy(MANY).choose(200.0)


def test_all_but_the_last_layer_may_be_given_up():
    quietest = min(MANY, key=MANY.__getitem__)
    assert Noisy(MANY).choose(psnr(MANY[quietest], 2.0)).nodes == (quietest,)


def test_layers_alone_are_reported_with_their_own_quality():
    choice = Noisy(MANY).choose(ALL_OF_THEM + 1)
    assert choice.alone == {name: round(psnr(n, 2.0), 2) for name, n in MANY.items()}


@pytest.mark.parametrize("floor", [30.0, ALL_OF_THEM + 2])
def test_curve_runs_from_every_layer_to_none_and_quality_falls_with_the_share(floor, monkeypatch):
    written = []
    monkeypatch.setattr(
        sensitivity, "quantise", lambda model, ranges, nodes, *rest: written.append(tuple(nodes))
    )
    # a clock that says how many layers the graph has that it times
    choice = Noisy(MANY).choose(floor, curve=True, latency=lambda path: float(len(written[-1])))
    points = choice.curve
    assert points[0].layers == len(MANY)
    assert points[-1] == Point(0, 0.0, 999.0, points[-1].latency_ms)
    assert len(choice.nodes) in [p.layers for p in points]
    assert [p.layers for p in points] == sorted({p.layers for p in points}, reverse=True)
    assert all(a.psnr <= b.psnr and a.share > b.share for a, b in pairwise(points))
    for share in CURVE:
        assert any(share - 0.05 - 1e-9 <= p.share <= share + 1e-9 for p in points)
    # equal work in every layer: the share is that of their number
    assert all(p.share == pytest.approx(p.layers / len(MANY)) for p in points)
    assert [p.latency_ms for p in points] == [float(p.layers) for p in points]


def test_curve_without_a_clock_has_no_times():
    choice = Noisy(MANY).choose(ALL_OF_THEM + 2, curve=True)
    assert {p.latency_ms for p in choice.curve} == {None}
    assert {p.latency_ms for p in Noisy(MANY).choose(ALL_OF_THEM + 2).curve} == {None}


def test_another_floor_measures_no_layer_again():
    chooser = Noisy(MANY)
    chooser.choose(ALL_OF_THEM + 2)
    alone = [nodes for nodes, seeds in chooser.tried if seeds == SEEDS_ALONE]
    chooser.choose(ALL_OF_THEM + 2)
    chooser.choose(ALL_OF_THEM + 3)
    assert [nodes for nodes, seeds in chooser.tried if seeds == SEEDS_ALONE] == alone
    assert len(set(chooser.tried)) == len(chooser.tried)


def test_search_says_how_far_it_is():
    said = []
    Noisy(MANY).choose(ALL_OF_THEM + 1, False, None, lambda *what: said.append(what))
    for name in {what for what, _, _ in said}:
        counts = [(done, count) for what, done, count in said if what == name]
        assert [done for done, _ in counts] == list(range(len(counts)))
        assert all(done < count for done, count in counts)
    assert [count for what, _, count in said if what == "layer by layer"] == [len(MANY)] * len(MANY)


def test_point_is_rounded_for_json():
    assert Point(3, 1 / 3, 41.23456789, None).as_dict() == {
        "layers": 3, "share": 0.3333, "psnr": 41.2346, "latency_ms": None}  # fmt: skip


VICTIM = "enc.8x8_block0.conv1.weight"


@pytest.fixture(scope="module")
def outlier(graphs, origins, session, tmp_path_factory):
    """(chooser, model, samples): a UNet with one channel of 400 times the size before a layer."""
    folder = tmp_path_factory.mktemp("outlier")
    model = onnx.load(graphs("conditional", Form(opset=21, normalisation="group")))
    graph = model.graph
    made_by = {name: node for node in graph.node for name in node.output}
    stored = {i.name: i for i in graph.initializer}
    (victim,) = (n for n in graph.node if n.op_type == "Conv" and n.input[1].endswith(VICTIM))
    norm = made_by[made_by[victim.input[0]].input[0]]
    for node, position, rows, factor in ((norm, 1, 0, 400.0),
                                         (victim, 1, (slice(None), 0), 1 / 400)):  # fmt: skip
        values = numpy_helper.to_array(stored[node.input[position]]).copy()
        values[rows] *= factor
        # a copy: weights that are equal share one initialiser
        node.input[position] += "_outlier"
        graph.initializer.append(numpy_helper.from_array(values, node.input[position]))
    path = folder / "outlier.onnx"
    onnx.save(model, path)
    spec = origins("conditional").spec
    inputs = fixed_inputs(spec, 64)
    expected = Reference(spec, inputs, *session(path).run(None, inputs.named()))
    ranges = calibrate(path, spec, ["Conv"])
    chooser = Chooser(model, quantize.layers(model), ranges, False, expected, folder)
    return chooser, victim.name, expected


def noise_of(loaded, expected) -> float:
    (found,) = loaded.run(["sample"], expected.inputs.named())
    difference = found.clip(-1, 1).astype(float) - expected.sample.clip(-1, 1)
    return float((difference**2).mean())


def test_layer_with_an_outlier_channel_is_the_first_to_stay_in_fp32(outlier, session, tmp_path):
    chooser, victim, expected = outlier
    choice = chooser.choose(42.0)
    assert min(choice.alone, key=choice.alone.__getitem__) == victim
    assert choice.kept == (victim,)
    assert victim not in choice.nodes
    chooser.write(choice, tmp_path / "q.onnx")
    found = psnr(noise_of(session(tmp_path / "q.onnx"), expected), 2.0)
    assert found >= 42.0
    written = onnx.load(tmp_path / "q.onnx").graph
    (node,) = (n for n in written.node if n.name == victim)
    assert any(i.name == node.input[1] and i.data_type == 1 for i in written.initializer)


def test_real_trade_off_gets_better_with_every_layer_given_up(outlier):
    chooser, _, _ = outlier
    points = chooser.choose(42.0, curve=True).curve
    assert points[0].psnr < 42.0
    assert points[-1].layers == 0
    # rounding is all that is left without a quantised layer
    assert points[-1].psnr > 100
    for worse, better in pairwise(points):
        assert worse.psnr < better.psnr


def test_floor_beyond_reach_is_refused_by_an_export_and_nothing_is_written(convolutions, tmp_path):
    request = Request(
        tmp_path, tmp_path / "bundle", precisions=("int8",), min_psnr=120.0, samples=16
    )
    with pytest.raises(ParityError, match="int8: 120 dB is not reached"):
        export_origin(convolutions(), request)
    assert list(tmp_path.iterdir()) == []


def test_export_with_a_floor_keeps_what_it_must_and_measures_what_it_gave_up(
    convolutions, tmp_path
):
    request = Request(
        tmp_path, tmp_path / "bundle", precisions=("int8",), min_psnr=46.0, samples=64
    )
    layers = []
    bundle = export_origin(
        convolutions(), request, on_layers=lambda what, done, count: layers.append(count)
    )
    found = bundle.measured()["int8"]["int8"]
    assert found["min_psnr"] == 46.0
    assert found["quantised"] == 1
    assert len(found["kept_in_fp32"]) == 1
    assert len(found["psnr_alone"]) == 2
    assert max(layers) == 2
    variant = bundle.variant()
    assert variant.parity["psnr"] >= 46.0
    assert variant.graph["weights"]["int8"] == 12 * 12 * 9 + 12  # with zero points


def test_median_warms_up_twice_and_takes_its_time():
    calls = []
    assert median_ms(lambda: calls.append(1), seconds=0.0, least=5) < 1
    assert len(calls) == 2 + 5
    calls.clear()
    median_ms(lambda: calls.append(1), seconds=0.001, least=1)
    assert len(calls) > 3

"""Cost against size: the fits find what is there, and the report of them is whole."""

import importlib
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from mmf_deploy import bundle as bundles
from mmf_deploy import results
from mmf_deploy.errors import EngineError
from mmf_deploy.spec import SampleSpec

ROOT = Path(__file__).parents[1]


def load(*names):
    """Modules of benchmarks/, which is no package."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return [importlib.import_module(name) for name in names]
    finally:
        sys.path.pop(0)


scale, fits, networks, plots, reports = load(
    "scale", "scale_fits", "scale_networks", "scale_plot", "scale_report"
)
EAGER, FP32, INT8 = ("pytorch", "eager fp32"), ("onnxruntime", "fp32"), ("onnxruntime", "int8")


# the fits


def test_a_line_is_found_with_the_small_batches_counting_as_much_as_the_large_ones():
    batches = (1, 2, 4, 8, 16, 32, 64)
    found = fits.line(batches, [5 + 2 * b for b in batches])
    assert found.fixed_ms == pytest.approx(5)
    assert found.per_image_ms == pytest.approx(2)
    assert (found.r2, found.worst) == (pytest.approx(1), pytest.approx(0, abs=1e-9))
    # a tenth too long at the largest batch: that is 13 ms, more than all that is fixed
    bent = fits.line(batches, [5 + 2 * b for b in batches[:-1]] + [1.1 * 133])
    assert bent.fixed_ms == pytest.approx(5, rel=0.2)
    assert (bent.worst_batch, bent.r2 < 1) == (64, True)
    assert 0.03 < bent.worst < 0.1


def test_the_furthest_point_of_a_line_is_named_with_its_sign():
    batches = (1, 2, 4, 8, 16, 32, 64)
    found = fits.line(batches, [2 * b * (0.8 if b == 8 else 1) for b in batches])
    assert found.worst_batch == 8
    assert -0.2 < found.worst < -0.1


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.4])
def test_a_power_law_is_found(exponent):
    x = [2.7, 10.7, 42.4]
    found = fits.power(x, [3 * v**exponent for v in x])
    assert found.exponent == pytest.approx(exponent)
    assert found.factor == pytest.approx(3)
    assert found.r2 == pytest.approx(1)
    assert found.at(10.7) == pytest.approx(3 * 10.7**exponent)


def test_noise_costs_r2_and_little_of_the_exponent():
    rng = np.random.default_rng(0)
    x = np.geomspace(1, 1000, 30)
    found = fits.power(x, x * np.exp(rng.normal(0, 0.2, 30)))
    assert found.exponent == pytest.approx(1, abs=0.05)
    assert 0.9 < found.r2 < 0.9999


@pytest.mark.parametrize("fit", [fits.line, fits.power])
def test_one_point_is_no_curve(fit):
    with pytest.raises(ValueError, match="at least two different values"):
        fit([4, 4], [1.0, 2.0])


@pytest.mark.parametrize(
    ("exponent", "word"), [(0.8, "cheaper"), (0.95, "neither"), (1.05, "neither"),
                           (1.2, "dearer")]
)  # fmt: skip
def test_an_exponent_is_said_in_a_word(exponent, word):
    assert fits.exponent_says(exponent) == word


# networks


def test_the_recipe_is_one_of_the_networks_but_for_its_name():
    recipe = yaml.safe_load((ROOT / f"training/recipes/{networks.RECIPE}.yaml").read_text())
    network, data = recipe["network"], recipe["data"]
    same = networks.Network(network["model_channels"], data["shape"][1])
    assert f"network.attn_resolutions={network['attn_resolutions']}" in same.sets
    assert f"data.shape={data['shape']}" in same.sets
    assert recipe["loop"]["steps"] == 0
    assert same.about_gflop == pytest.approx(42.4)
    small = networks.Network(32, 64)
    assert {"network.model_channels=32", "network.attn_resolutions=[32]",
            "data.shape=[3, 64, 64]"} <= set(small.sets)  # fmt: skip
    assert len({n.name for n in scale.NETWORKS}) == len(scale.NETWORKS) == 6


@pytest.fixture
def kept(make_tiny_bundle, monkeypatch):
    """A bundle whose checkpoint says the same hash; ``ran`` are the commands that were run."""
    bundle = bundles.load(make_tiny_bundle(SampleSpec(shape=(1, 4, 4))))
    ran = []
    source = bundle.manifest.source
    weights = SimpleNamespace(weights_hash=lambda _: source.weights_sha256)
    monkeypatch.setattr(networks, "VARIANTS", ("fp32",))
    monkeypatch.setattr(networks.bundles, "load", lambda path: bundle)
    monkeypatch.setattr(networks.checkpoint, "read", lambda path: weights)
    monkeypatch.setattr(networks, "_mmf", lambda *arguments: ran.append(arguments[0]))
    counts = SimpleNamespace(
        flops={"fp32": 3e9, "int8": 1e9},
        nodes=[SimpleNamespace(op="MatMul", flops=1e9), SimpleNamespace(op="Conv", flops=3e9)],
    )
    monkeypatch.setattr(networks, "count", lambda path: counts)
    return SimpleNamespace(bundle=bundle, ran=ran, weights=weights)


def test_a_network_that_is_there_is_not_made_again(kept, tmp_path):
    where = networks.Network(32, 32), tmp_path / "runs", tmp_path / "bundles"
    assert networks.is_made(*where)
    found = networks.make(*where)
    assert kept.ran == []
    assert (found.gflop, found.attention) == (4.0, 0.25)


@pytest.mark.parametrize("missing", ["another checkpoint", "a variant"])
def test_what_does_not_belong_together_is_made_anew(missing, kept, tmp_path, monkeypatch):
    if missing == "a variant":
        monkeypatch.setattr(networks, "VARIANTS", ("fp32", "int8"))
    else:
        kept.weights.weights_hash = lambda _: "1" * 64
    where = networks.Network(32, 32), tmp_path / "runs", tmp_path / "bundles"
    assert not networks.is_made(*where)
    networks.make(*where)
    assert kept.ran == ["train", "export"]


def test_a_command_that_fails_says_why_in_one_line():
    with pytest.raises(EngineError, match="mmf inspect of no-such-bundle failed: ") as caught:
        networks._mmf("inspect", "no-such-bundle")
    assert "\n" not in str(caught.value)


# the report


def made_up(name):
    """Every network, with known FLOPs."""
    bundle = SimpleNamespace(
        manifest=SimpleNamespace(source=SimpleNamespace(parameters=10**6)), digest=name
    )
    return {n: networks.Made(n, Path("run"), bundle, n.about_gflop, 0.02) for n in scale.NETWORKS}


def measured(rows):
    return SimpleNamespace(
        rows=rows, machine={"cpu": "a CPU", "cores": "2"}, versions={"python": "3.11"}
    )


@pytest.fixture
def points():
    """Eager: 4 + 2·batch ms at the base, ∝ FLOPs^0.8; int8 three times as fast as fp32."""
    found = reports.Points()
    for network in scale.NETWORKS:
        rows = []
        for key, factor in ((EAGER, 6.0), (FP32, 3.0), (INT8, 1.0)):
            size = (network.about_gflop / reports.BASE.about_gflop) ** 0.8
            for batch in scale.batches_of(network):
                call = factor * size * (4 + 2 * batch) / 6
                rows.append(SimpleNamespace(engine=key[0], variant=key[1], batch=batch,
                                            median_ms=call / batch))  # fmt: skip
        for spread in (1.3, 1.0, 1.1):  # three rounds
            found.add(network, measured([replaced(r, spread) for r in rows]))
    return found


def replaced(row, factor):
    return SimpleNamespace(**{**vars(row), "median_ms": row.median_ms * factor})


def test_what_was_put_in_comes_out_of_the_fits(points):
    found = reports.fits(made_up("x"), points)
    assert list(found.batch) == [EAGER, FP32, INT8]
    assert found.batch[EAGER].fixed_ms == pytest.approx(4)
    assert found.batch[INT8].per_image_ms == pytest.approx(1 / 3)
    for power in (*found.width.values(), *found.side.values()):
        assert power.exponent == pytest.approx(0.8)
    assert found.flops_of_width.exponent == pytest.approx(2)
    assert found.flops_of_pixels.exponent == pytest.approx(1)


def test_rounds_are_kept_and_the_least_disturbed_is_what_counts(points):
    first = points.all()[0]
    assert (first.ms, first.rounds) == (pytest.approx(6), pytest.approx([7.8, 6.0, 6.6]))
    assert points.ms(reports.BASE, EAGER) == first.ms


def test_the_result_is_in_the_common_form_with_its_picture(points, tmp_path):
    pytest.importorskip("matplotlib")
    result, panels = reports.report(made_up("x"), points, measured([]), "python x", 2)
    drawn = {"scale.png": lambda path: plots.draw(panels, "title", path)}
    results.write(tmp_path, "scale", result, drawn)
    found = results.read(tmp_path / "scale.json")
    assert found.kind == "scale"
    assert len(found.content["points"]) == 3 * (7 + 5)
    assert [len(f) for f in found.content["fits"].values()] == [3, 3, 3]
    assert not any(math.isnan(p["ms"]) for p in found.content["points"])
    text = (tmp_path / "scale.md").read_text()
    assert "| pytorch eager fp32 | 4.00 | 2.00 | 67% |" in text
    assert "FLOPs grow as width^2.00 and as pixels^1.00" in text
    assert (tmp_path / "scale.png").stat().st_size > 20_000


def test_progress_ends_when_the_work_does_and_never_goes_back():
    shown = []
    progress = SimpleNamespace(show=lambda what, done: shown.append(done))
    work = scale.Work(scale.NETWORKS[2:], seconds=2.0, rounds=2)  # two are there already
    assert work.total < scale.Work(scale.NETWORKS, seconds=2.0, rounds=2).total
    for network in scale.NETWORKS:
        work.ticks(progress, network, making=True)("making", 0.5)
    for _ in range(2):
        for network in scale.NETWORKS:
            tick = work.ticks(progress, network, making=False)
            tick("timing", 0.0)
            tick("timing", 1.0)
    assert shown == sorted(shown)
    assert work.total - 1 <= shown[-1] <= work.total


@pytest.mark.parametrize(
    ("option", "value"), [("--rounds", "0"), ("--seconds", "0"), ("--threads", "0")]
)
def test_values_out_of_range_are_refused_before_anything_is_made(option, value, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["scale.py", option, value])
    monkeypatch.setattr(scale, "make", None)
    with pytest.raises(scale.ConfigError, match="expected at least 1"):
        scale.main()


def test_each_network_is_measured_every_round_and_every_second_one_backwards(monkeypatch):
    order = []
    found = made_up("x")

    def times(made, threads, seconds, tick):
        order.append(made.network)
        return measured([])

    monkeypatch.setattr(scale, "times", times)
    monkeypatch.setattr(scale, "is_made", lambda *_: True)
    monkeypatch.setattr(scale, "make", lambda network, *_: found[network])
    given = SimpleNamespace(seconds=1.0, rounds=3, runs=None, bundles=None, threads=1)
    made, _, _ = scale.gather(scale.NETWORKS, given)
    forth = list(scale.NETWORKS)
    assert order == [*forth, *reversed(forth), *forth]
    assert made == found

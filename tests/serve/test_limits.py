"""The machine's limit: its rates, the floor made of them, and the check of that floor."""

import pickle

import numpy as np
import pytest
from mmf_deploy.serve.bench import limit_check, plain_graphs, rates
from mmf_deploy.serve.bench.convolutions import CHANNELS, GraphConvolution
from mmf_deploy.serve.bench.counts import Counts, NodeCount, count
from mmf_deploy.serve.bench.floor import floor_s
from mmf_deploy.serve.bench.graph_runs import OnnxRuntimeRun
from mmf_deploy.serve.bench.memory_rate import Stream, cache_bytes
from mmf_deploy.serve.bench.products import NumpyProduct, Product
from mmf_deploy.serve.bench.rates import KINDS
from mmf_deploy.serve.bench.statistics import Median
from mmf_deploy.serve.bench.turns import Child, take_turns

from mmf_deploy.errors import ConfigError, EngineError


def counts_of(nodes, read=0, io=0):
    every = [NodeCount("", "Conv", d, f, p, 0, 0, 0) for d, f, p in nodes]
    return Counts(1, tuple(every), read, read, io)


def test_the_floor_adds_up_dtypes_and_takes_the_longer_of_arithmetic_and_memory():
    counts = counts_of([("fp32", 2e9, 0), ("int8", 9e9, 1e9)], read=300_000_000, io=50_000_000)
    gflops = {"fp32": 100.0, "int8": 400.0, "bf16": 200.0}
    floor = floor_s(counts, gflops, bandwidth_gb_s=10.0, cached_bytes=50_000_000)
    assert floor.by_dtype == pytest.approx({"fp32": 0.02, "int8": 0.02})
    assert (floor.compute_s, floor.memory_s) == pytest.approx((0.04, 0.03))
    assert (floor.seconds, floor.bound) == (floor.compute_s, "compute")
    slow = floor_s(counts, gflops, bandwidth_gb_s=5.0, cached_bytes=50_000_000)
    assert slow.seconds == pytest.approx(0.06)
    assert slow.bound == "memory"


def test_what_fits_into_the_cache_is_not_fetched():
    counts = counts_of([("fp32", 1e6, 0)], read=1_000_000, io=1_000)
    assert floor_s(counts, {"fp32": 1.0}, 1.0, cached_bytes=1_001_000).memory_s == 0


def test_a_rate_that_is_missing_is_named():
    with pytest.raises(EngineError, match="no rate is known for arithmetic in bf16"):
        floor_s(counts_of([("bf16", 1.0, 0)]), {"fp32": 1.0}, 1.0)


def test_caches_that_cores_share_count_once(tmp_path):
    for cpu, l3 in ((0, "0-1"), (1, "0-1"), (2, "2-3")):
        for index, (level, size, shared) in enumerate([(2, "1024K", str(cpu)), (3, "32M", l3)]):
            folder = tmp_path / f"cpu{cpu}" / "cache" / f"index{index}"
            folder.mkdir(parents=True)
            for name, text in (("level", level), ("size", size), ("shared_cpu_list", shared)):
                (folder / name).write_text(f"{text}\n")
    assert cache_bytes("cpu", tmp_path) == 64 << 20
    assert cache_bytes("cpu", tmp_path / "absent") is None


EVERY = [(d, p) for (device, d), kinds in KINDS.items() if device == "cpu" for p in kinds]
CONVOLUTIONS = [(d, p) for d, p in EVERY if issubclass(p, GraphConvolution)]
PRODUCTS = [one for one in EVERY if one not in CONVOLUTIONS]


@pytest.mark.parametrize(("dtype", "kind"), PRODUCTS)
def test_every_product_multiplies(dtype, kind):
    with kind(dtype, threads=1, edge=64) as product:
        a, b = product.operands()
        found = product.result().astype(np.float64)
    if dtype != "int8":
        tolerance = 1e-5 if dtype == "fp32" else 2e-2
        assert np.abs(found - a.astype(np.float64) @ b).max() < tolerance * np.std(found)
        return
    sums = (plain_graphs.quantised(a).astype(int) - 128) @ plain_graphs.quantised_weight(b)
    if kind.name == "openvino":  # it rounds to 8 bits: steps of 1/2 around 128
        sums = np.clip(np.round(sums * plain_graphs.SCALE**2 / 0.5) + 128, 0, 255)
        assert np.abs(found - sums).max() <= 1
    else:
        assert (found == sums).all()
    assert product.flops == 2 * 64**3


def convolved(a, b):
    """c of a [1, C, n, n] and b [C, C, 3, 3] with a border of zeros, in float64."""
    padded = np.pad(a[0].astype(np.float64), ((0, 0), (1, 1), (1, 1)))
    n = a.shape[2]
    taps = [(b[:, :, i, j], padded[:, i : i + n, j : j + n]) for i in range(3) for j in range(3)]
    return sum(np.tensordot(weight, image, 1) for weight, image in taps)[None]


@pytest.mark.parametrize(("dtype", "kind"), CONVOLUTIONS)
def test_every_convolution_convolves(dtype, kind):
    with kind(dtype, threads=1, edge=8) as product:
        a, b = product.operands()
        found = product.result().astype(np.float64)
    # of 3 taps along each axis the outermost are outside at both ends
    assert product.flops == 2 * CHANNELS**2 * (3 * 8 - 2) ** 2
    if dtype != "int8":
        tolerance = 1e-5 if dtype == "fp32" else 2e-2
        assert np.abs(found - convolved(a, b)).max() < tolerance * np.std(found)
        return
    whole = convolved(plain_graphs.quantised(a).astype(int) - 128, plain_graphs.quantised_weight(b))
    rounded = np.clip(np.round(whole * plain_graphs.SCALE**2 / 0.5) + 128, 0, 255)
    assert np.abs(found - rounded).max() <= 1


def test_the_rate_is_that_of_the_faster_of_product_and_convolution(monkeypatch):
    class Faster(NumpyProduct):
        name = "a convolution"

        def run(self):
            """Far less than what it counts."""

    for kinds, best in (((NumpyProduct,), "numpy"), ((NumpyProduct, Faster), "a convolution")):
        monkeypatch.setitem(KINDS, ("cpu", "fp32"), kinds)
        assert rates.choose("fp32", "cpu", 1, 0.01).library == best
    for dtype in ("fp32", "bf16", "int8"):
        assert any(d == dtype for d, _ in CONVOLUTIONS)


def test_a_convolution_grows_with_the_threads_and_is_small_as_a_probe():
    _, kind = CONVOLUTIONS[0]
    one, four = (kind("fp32", threads=n) for n in (1, 4))
    assert four.flops == pytest.approx(4 * one.flops, rel=0.05)
    product = NumpyProduct("fp32", 1)
    small = one.of_edge(one.probe_edge), product.of_edge(product.probe_edge)
    assert small[0].flops == pytest.approx(small[1].flops, rel=0.05)


def test_a_product_can_be_sent_to_another_process_before_it_is_opened():
    for dtype, kind in EVERY:
        product = pickle.loads(pickle.dumps(kind(dtype, threads=2, edge=64)))
        assert (product.dtype, product.threads, product.edge) == (dtype, 2, 64)


class Broken(Product):
    name = "broken"

    def _open(self):
        raise RuntimeError("no such instruction")

    def run(self): ...

    def result(self): ...

    def close(self): ...


def test_a_library_that_cannot_do_it_loses_and_says_why(monkeypatch):
    monkeypatch.setitem(KINDS, ("cpu", "fp32"), (Broken, NumpyProduct))
    made = rates.candidates("fp32", "cpu", 1)
    raced = rates.race([p.of_edge(64) for p in made], 0.01)
    assert [t.library for _, t in raced] == ["numpy", "broken"]
    assert raced[0][1].gflops > 0
    assert raced[1][1].why == "broken cannot multiply in fp32: no such instruction"
    monkeypatch.setitem(KINDS, ("cpu", "fp32"), (Broken,))
    with pytest.raises(EngineError, match="broken cannot multiply"):
        rates.choose("fp32", "cpu", 1, 0.01)


def test_wider_arithmetic_stands_in_for_a_dtype_that_nothing_has():
    assert {p.dtype for p in rates.candidates("fp16", "cpu", 1)} == {"fp32"}
    found = rates.candidates("int8", "cpu", 1)
    assert {p.dtype for p in found} == {"int8", "fp32"}
    assert len({p.library for p in found}) == len(found)
    assert {p.of_edge(64).library for p in found} >= {"onnxruntime", "onnxruntime in fp32"}
    with pytest.raises(ConfigError, match="no products in 'fp31' on 'cpu'"):
        rates.candidates("fp31", "cpu", 1)
    with pytest.raises(ConfigError, match="expected the device cpu or cuda"):
        rates.candidates("fp32", "tpu", 1)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_stream_reads_every_part(threads):
    stream = Stream(threads, size=4096)
    stream.open()
    stream.run()
    stream.close()
    assert 4096 <= stream.bytes < 4096 + 4 * threads
    assert stream.largest == stream.bytes // 4 - 1  # the last value of all


def test_children_take_as_many_turns_and_one_that_fails_says_why():
    with Child("stream", Stream(1, size=4096)) as child:
        taken = take_turns({"one": child, "again": child}, seconds=0.001, turn_s=0.0, least=3)
    assert [len(v) for v in taken.values()] == [3, 3]
    assert all((v > 0).all() for v in taken.values())
    with (
        pytest.raises(EngineError, match="ONNX Runtime cannot load the graph"),
        Child("nonsense", OnnxRuntimeRun(b"nonsense", {}, 1)),
    ):
        pass


def test_plain_graphs_have_the_counts_known_by_hand(tmp_path):
    for case in limit_check.CASES[:2]:
        for dtype in case.dtypes:
            path = tmp_path / "plain.onnx"
            path.write_bytes(case.make("fp32" if dtype == "bf16" else dtype))
            counts = count(path, 1, dtype if dtype == "bf16" else None)
            assert counts.needed_flops == {dtype: case.flops}


def checked(engine, over, decides=True, threads=1):
    return limit_check.Checked(
        case="product", dtype="fp32", engine=engine, threads=threads, flops=1e9, floor_ms=10.0,
        measured_ms=10.0 * over, over=Median(over, over, over), bound="compute", rate=100.0,
        decides=decides,
    )  # fmt: skip


def test_the_check_fails_where_even_the_fastest_engine_is_far_from_the_floor():
    assert limit_check.failures([checked("a", 1.3), checked("b", 1.1)]) == []
    assert limit_check.failures([checked("a", 1.3, decides=False)]) == []
    too_fast = [checked("a", 0.8), checked("b", 1.0)]
    assert limit_check.failures(too_fast) == ["product, fp32, 1 thread: a takes 0.80× its floor"]
    assert len(limit_check.failures([checked("a", 1.2), checked("a", 1.3, threads=2)])) == 2


@pytest.mark.slow
def test_plain_graphs_are_measured_over_their_floor():
    case = limit_check.CASES[0]
    seen = []
    found = limit_check.check([1], 0.5, [case], lambda what, done: seen.append(done))
    assert {(r.dtype, r.engine) for r in found} == {
        ("fp32", "onnxruntime"), ("fp32", "openvino"), ("bf16", "openvino"),
        ("int8", "onnxruntime"), ("int8", "openvino"),
    }  # fmt: skip
    assert all(r.over.value > 0 and r.bound == "compute" for r in found)
    assert seen[0] == 0
    assert seen[-1] == 1
    assert len(limit_check.table(found).rows) == 5

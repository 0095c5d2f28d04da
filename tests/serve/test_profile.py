"""The profile: operators as each engine ran them, and arithmetic on them that adds up."""

import json
import tempfile
from dataclasses import replace

import pytest
from mmf_deploy.serve.bench import profile_ort, profiles
from mmf_deploy.serve.bench.counts import count
from mmf_deploy.serve.bench.profile import OpTime, Profile, fitted, profile, typical
from mmf_deploy.serve.bench.profile_kinds import convolution, kind_of, kind_of_fused, product
from mmf_deploy.serve.bench.profile_ov import _Profiled
from mmf_deploy.serve.bench.profile_tables import conclusion, tables

from mmf_deploy import bundle as bundles
from mmf_deploy.embedded import digits_bundle, digits_checkpoint
from mmf_deploy.engines.base import EngineOptions
from mmf_deploy.engines.ov import OpenVinoEngine
from mmf_deploy.errors import ConfigError, EngineError

CALLS = 4
KINDS = {"convolution", "matrix product", "normalisation", "activation", "elementwise", "layout",
         "quantisation", "attention/softmax", "upsampling", "other"}  # fmt: skip


@pytest.fixture(scope="module")
def digits():
    return bundles.load(digits_bundle())


@pytest.fixture(scope="module", params=["onnxruntime fp32", "onnxruntime int8", "openvino fp32"])
def found(request, digits):
    engine, variant = request.param.split()
    if engine == "openvino":
        pytest.importorskip("openvino")
    return profile(engine, digits, variant, 1, 1, calls=CALLS)


def test_an_engine_multiplies_what_the_file_says(found, digits):
    known = count(digits.file(digits.variant(found.variant)), 1)
    for dtype, flops in known.flops.items():
        ops = [op for op in found.ops if op.dtype == dtype]
        assert sum(op.flops for op in ops) == pytest.approx(flops, rel=1e-9)
        needed = sum(op.flops - op.padding_flops for op in ops)
        assert needed == pytest.approx(known.needed_flops[dtype], rel=1e-9)
    weights = sum(op.weight_bytes for op in found.ops)
    assert 0.8 * known.weight_bytes < weights <= known.weight_bytes


def test_the_operators_of_an_engine_have_kinds_and_fit_into_a_call(found):
    kinds = {group.what: group.ops for group in found.by_kind()}
    assert set(kinds) <= KINDS
    assert len(kinds["convolution"]) == 39
    assert len(kinds["matrix product"]) == 6
    assert {op.op for op in kinds.get("other", [])} <= {"GatherND"}
    assert ("quantisation" in kinds) == (found.variant == "int8")
    assert all(op.ms >= 0 and op.bytes > 0 and "→" in op.shape for op in found.ops)
    assert min(found.plain_ms, found.total_ms) > 0
    assert found.ops_ms + found.outside_ms == pytest.approx(found.plain_ms)


def test_shares_of_the_table_are_of_the_whole_call(found):
    by_kind, beyond, operators = tables(found, {"fp32": 1e3, "int8": 1e3}, 10.0)
    assert sum(float(row[3].rstrip("%")) for row in by_kind.rows) == pytest.approx(100, abs=1)
    assert by_kind.rows[-1][0] == "outside operators"
    assert len(operators.rows) == 10
    assert operators.rows[0][0].split(" (")[0] in {op.op for op in found.ops}
    assert sum(int(row[3] or 0) for row in beyond.rows[:-1]) == len(found.ops)


def test_openvino_is_profiled_as_the_engine_compiles_it(digits):
    pytest.importorskip("openvino")
    given = digits, digits.variant("int8"), EngineOptions(threads=1)
    with OpenVinoEngine(*given) as engine, _Profiled(*given, single=False) as profiled:
        ours, theirs = (e._dynamic.get_compiled_model() for e in (engine, profiled))
        names = [str(name) for name in ours.get_property("SUPPORTED_PROPERTIES")]
        differ = [n for n in names if ours.get_property(n) != theirs.get_property(n)]
    assert differ == ["PERF_COUNT"]


def test_pytorch_is_profiled_with_its_checkpoint(digits):
    pytest.importorskip("torch")
    found = profile("pytorch", digits, "fp32", 1, 2, checkpoint=digits_checkpoint(), calls=1)
    assert found.variant == "eager fp32"
    convolutions = [op for op in found.ops if op.kind == "convolution"]
    assert len(convolutions) == 39
    # its upsampling is written with 4 × 4 filters on the small image, the file's with 3 × 3
    known = count(digits.file(digits.variant("fp32")), 2)
    assert sum(op.flops for op in found.ops) == pytest.approx(known.flops["fp32"], rel=2e-3)
    assert sum(op.kind == "normalisation" for op in found.ops) == 24


def test_modes_of_pytorch_that_hide_their_operators_are_refused(digits):
    pytest.importorskip("torch")
    with pytest.raises(EngineError, match="mode 'compile' of engine 'pytorch' hides"):
        profile("pytorch", digits, "fp32", 1, 1, checkpoint=digits_checkpoint(), mode="compile")


@pytest.mark.parametrize("engine", ["aoti", "tensorrt"])
def test_an_engine_without_a_profiler_says_which_ones_have_one(engine, digits):
    with pytest.raises(EngineError, match=f"{engine}.*knows the operators of onnxruntime, openv"):
        profile(engine, digits, "fp32", 1, 1)


def test_an_engine_that_does_not_exist_and_a_batch_of_several_calls_are_refused(digits):
    with pytest.raises(EngineError, match="did you mean 'openvino'"):
        profile("openvin", digits, "fp32", 1, 1)
    with pytest.raises(ConfigError, match="batch 65: one call takes 1 … 64 images"):
        profile("onnxruntime", digits, "fp32", 1, 65)


def test_a_gpu_is_no_place_for_the_profiler_of_onnxruntime(digits):
    with pytest.raises(EngineError, match="sees launches and not what the GPU does"):
        profile("onnxruntime", digits, "fp32", 1, 1, device="cuda")


def test_traces_are_deleted_also_when_they_cannot_be_read(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen = []

    def fail(events, *rest):
        seen.extend(tmp_path.glob("mmf-profile-*/trace*.json"))
        raise ValueError("not read")

    profile("onnxruntime", digits, "fp32", 1, 1, calls=1)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(profile_ort._Profiled, "events", fail)
    with pytest.raises(ValueError, match="not read"):
        profile("onnxruntime", digits, "fp32", 1, 1, calls=1)
    assert len(seen) == 1
    assert list(tmp_path.iterdir()) == []


def node(name, op, ts, dur, inputs, output, index="0"):
    shapes = [{dtype: shape} for dtype, shape in inputs]
    args = {"op_name": op, "node_index": index, "input_type_shape": shapes,
            "output_type_shape": [{output[0]: output[1]}]}  # fmt: skip
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": ts, "dur": dur, "args": args}


def run(ts):
    return {"cat": "Session", "name": "model_run", "ts": ts, "dur": 100, "args": {}}


X = ("float", [1, 16, 8, 8])


def test_times_are_of_the_runs_that_count_in_the_order_of_execution():
    events = [{"cat": "Session", "name": "session_initialization", "ts": 0, "dur": 9, "args": {}}]
    for k, (first, second) in enumerate([(900, 900), (10, 30), (11, 31), (12, 32)]):
        # a run is noted after its nodes
        events.append(node("b", "Add", 1000 * k + 50, second, [X, X], X, "7"))
        events.append(node("a", "QuickGelu", 1000 * k + 1, first, [X], X, "9"))
        events.append(run(1000 * k))
    ops = profile_ort.op_times(events, [1, 2, 3], {})
    assert [(op.name, op.op, op.ms) for op in ops] == [
        ("a", "QuickGelu", 0.011),
        ("b", "Add", 0.031),
    ]
    assert ops[0].bytes == 2 * 4 * 1024


def test_weights_that_a_trace_leaves_out_or_pads_are_taken_from_the_file():
    scales = [("float", []), ("uint8", []), ("float", [32]), ("int8", [32])]
    events = [
        run(0),
        # one output channel in a block of sixteen
        node("out_nchwc", "Conv", 1, 5, [X, ("float", [16, 16, 3, 3])], X),
        node("q_token_7", "QLinearConv", 10, 5, [("uint8", [1, 8, 8, 16]), *scales],
             ("uint8", [1, 8, 8, 32])),
        node("lost", "QLinearConv", 20, 5, [("uint8", [1, 8, 8, 16]), *scales],
             ("uint8", [1, 8, 8, 32])),
    ]  # fmt: skip
    known = {"out_nchwc": [1, 16, 3, 3], "q": [32, 16, 3, 3]}
    padded, packed, lost = profile_ort.op_times(events, [0], known)
    assert padded.flops == 2 * 64 * 16 * 9
    assert (padded.dtype, padded.shape) == ("fp32", "1×16×8×8 · 1×16×3×3 → 1×16×8×8")
    assert packed.flops == 2 * 64 * 32 * 16 * 9
    assert (packed.dtype, packed.weight_bytes) == ("int8", 32 * 16 * 9)
    assert packed.bytes - lost.bytes == packed.weight_bytes
    assert lost.flops == 0
    made = Profile("onnxruntime", "int8", 1, 1, [padded, packed, lost], 0.02, 0.02)
    assert any(
        "1 convolutions are not in GFLOP" in note for note in tables(made, None, None)[0].notes
    )


def test_scale_and_shift_behind_a_normalisation_belong_to_it_and_others_do_not():
    ops = ["Reshape", "InstanceNormalization", "Reshape", "Mul", "Add", "QuickGelu", "Mul", "Add",
           "InstanceNormalization", "Add", "Reshape"]  # fmt: skip
    events = [run(0), *(node(str(k), op, k + 1, 2, [X], X) for k, op in enumerate(ops))]
    kinds = [op.kind for op in profile_ort.op_times(events, [0], {})]
    assert kinds == ["normalisation"] * 5 + ["activation", "elementwise", "elementwise",
                                             "normalisation", "elementwise", "layout"]  # fmt: skip


def test_unknown_operators_are_other():
    assert kind_of("NoSuchOperator") == "other"
    assert kind_of_fused(["NoSuchOperator"]) == "other"
    assert kind_of_fused(["Multiply", "Add", "Swish"]) == "activation"
    assert kind_of_fused(["Convert", "Subtract", "Multiply", "DequantizeLinear"]) == "quantisation"


def test_flops_of_convolutions_and_products():
    # 3 × 3 on 4 × 4: of 12 taps along each axis 2 are outside
    work = convolution([8, 3, 3, 3], [2, 8, 4, 4], 8)
    assert work.flops == 2 * 2 * 16 * 8 * 27
    assert work.padding == pytest.approx(work.flops * (1 - (10 / 12) ** 2))
    assert convolution([8, 3, 1, 1], [1, 8, 4, 4], 8).padding == 0
    assert product([3, 5, 7], [3, 7, 11], [3, 5, 11]).flops == pytest.approx(2 * 3 * 5 * 7 * 11)
    assert product([3, 7, 5], [7, 11], [3, 5, 11]).flops == pytest.approx(2 * 3 * 5 * 7 * 11)
    assert product([7], [7], []).flops == 0


def test_interruptions_of_one_call_are_not_blamed_on_an_operator():
    assert typical([[1, 2], [1, 2], [50, 2], [1, 2]]) == pytest.approx([1, 2])
    # every call is interrupted somewhere: all share it
    assert typical([[4, 2, 2], [1, 5, 2], [1, 2, 5]]) == pytest.approx([1.6, 3.2, 3.2])


def test_what_a_profiler_adds_is_taken_off_until_the_operators_fit():
    assert fitted([0.1, 0.2], plain_ms=0.5) == ([0.1, 0.2], 0.0)
    times, taken = fitted([0.003, 0.002, 0.006], plain_ms=0.005)
    assert (times, taken) == (pytest.approx([0.001, 0, 0.004]), pytest.approx(0.002))
    # the second is nothing before the others have given enough
    times, taken = fitted([0.003, 0.001, 0.006], plain_ms=0.004)
    assert (times, taken) == (pytest.approx([0.0005, 0, 0.0035]), pytest.approx(0.0025))
    # the second has parts that are timed too
    times, taken = fitted([0.008, 0.008], plain_ms=0.010, clocks=[1, 5])
    assert (times, taken) == (pytest.approx([0.007, 0.003]), pytest.approx(0.001))
    assert fitted([0.002, 0.004], 0.003, most_ms=0.0) == (pytest.approx([0.001, 0.002]), 0.0)
    # no clock takes half a millisecond: the machine was slower
    times, taken = fitted([1.004, 3.004, 0.001], plain_ms=2.0)
    assert (times, taken) == (pytest.approx([0.5, 1.5, 0]), pytest.approx(0.004))


def made_by_hand():
    def op(name, kind, ms, gflop=0.0, dtype="fp32", weight_mb=0.0):
        return OpTime(name, name, kind, ms, gflop * 1e9, dtype, 1e6, weight_bytes=weight_mb * 1e6)

    ops = [op("Conv", "convolution", 60, 30), op("ConvInt", "convolution", 20, 20, "int8"),
           op("Small", "convolution", 4, 0, "fp32", weight_mb=30), op("Norm", "normalisation", 6),
           op("Softmax", "attention/softmax", 0.25), op("Reorder", "layout", 4)]  # fmt: skip
    return Profile("onnxruntime", "int8", 2, 1, ops, total_ms=104.0, plain_ms=100.0)


def test_the_table_holds_kinds_against_their_floor():
    rates = {"fp32": 1000.0, "int8": 2000.0, "bf16": 9.0}
    table, _, operators = tables(made_by_hand(), rates, bandwidth_gb_s=10.0)
    assert table.title == "Where the time goes: onnxruntime int8, batch 1, 2 threads"
    rows = {row[0]: row[1:] for row in table.rows}
    # 30 ms + 10 ms of arithmetic, 3 ms to read weights
    assert rows["convolution"] == ["3", "84.00", "84.0%", "50", "595", "43.00", "41.00"]
    assert rows["normalisation"] == ["1", "6.00", "6.0%", "", "", "", "6.00"]
    assert rows["outside operators"] == ["", "5.75", "5.8%", "", "", "", "5.75"]
    assert next(iter(rows)) == "convolution"
    assert table.notes[1] == "a call takes 100.0 ms, under the profiler 104.0 ms"
    assert table.notes[2] == ("floor of all, 43.00 ms: arithmetic at 1,000 GFLOP/s in fp32, "
                              "2,000 GFLOP/s in int8, or reading weights at 10.0 GB/s")  # fmt: skip
    assert operators.rows[0] == ["Conv", "Conv", "fp32", "1", "60.00", "60.0%", "500", "50%"]
    assert operators.rows[3][-1] == ""


def test_the_conclusion_says_what_a_call_consists_of():
    found = made_by_hand()
    assert conclusion(found, {"fp32": 1000.0, "int8": 2000.0}) == (
        "of 100.0 ms: 40.00 ms arithmetic at the machine's rate; 44.00 ms convolutions below that "
        "rate; 6.00 ms normalisation; 5.75 ms outside operators; 4.00 ms layout changes; "
        "0.250 ms all else"
    )
    assert conclusion(found, None).startswith("of 100.0 ms: 84.00 ms convolutions; 6.00 ms norm")


def test_what_is_faster_than_the_measured_rate_is_said_and_shown():
    found, slow = made_by_hand(), {"fp32": 450.0, "int8": 2000.0}
    assert conclusion(found, slow).startswith(
        "of 100.0 ms: 76.67 ms arithmetic at the machine's rate; 7.33 ms convolutions below"
    )
    slow = {"fp32": 400.0, "int8": 1000.0}
    assert conclusion(found, slow).startswith(
        "of 100.0 ms: 84.00 ms arithmetic (95.00 ms at the machine's rate: convolutions are faster "
        "than that); 6.00 ms normalisation"
    )
    kinds, beyond, _ = tables(found, slow, 10.0)
    assert kinds.rows[0][-2:] == ["98.00", "-14.00"]
    assert any(note.startswith("beyond below zero: faster than") for note in kinds.notes)
    rows = {row[0]: row[1:] for row in beyond.rows}
    assert rows["below their floor"] == ["1 shape", "", "1", "60.00", "75.00", "-15.00", "125%"]
    # the fastest large one had 30 GFLOP in 60 ms
    assert beyond.notes[-1] == (
        "at the rate of the fastest large convolution here, 500 GFLOP/s in fp32, the floor of all "
        "would be 83.00 ms, and this call at 83%"
    )
    quick = tables(found, {"fp32": 1000.0, "int8": 2000.0}, 10.0)
    assert not any("below zero" in note for note in quick[0].notes)
    assert "below their floor" not in {row[0] for row in quick[1].rows}
    assert len(quick[1].notes) == 1


def test_the_time_beyond_the_floor_is_told_by_shape_of_what_multiplies_and_by_kind_of_the_rest():
    beyond = tables(made_by_hand(), {"fp32": 1000.0, "int8": 2000.0}, 10.0)[1]
    assert (
        beyond.title == "Where the time beyond the floor goes: onnxruntime int8, batch 1, 2 threads"
    )
    assert [row[0] for row in beyond.rows] == [
        "Conv", "ConvInt (convolution)", "normalisation", "layout",
        "Small (convolution)", "attention/softmax", "outside operators", "a call",
    ]  # fmt: skip
    assert beyond.rows[1][3:] == ["1", "20.00", "10.00", "10.00", "50%"]
    assert beyond.rows[2] == ["normalisation", "1 shape", "", "1", "6.00", "", "6.00", ""]
    assert beyond.rows[-1][3:] == ["6", "100.0", "43.00", "57.00", "43%"]
    every = sum(float(row[6]) for row in beyond.rows[:-1])
    assert every == pytest.approx(57.0, abs=0.01)


def test_a_profiler_that_slows_a_call_much_leaves_the_split_uncertain():
    found = made_by_hand()
    for total_ms, said in ((104.0, False), (125.0, True)):
        notes = tables(replace(found, total_ms=total_ms), None, None)[0].notes
        assert any("makes a call 25% longer, so how the time is split" in n for n in notes) == said


def test_a_profile_comes_back_from_its_json_with_the_same_tables():
    found, rates = made_by_hand(), {"fp32": 1000.0, "int8": 2000.0}
    same = replace(found.ops[0], ms=20.0), replace(found.ops[0], ms=40.0)
    found = replace(found, ops=[*same, *found.ops[1:]])
    content = json.loads(json.dumps(profiles.content(found, rates, 10.0)))
    assert (content["gflops"], content["bandwidth_gb_s"]) == (rates, 10.0)
    assert content["operators"][0]["nodes"] == 2
    again = profiles.from_content(content)
    assert tables(again, rates, 10.0) == tables(found, rates, 10.0)


def test_tables_without_rates_have_no_floor():
    table, operators = tables(made_by_hand(), None, None)
    assert table.columns == ["kind of operator", "nodes", "ms", "share", "GFLOP", "GFLOP/s"]
    assert "of the rate" not in operators.columns

"""The logic of the TensorRT engine over a fake of CUDA and TensorRT; neither of them runs here.

The fake stream does nothing before it is waited for, a graph replays what was recorded, and a
"plan" computes the tiny bundle's formula from what lies in fake device memory.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from mmf_deploy import bundle as bundles
from mmf_deploy import images
from mmf_deploy.engines.base import EngineOptions
from mmf_deploy.engines.trt import TensorRTEngine
from mmf_deploy.engines.trt_plan import BuildOptions, Machine
from mmf_deploy.errors import EngineError
from mmf_deploy.golden import verify_golden
from mmf_deploy.noise import gaussian_batch
from mmf_deploy.spec import SampleSpec

MACHINE = Machine("NVIDIA Fake", "9.0", "11.4.0", "13.2", "13.2")
SPECS = {
    "conditional": SampleSpec(shape=(1, 8, 8), classes=10),
    "guided": SampleSpec(shape=(3, 4, 4), classes=3, guidance=(1.5, 4.0)),
    "unconditional": SampleSpec(shape=(1, 4, 6)),
    "vector": SampleSpec(shape=(2,)),
}


@dataclass
class World:
    """What the fakes share: what is taken, what was done, and when to fail."""

    machine: Machine = MACHINE
    taken: list[str] = field(default_factory=list)
    journal: list[str] = field(default_factory=list)
    runs: list[dict] = field(default_factory=list)
    built: int = 0
    calls: int = 0
    fail_at: int | None = None
    unloadable: set[bytes] = field(default_factory=set)

    def call(self, what: str) -> None:
        self.journal.append(what)
        self.calls += 1
        if self.calls == self.fail_at:
            raise EngineError(f"{what} failed")

    def take(self, what: str) -> None:
        self.call(f"take {what}")
        self.taken.append(what)

    def free(self, what: str) -> None:
        self.journal.append(f"free {what}")
        self.taken.remove(what)


class FakeCuda:
    stream = 77

    def __init__(self, world):
        self.world, self.memory, self.pending, self.recorded = world, {}, [], None
        world.take("stream")
        self.graphs = 0
        self.ticks = []

    def allocate(self, size):
        self.world.take("device memory")
        address = 0x1000 * (len(self.memory) + 1)
        self.memory[address] = np.full(size, 0xAB, np.uint8)
        return address

    def pinned(self, shape, dtype):
        self.world.take("pinned memory")
        return np.frombuffer(b"\xab" * (np.dtype(dtype).itemsize * int(np.prod(shape))), dtype
                             ).reshape(shape).copy()  # fmt: skip

    def submit(self, what, work):
        self.world.call(what)
        (self.pending if self.recorded is None else self.recorded).append(work)

    def upload(self, address, array):
        assert array.flags.c_contiguous
        self.submit("upload", lambda: self.write(address, array))

    def download(self, array, address):
        assert array.flags.c_contiguous
        self.submit("download", lambda: np.copyto(array, self.read(address, array)))

    def write(self, address, array):
        self.memory[address][: array.nbytes] = np.frombuffer(array.tobytes(), np.uint8)

    def read(self, address, like):
        return self.memory[address][: like.nbytes].view(like.dtype).reshape(like.shape)

    def synchronize(self):
        assert self.recorded is None, "a capture forbids waiting"
        self.world.call("synchronize")
        pending, self.pending = self.pending, []
        for work in pending:
            work()

    def capture(self, work):
        self.recorded = []
        try:
            work()
            recorded = self.recorded
        finally:
            self.recorded = None
        self.world.take("graph")
        self.graphs += 1

        def launch():
            self.world.call("launch")
            self.pending += recorded

        return launch

    def timed(self, work):
        self.submit("event", lambda: None)
        work()
        self.submit("event", lambda: self.ticks.append(1.25))

    def elapsed_ms(self):
        assert not self.pending, "asked before the stream was waited for"
        return self.ticks[-1]

    def drop_graphs(self):
        for _ in range(self.graphs):
            self.world.free("graph")
        self.graphs = 0

    def close(self):
        for what in [w for w in self.world.taken if w.endswith("memory")]:
            self.world.free(what)
        self.world.free("stream")


class FakePlan:
    def __init__(self, world, cuda, spec, formula, buckets):
        self.world, self.cuda, self.spec = world, cuda, spec
        self.formula, self.buckets, self.contexts = formula, buckets, 0
        world.take("plan")

    def bind(self, profile, batch, tensors, addresses, stream):
        assert stream == FakeCuda.stream
        assert self.buckets[profile] == batch
        self.world.take("context")
        self.contexts += 1
        warm = []

        def compute():
            found = {}
            for t in tensors:
                like = np.empty(t.batched(batch), t.dtype)
                found[t.name] = self.cuda.read(addresses[t.name], like).copy()
            given = {t.name: found[t.name] for t in tensors if t.is_input}
            sample = self.formula(self.spec, **given)
            self.cuda.write(addresses["sample"], sample)
            if self.spec.is_image:
                self.cuda.write(addresses["image"], images.to_uint8(sample))
            self.world.runs.append({"batch": batch, "addresses": dict(addresses), **given})

        def enqueue():
            assert warm or self.cuda.recorded is None, "captured before the first run"
            warm.append(True)
            self.cuda.submit("enqueue", compute)

        return enqueue

    def close(self):
        for _ in range(self.contexts):
            self.world.free("context")
        self.contexts = 0
        self.world.free("plan")


class FakeTensorRT:
    def __init__(self, world, cuda, spec, formula):
        self.world, self.cuda, self.spec, self.formula = world, cuda, spec, formula

    def machine(self):
        self.world.call("machine")
        return self.world.machine

    def build(self, request):
        self.world.call("build")
        self.world.built += 1
        if request.timing_cache is not None:
            request.timing_cache.write_bytes(b"timings")
        return json.dumps({"number": self.world.built, "buckets": request.buckets}).encode()

    def open(self, plan, request):
        if plan in self.world.unloadable:
            raise EngineError("made by another version")
        buckets = json.loads(plan)["buckets"]
        return FakePlan(self.world, self.cuda, self.spec, self.formula, buckets)


@pytest.fixture
def make(tmp_path, make_tiny_bundle, tiny_formula):
    """Makes an engine over a fake world."""

    class FakeEngine(TensorRTEngine):
        world: World

        @classmethod
        def unavailable(cls, options):
            return None

        def _native(self, held):
            cuda = FakeCuda(self.world)
            held.callback(cuda.close)
            return cuda, FakeTensorRT(self.world, cuda, self.spec, tiny_formula)

    def build(spec="conditional", world=None, path=None, **options) -> FakeEngine:
        found = bundles.load(path or make_tiny_bundle(SPECS[spec]))
        options = {"cache": tmp_path / "cache", **options}
        engine = FakeEngine(found, options=EngineOptions(**options))
        engine.world = world or World()
        engine.buckets = (1, 2, 4, 8)
        return engine

    return build


def inputs(spec, count, first=0):
    seeds = range(first, first + count)
    label = np.arange(count) % spec.classes if spec.conditional else None
    guidance = np.linspace(*spec.guidance, count, dtype=np.float32) if spec.guidance else None
    return gaussian_batch(seeds, spec.shape), label, guidance


# --- running -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", TensorRTEngine.modes)
@pytest.mark.parametrize("kind", SPECS)
def test_every_batch_size_gives_what_the_graph_computes(kind, mode, make, tiny_formula):
    spec = SPECS[kind]
    with make(kind, mode=mode) as engine:
        for count in (1, 2, 3, 4, 5, 7, 8, 9, 20, 1):
            given = inputs(spec, count, first=count)
            output = engine.run(*given)
            expected = tiny_formula(spec, *given)
            np.testing.assert_array_equal(output.sample, expected)
            if spec.is_image:
                np.testing.assert_array_equal(output.image, images.to_uint8(expected))
            else:
                assert output.image is None
        if spec.is_image:
            assert verify_golden(engine.bundle, engine, engine.variant) <= 1


def test_a_batch_is_padded_to_the_next_bucket_with_valid_rows(make):
    spec = SPECS["guided"]
    with make("guided") as engine:
        engine.run(*inputs(spec, 8))  # what is left of it must not be what pads the next batch
        engine.world.runs.clear()
        noise, label, guidance = inputs(spec, 5)
        engine.run(noise, label, guidance)
    (run,) = engine.world.runs
    assert run["batch"] == 8
    np.testing.assert_array_equal(run["noise"][:5], noise)
    np.testing.assert_array_equal(run["noise"][5:], 0)
    np.testing.assert_array_equal(run["label"][5:], 0)
    np.testing.assert_array_equal(run["guidance"][5:], np.float32(1.5))
    np.testing.assert_array_equal(run["guidance"][:5], guidance)


@pytest.mark.parametrize(("count", "batches"), [(1, [1]), (3, [4]), (8, [8]), (9, [8, 1]),
                                            (21, [8, 8, 8])])  # fmt: skip
def test_the_smallest_bucket_that_fits_runs(count, batches, make):
    with make() as engine:
        engine.world.runs.clear()
        engine.run(*inputs(engine.spec, count))
    assert [run["batch"] for run in engine.world.runs] == batches


def test_one_context_and_one_graph_a_bucket_with_addresses_that_never_change(make):
    with make() as engine:
        assert engine.world.taken.count("context") == 4
        assert engine.world.taken.count("graph") == 4
        engine.run(*inputs(engine.spec, 3))
        engine.run(*inputs(engine.spec, 8))
    addresses = [run["addresses"] for run in engine.world.runs]
    assert all(a == addresses[0] for a in addresses)
    # warm-up runs of all buckets first, smallest first
    assert [run["batch"] for run in engine.world.runs] == [1, 2, 4, 8, 4, 8]


def test_a_run_is_one_launch_of_a_graph_that_holds_the_copies(make):
    with make() as engine:
        engine.world.journal.clear()
        engine.run(*inputs(engine.spec, 2))
        assert engine.world.journal == ["launch", "synchronize"]
    with make(mode="eager") as engine:
        assert "graph" not in engine.world.taken
        engine.world.journal.clear()
        engine.run(*inputs(engine.spec, 2))
        assert engine.world.journal == [
            *["upload"] * 2, "enqueue", *["download"] * 2, "synchronize",
        ]  # fmt: skip


@pytest.mark.parametrize("mode", TensorRTEngine.modes)
def test_time_on_the_device_leaves_the_copies_out(mode, make, tiny_formula):
    spec = SPECS["conditional"]
    with make(mode=mode) as engine:
        engine.run(*inputs(spec, 2))
        assert engine.device_ms is None
        graphs = engine.world.taken.count("graph")
        engine.record_device_time = True
        for k in range(2):
            engine.world.journal.clear()
            given = inputs(spec, 2, first=k)
            np.testing.assert_array_equal(engine.run(*given).sample, tiny_formula(spec, *given))
            assert engine.device_ms == 1.25
        parts = [*["upload"] * 2, "event", "enqueue", "event", *["download"] * 2]
        launched = ["launch"] if mode == "cudagraph" else parts
        assert engine.world.journal == [*launched, "synchronize"]
        # one more graph for one bucket, and it is used again
        assert engine.world.taken.count("graph") == graphs + (mode == "cudagraph")
        engine.run(*inputs(spec, 9))
        assert engine.device_ms == 2.5  # of a batch of 8 and one of 1
        engine.record_device_time = False
        engine.run(*inputs(spec, 1))
        assert engine.device_ms is None
    assert engine.world.taken == []


def test_buckets_end_at_64_where_each_costs_a_context_and_a_profile(make):
    engine = make()
    assert TensorRTEngine(engine.bundle).buckets == (1, 2, 4, 8, 16, 32, 64)
    small = TensorRTEngine(engine.bundle, options=EngineOptions(max_batch=8))
    assert small.buckets == (1, 2, 4, 8)


def test_warm_up_inputs_are_in_range(make):
    with make("guided") as engine:
        pass
    for run in engine.world.runs:
        assert (run["noise"] == 0).all()
        assert (run["label"] == 0).all()
        assert (run["guidance"] == np.float32(1.5)).all()


def test_outputs_belong_to_the_caller(make):
    with make() as engine:
        first = engine.run(*inputs(engine.spec, 2))
        kept = first.sample.copy(), first.image.copy()
        engine.run(*inputs(engine.spec, 2, first=9))
    np.testing.assert_array_equal(first.sample, kept[0])
    np.testing.assert_array_equal(first.image, kept[1])


def test_a_variant_made_for_the_cpu_runs_on_the_gpu_unless_a_device_is_given(make):
    assert make().variant.device == "cpu"
    assert make().device == make().options.device == "cuda"
    assert "runs on 'cuda'" in TensorRTEngine.unavailable(make(device="cpu").options)
    assert "CUDA_VISIBLE_DEVICES" in TensorRTEngine.unavailable(EngineOptions(device="cuda:1"))


def test_tf32_is_off_where_fp32_was_asked_for(make):
    engine = make()
    assert engine.build.tf32 is False
    half = engine.variant.model_copy(update={"precision": "fp16"})
    assert TensorRTEngine(engine.bundle, half).build.tf32 is True


def test_an_opset_beyond_what_tensorrt_reads_is_refused_before_anything_is_taken(make):
    engine = make()
    engine.variant = engine.variant.model_copy(update={"opset": 26})
    with (
        pytest.raises(EngineError, match=r"has opset 26\. TensorRT 11 needs .* 25 or lower"),
        engine,
    ):
        pass
    assert engine.world.journal == []


# --- freeing -------------------------------------------------------------------------------


def test_everything_is_freed_graphs_before_contexts_before_the_stream(make):
    engine = make()
    for _ in range(2):  # an engine may be opened again
        with engine:
            assert set(engine.world.taken) == {
                "stream", "plan", "context", "graph", "device memory", "pinned memory",
            }  # fmt: skip
        assert engine.world.taken == []
    frees = [e.removeprefix("free ") for e in engine.world.journal if e.startswith("free")]
    order = list(dict.fromkeys(frees[: len(frees) // 2]))
    assert order[:3] == ["graph", "context", "plan"]
    assert order[-1] == "stream"
    engine.close()
    with pytest.raises(EngineError, match="outside its with-block"):
        engine.run(*inputs(engine.spec, 1))


def test_whatever_fails_while_it_opens_nothing_is_kept(make):
    at, failures = 1, 0
    while True:
        engine = make("vector", World(fail_at=at))
        try:
            with engine:
                break
        except EngineError:
            failures += 1
        assert engine.world.taken == [], engine.world.journal
        with pytest.raises(EngineError, match="outside its with-block"):
            engine.run(*inputs(engine.spec, 1))
        at += 1
    # 3 to start, 4 buffers, for each of 4 buckets a context, 2 × 3 enqueued, a wait, a graph
    assert failures >= 3 + 4 + 4 * 9


# --- plans ---------------------------------------------------------------------------------


def open_once(engine) -> int:
    """Builds it took."""
    before = engine.world.built
    with engine:
        engine.run(*inputs(engine.spec, 3))
    return engine.world.built - before


def test_a_plan_is_built_once_and_kept_outside_the_bundle(make, tmp_path, capsys):
    world = World()
    engine = make(world=world)
    assert open_once(engine) == 1
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert "building a TensorRT plan of model.fp32.onnx for NVIDIA Fake" in said
    assert str(tmp_path / "cache") in said
    assert float(engine.about["built_s"]) >= 0
    again = make(world=world, path=engine.bundle.path)
    assert open_once(again) == 0
    assert capsys.readouterr().out == ""
    assert again.about["gpu"] == "NVIDIA Fake"
    assert (tmp_path / "cache").stat().st_mode & 0o077 == 0
    plans = list((tmp_path / "cache").glob("*.plan"))
    assert [str(p) for p in plans] == [again.about["plan"]]
    facts = json.loads(plans[0].with_suffix(".json").read_text())
    assert facts["gpu"] == "NVIDIA Fake"
    assert facts["buckets"] == [1, 2, 4, 8]
    bundles.load(engine.bundle.path)  # refuses files that its manifest does not list


CHANGES = {
    "gpu": lambda e: setattr(e.world, "machine", replace(MACHINE, gpu="NVIDIA Other")),
    "driver": lambda e: setattr(e.world, "machine", replace(MACHINE, driver="13.3")),
    "tensorrt": lambda e: setattr(e.world, "machine", replace(MACHINE, tensorrt="11.5.0")),
    "options": lambda e: setattr(e, "build", BuildOptions(optimization_level=5)),
    "buckets": lambda e: setattr(e, "buckets", (1, 2, 4)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_plan_is_built_anew_when_what_it_depends_on_differs(change, make):
    first = make()
    assert open_once(first) == 1
    second = make(world=first.world, path=first.bundle.path)
    CHANGES[change](second)
    assert open_once(second) == 1
    # and the first one is still there
    first.world.machine = MACHINE
    assert open_once(make(world=first.world, path=first.bundle.path)) == 0


def test_another_graph_of_the_same_name_is_another_plan(make):
    first = make("conditional")
    assert open_once(first) == 1
    other = make("guided", world=first.world)
    assert other.variant.file == first.variant.file
    assert open_once(other) == 1


@pytest.mark.parametrize("damage", [
    lambda plan: plan.write_bytes(plan.read_bytes()[:-1]),
    lambda plan: plan.write_bytes(b""),
    lambda plan: plan.unlink(),
    lambda plan: plan.with_suffix(".json").unlink(),
    lambda plan: plan.with_suffix(".json").write_text("{"),
    lambda plan: plan.with_suffix(".json").write_text("[]"),
    lambda plan: plan.with_suffix(".json").write_bytes(b"\xff"),
], ids=["cut", "empty", "gone", "no facts", "half facts", "other facts", "no text"])  # fmt: skip
def test_a_damaged_plan_is_never_loaded_but_built_anew(damage, make, tmp_path):
    first = make()
    assert open_once(first) == 1
    (plan,) = (tmp_path / "cache").glob("*.plan")
    damage(plan)
    assert open_once(make(world=first.world, path=first.bundle.path)) == 1
    assert open_once(make(world=first.world, path=first.bundle.path)) == 0


def test_a_plan_that_tensorrt_refuses_is_built_anew_and_it_is_said(make, tmp_path, caplog):
    first = make()
    assert open_once(first) == 1
    (plan,) = (tmp_path / "cache").glob("*.plan")
    first.world.unloadable.add(plan.read_bytes())
    assert open_once(make(world=first.world, path=first.bundle.path)) == 1
    assert "built anew: made by another version" in caplog.text
    assert open_once(make(world=first.world, path=first.bundle.path)) == 0


def test_a_fresh_plan_that_tensorrt_refuses_is_an_error_and_frees_all(make):
    engine = make()
    fresh = json.dumps({"number": 1, "buckets": engine.buckets}).encode()
    engine.world.unloadable.add(fresh)
    with pytest.raises(EngineError, match="made by another version"), engine:
        pass
    assert engine.world.taken == []


def test_a_cache_that_cannot_be_written_costs_time_only(make, tmp_path, caplog):
    (tmp_path / "file").touch()
    engine = make(cache=tmp_path / "file" / "cache")
    assert open_once(engine) == 1
    assert "no plan is kept" in caplog.text


def test_without_an_option_the_users_cache_directory_is_used(make, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    engine = make(cache=None)
    assert open_once(engine) == 1
    assert list((tmp_path / "xdg" / "mmf-deploy" / "tensorrt").glob("*.plan"))
    shutil.rmtree(tmp_path / "xdg")
    assert open_once(make(cache=None, world=engine.world, path=engine.bundle.path)) == 1

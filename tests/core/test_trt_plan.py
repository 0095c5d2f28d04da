"""What TensorRT plans depend on, the cache, build progress, and why there is no TensorRT here."""

from __future__ import annotations

import sys
import types
from dataclasses import fields, replace
from importlib.util import find_spec

import pytest

from mmf_deploy.engines import trt_probe
from mmf_deploy.engines.base import EngineOptions, engine_class
from mmf_deploy.engines.buckets import bucket_for
from mmf_deploy.engines.trt_cache import PlanCache, default_directory
from mmf_deploy.engines.trt_plan import (
    BuildOptions,
    Machine,
    plan_key,
    tensors_of,
    timing_key,
)
from mmf_deploy.engines.trt_progress import BuildPhases
from mmf_deploy.errors import ConfigError, ShapeError
from mmf_deploy.spec import SampleSpec

MACHINE = Machine("NVIDIA H200", "9.0", "11.4.0.106", "13.0", "13.5")
GRAPH = "ab" * 32
OTHER_OPTIONS = BuildOptions(5, 1024, True, "ampere", True, True)


def test_the_key_is_pure_and_of_fixed_length():
    key = plan_key(MACHINE, GRAPH, BuildOptions(), (1, 2))
    assert key == plan_key(replace(MACHINE), GRAPH, BuildOptions(), [1, 2])
    assert len(key) == 64
    assert int(key, 16)


def test_whatever_a_plan_depends_on_changes_its_key():
    keys = [plan_key(MACHINE, GRAPH, BuildOptions(), (1, 2))]
    for f in fields(Machine):
        other = replace(MACHINE, **{f.name: getattr(MACHINE, f.name) + "1"})
        keys.append(plan_key(other, GRAPH, BuildOptions(), (1, 2)))
    for f in fields(BuildOptions):
        other = replace(BuildOptions(), **{f.name: getattr(OTHER_OPTIONS, f.name)})
        keys.append(plan_key(MACHINE, GRAPH, other, (1, 2)))
    keys.append(plan_key(MACHINE, "cd" * 32, BuildOptions(), (1, 2)))
    keys.append(plan_key(MACHINE, GRAPH, BuildOptions(), (1, 2, 4)))
    keys.append(plan_key(MACHINE, GRAPH, BuildOptions(), (12,)))
    assert len(set(keys)) == len(keys) == 1 + 5 + 6 + 3


def test_kernel_timings_belong_to_a_machine(tmp_path):
    assert timing_key(MACHINE) == timing_key(replace(MACHINE))
    assert timing_key(MACHINE) != timing_key(replace(MACHINE, driver="13.1"))
    assert PlanCache(tmp_path).timing_file(MACHINE).parent == tmp_path


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"optimization_level": 6}, "expected 0 … 5"),
        ({"workspace_mib": 0}, "expected 1 or more"),
        ({"hardware": "hopper"}, "expected none, same or ampere"),
    ],
)
def test_build_options_out_of_range_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        BuildOptions(**wrong)


def test_tensors_are_those_of_the_bundle_contract():
    spec = SampleSpec(shape=(3, 4, 5), classes=7, guidance=(2, 4))
    found = [(t.name, t.batched(6), t.dtype, t.is_input, t.padding) for t in tensors_of(spec)]
    assert found == [
        ("noise", (6, 3, 4, 5), "float32", True, 0),
        ("label", (6,), "int64", True, 0),
        ("guidance", (6,), "float32", True, 2),
        ("sample", (6, 3, 4, 5), "float32", False, 0),
        ("image", (6, 4, 5, 3), "uint8", False, 0),
    ]
    assert [t.name for t in tensors_of(SampleSpec(shape=(2,)))] == ["noise", "sample"]


def test_the_smallest_bucket_that_holds_a_batch_is_chosen():
    assert [bucket_for(n, (1, 2, 8)) for n in range(1, 9)] == [1, 2, 8, 8, 8, 8, 8, 8]
    with pytest.raises(ShapeError, match="batch of 9: expected at most 8"):
        bucket_for(9, (1, 2, 8))


# --- cache ---------------------------------------------------------------------------------


def test_the_cache_directory_follows_the_base_directory_specification(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/me")
    assert str(default_directory()) == "/var/cache/me/mmf-deploy/tensorrt"
    for ignored in ("relative", ""):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert default_directory() == tmp_path / ".cache/mmf-deploy/tensorrt"


def test_what_was_written_is_read_and_nothing_else(tmp_path, caplog):
    cache = PlanCache(tmp_path / "a" / "b")
    assert cache.read("key") is None
    assert cache.prepare()
    cache.write("key", b"plan", {"gpu": "x"})
    assert cache.read("key") == b"plan"
    assert cache.read("other") is None
    assert caplog.text == ""
    cache.plan_file("key").write_bytes(b"plam")
    assert cache.read("key") is None
    assert "not the plan that was written" in caplog.text


def test_a_plan_that_cannot_be_kept_is_a_warning(tmp_path, caplog):
    cache = PlanCache(tmp_path)
    cache.plan_file("key").mkdir()
    cache.write("key", b"plan", {})
    assert "key.plan not kept" in caplog.text
    assert cache.read("key") is None


# --- progress ------------------------------------------------------------------------------


def test_progress_counts_steps_and_the_phases_inside_them():
    phases = BuildPhases()
    assert phases.now() == ("", 0.0)
    phases.start("build", None, 4)
    assert phases.now() == ("build", 0.0)
    phases.step("build", 0)
    assert phases.now() == ("build", 0.25)
    phases.start("tactics", "build", 10)
    phases.step("tactics", 4)
    assert phases.now() == ("build", pytest.approx(0.375))
    phases.start("timing", "tactics", 2)
    phases.step("timing", 0)
    assert phases.now() == ("build", pytest.approx(0.25 + 0.55 / 4))
    phases.finish("timing")
    phases.finish("tactics")
    phases.step("build", 1)
    assert phases.now() == ("build", 0.5)
    phases.finish("build")
    assert phases.now() == ("build", 1.0)
    phases.start("serialise", None, 2)
    assert phases.now() == ("serialise", 0.0)


def test_progress_never_goes_back_or_beyond_the_end_whatever_is_reported():
    phases = BuildPhases()
    phases.step("unknown", 3)
    phases.finish("unknown")
    phases.start("build", None, 0)
    phases.step("build", 7)
    assert phases.now() == ("build", 1.0)
    phases.start("late", "build", 1)
    phases.step("late", 0)
    phases.step("build", 0)
    assert phases.now() == ("build", 1.0)


# --- why it cannot run here ----------------------------------------------------------------


def without(monkeypatch, module):
    """Importing it raises as if it were not installed."""
    monkeypatch.setitem(sys.modules, module, None)


def test_a_missing_package_is_one_line_that_says_what_to_install(monkeypatch):
    without(monkeypatch, "tensorrt")
    found = trt_probe.tensorrt_problem()
    assert found == 'the package tensorrt-cu13 is not installed: pip install "mmf-deploy[tensorrt]"'
    monkeypatch.delitem(sys.modules, "mmf_deploy.engines.cuda_runtime", raising=False)
    without(monkeypatch, "cuda.bindings")
    found = trt_probe.cuda_problem()
    assert found == 'the package cuda-bindings is not installed: pip install "mmf-deploy[tensorrt]"'


def test_missing_libraries_are_named_in_one_line(monkeypatch, tmp_path):
    if find_spec("tensorrt_bindings") is None:
        pytest.skip("tensorrt-cu13-bindings is not installed")
    for module in [m for m in sys.modules if m.partition(".")[0].startswith("tensorrt")]:
        monkeypatch.delitem(sys.modules, module)
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt" / "__init__.py").write_text("from tensorrt_bindings import __version__")
    monkeypatch.syspath_prepend(tmp_path)
    found = trt_probe.tensorrt_problem()
    if found is None:
        pytest.skip("TensorRT's libraries are installed")
    assert "\n" not in found
    assert found.startswith("TensorRT's libraries cannot be loaded (libnv")


@pytest.mark.parametrize("version", ["10.16.1.11", "", "unknown"])
def test_an_older_tensorrt_is_refused(version, monkeypatch):
    fake = types.ModuleType("tensorrt")
    fake.__version__ = version
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    assert f"TensorRT {version} is installed, 11 or later is needed" in trt_probe.tensorrt_problem()
    fake.__version__ = "11.0"
    assert trt_probe.tensorrt_problem() is None
    del fake.__version__
    assert "libraries cannot be loaded" in trt_probe.tensorrt_problem()


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (lambda: 0, "the driver finds no NVIDIA GPU"),
        (lambda: 1, None),
        (lambda: 1 / 0, "division by zero"),
    ],
)
def test_the_driver_is_asked_before_tensorrt_is_touched(count, expected, monkeypatch):
    runtime = types.ModuleType("mmf_deploy.engines.cuda_runtime")
    runtime.device_count = count
    monkeypatch.setitem(sys.modules, "mmf_deploy.engines.cuda_runtime", runtime)
    without(monkeypatch, "tensorrt")
    assert trt_probe.cuda_problem() == expected
    found = engine_class("tensorrt").unavailable(EngineOptions())
    assert found == expected or (expected is None and "tensorrt-cu13" in found)

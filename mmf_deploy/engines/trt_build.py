"""ONNX to a TensorRT plan: strongly typed, one optimisation profile per batch size.

The precision comes from the graph alone (``NEEDS`` says which graphs). Needs TensorRT 11
when imported.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import SupportsInt

import tensorrt as trt

from mmf_deploy import files
from mmf_deploy.engines.trt_log import created, tensorrt_log
from mmf_deploy.engines.trt_plan import NEEDS, BuildOptions, BuildRequest, Tensor
from mmf_deploy.engines.trt_progress import BuildPhases
from mmf_deploy.errors import EngineError
from mmf_deploy.progress import TaskProgress

log = logging.getLogger(__name__)

_DTYPES = {
    "float32": trt.DataType.FLOAT,
    "int64": trt.DataType.INT64,
    "uint8": trt.DataType.UINT8,
}
_HARDWARE = {
    "none": trt.HardwareCompatibilityLevel.NONE,
    "same": trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY,
    "ampere": trt.HardwareCompatibilityLevel.AMPERE_PLUS,
}


def build_plan(request: BuildRequest) -> bytes:
    """Build the plan of a graph for the current GPU. Takes minutes and shows how far it is.

    Raises:
        EngineError: TensorRT refuses the graph, or cannot build it.
    """
    builder = created(trt.Builder, "builder")
    network = builder.create_network(0)
    _parse(network, request.graph)
    _check_tensors(network, request)
    config = builder.create_builder_config()
    _configure(config, request.options)
    for batch in request.buckets:
        _add_profile(builder, config, request.tensors, batch)
    timings = _read_timings(config, request.timing_cache)
    with TaskProgress("%", 100) as progress:
        monitor = _Monitor(progress)
        config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
    if monitor.raised is not None:
        raise monitor.raised
    if plan is None:
        raise tensorrt_log().failure(f"build a plan of {request.graph}")
    _write_timings(timings, request.timing_cache)
    return bytes(plan)


def _parse(network: trt.INetworkDefinition, graph: Path) -> None:
    parser = trt.OnnxParser(network, tensorrt_log())
    if parser.parse_from_file(str(graph)):
        return
    found = [parser.get_error(k) for k in range(parser.num_errors)]
    reasons = [_describe(error) for error in found] or ["it gave no reason"]
    raise EngineError(f"{graph}: TensorRT cannot read it: {'; '.join(reasons)}. {NEEDS}")


def _describe(error: trt.ParserError) -> str:
    where = f"node {error.node()} {error.node_name()!r} ({error.node_operator()})"
    return f"{where}: {' '.join(error.desc().split())}"


def _check_tensors(network: trt.INetworkDefinition, request: BuildRequest) -> None:
    """A wrong graph is refused before the minutes of its build."""
    inputs = [network.get_input(k) for k in range(network.num_inputs)]
    outputs = [network.get_output(k) for k in range(network.num_outputs)]
    for found, is_input, kind in ((inputs, True, "inputs"), (outputs, False, "outputs")):
        expected = {t.name: t for t in request.tensors if t.is_input == is_input}
        if {t.name for t in found} != set(expected):
            names = ", ".join(t.name for t in found)
            raise EngineError(f"{request.graph}: {kind} {names}; expected {', '.join(expected)}")
        for tensor in found:
            _check_tensor(request.graph, tensor, expected[tensor.name])


def _check_tensor(graph: Path, found: trt.ITensor, expected: Tensor) -> None:
    shape, wanted = sizes(found.shape), expected.batched(-1)
    # -1 is a size that TensorRT learns later
    fits = len(shape) == len(wanted) and all(
        n in (-1, size) for n, size in zip(shape, wanted, strict=True)
    )
    if not fits or found.dtype != _DTYPES[expected.dtype]:
        raise EngineError(
            f"{graph}: {found.name} is {found.dtype.name} {list(shape)}; "
            f"expected {expected.dtype} {list(wanted)}"
        )


def sizes(shape: trt.Dims) -> tuple[int, ...]:
    """A shape of TensorRT as a tuple."""
    return tuple(shape[k] for k in range(len(shape)))


def _configure(config: trt.IBuilderConfig, options: BuildOptions) -> None:
    workspace = options.workspace_mib << 20
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
    config.builder_optimization_level = options.optimization_level
    config.hardware_compatibility_level = _HARDWARE[options.hardware]
    for flag, wanted in (
        (trt.BuilderFlag.TF32, options.tf32),  # on unless it is cleared
        (trt.BuilderFlag.VERSION_COMPATIBLE, options.version_compatible),
        (trt.BuilderFlag.REFIT, options.refit),
    ):
        if wanted:
            config.set_flag(flag)
        else:
            config.clear_flag(flag)


def _add_profile(
    builder: trt.Builder, config: trt.IBuilderConfig, tensors: tuple[Tensor, ...], batch: int
) -> None:
    """One batch size and no other, so that kernels are chosen for it."""
    profile = builder.create_optimization_profile()
    for tensor in tensors:
        if tensor.is_input:
            shape = trt.Dims(tensor.batched(batch))
            profile.set_shape(tensor.name, shape, shape, shape)
    if config.add_optimization_profile(profile) < 0:
        raise tensorrt_log().failure(f"prepare for batches of {batch}")


def _read_timings(config: trt.IBuilderConfig, file: Path | None) -> trt.ITimingCache:
    timings = config.create_timing_cache(_content(file))
    if timings is None or not config.set_timing_cache(timings, False):
        log.warning("%s: not usable on this machine; timing anew", file)
        timings = config.create_timing_cache(b"")
        config.set_timing_cache(timings, False)
    return timings


def _content(file: Path | None) -> bytes:
    try:
        return b"" if file is None else file.read_bytes()
    except OSError:  # none yet, or not for us to read: it is made anew
        return b""


def _write_timings(timings: trt.ITimingCache, file: Path | None) -> None:
    if file is None:
        return
    try:
        files.write_atomic(file, bytes(timings.serialize()))
    except OSError as e:
        log.warning("kernel timings not kept: %s", e)


class _Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # untyped where it is not installed
    """Shows progress. Nothing may be raised into TensorRT: it is kept, and the build stopped."""

    def __init__(self, progress: TaskProgress) -> None:
        trt.IProgressMonitor.__init__(self)
        self.raised: BaseException | None = None
        self._progress = progress
        self._phases = BuildPhases()

    def phase_start(
        self, phase_name: str, parent_phase: str | None, num_steps: SupportsInt
    ) -> None:
        """TensorRT begins a phase."""
        self._phases.start(phase_name, parent_phase, int(num_steps))

    def step_complete(self, phase_name: str, step: SupportsInt) -> bool:
        """TensorRT has done a step; False stops the build."""
        try:
            self._phases.step(phase_name, int(step))
            what, fraction = self._phases.now()
            self._progress.show(f"TensorRT plan: {what}", int(100 * fraction))
        except BaseException as e:
            self.raised = e
        return self.raised is None

    def phase_finish(self, phase_name: str) -> None:
        """TensorRT ends a phase."""
        self._phases.finish(phase_name)

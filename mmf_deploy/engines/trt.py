"""TensorRT 11 on an NVIDIA GPU, natively: neither torch nor ONNX Runtime is involved.

For every batch size one execution context and one CUDA graph, which holds the copies as well,
so that a run is a single launch. Plans are built on the machine that runs them (trt_build.py)
and kept outside the bundle (trt_cache.py). Checked against the names and signatures of
TensorRT 11.4, not executed: docs/tensorrt.md.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmf_deploy import files
from mmf_deploy.bundle import Bundle, Variant
from mmf_deploy.engines import trt_probe
from mmf_deploy.engines.base import Engine, EngineOptions, Output
from mmf_deploy.engines.buckets import bucket_for
from mmf_deploy.engines.trt_cache import PlanCache, default_directory
from mmf_deploy.engines.trt_plan import (
    MAX_OPSET,
    NEEDS,
    BuildOptions,
    BuildRequest,
    plan_key,
    tensors_of,
)
from mmf_deploy.engines.trt_seam import Cuda, Plan, TensorRT
from mmf_deploy.errors import EngineError

log = logging.getLogger(__name__)


@dataclass
class _Bucket:
    """What enqueues a whole run of one batch size, copies included.

    Attributes:
        timed: the same with events around what lies between the copies.
        launch, launch_timed: them as one launch; the second is made at its first use.
    """

    timed: Callable[[], None]
    launch: Callable[[], None]
    launch_timed: Callable[[], None] | None = None


class TensorRTEngine(Engine):
    """Runs the variant's ONNX file as a TensorRT plan.

    Attributes:
        build: how the plan is built; may be set before the engine is opened.
        about: the machine, and where the plan came from, once it is open.
    """

    name = "tensorrt"
    modes = ("cudagraph", "eager")

    def __init__(
        self, bundle: Bundle, variant: Variant | None = None, options: EngineOptions | None = None
    ) -> None:
        given = options or EngineOptions()
        # a variant made for a CPU runs as well, and there is no other device to choose
        super().__init__(bundle, variant, replace(given, device=given.device or "cuda"))
        self.build = BuildOptions(tf32=self.precision != "fp32")
        self.about: dict[str, str] = {}
        self._tensors = tensors_of(self.spec)
        self._held = ExitStack()
        self._cuda: Cuda | None = None
        self._host: dict[str, NDArray[Any]] = {}
        self._ready: dict[int, _Bucket] = {}

    @classmethod
    def unavailable(cls, options: EngineOptions) -> str | None:
        """It needs an NVIDIA GPU, its driver, and TensorRT 11 with its libraries."""
        if options.device not in (None, "cuda"):
            return (
                f"device {options.device!r}; it runs on 'cuda' "
                "(CUDA_VISIBLE_DEVICES=1 chooses the second GPU)"
            )
        # a driver first: without one, TensorRT ends the process instead of raising
        return trt_probe.cuda_problem() or trt_probe.tensorrt_problem()

    def _native(self, held: ExitStack) -> tuple[Cuda, TensorRT]:
        """CUDA and TensorRT; what must be given back goes on ``held``."""
        from mmf_deploy.engines.cuda_runtime import CudaRuntime
        from mmf_deploy.engines.trt_runtime import NativeTensorRT

        return held.enter_context(CudaRuntime()), NativeTensorRT()

    def load(self) -> None:
        """Load the plan, building it where this machine has none, and prepare every bucket.

        Raises:
            EngineError: TensorRT refuses the graph, or there is not enough GPU memory.
        """
        if self.variant.opset is not None and self.variant.opset > MAX_OPSET:
            raise EngineError(f"{self.variant.file} has opset {self.variant.opset}. {NEEDS}")
        graph = self.bundle.file(self.variant)
        if not graph.is_file():
            raise EngineError(f"{graph}: gone since the bundle was verified; load it again")
        with ExitStack() as held:  # gives everything back if a step below fails
            cuda, tensorrt = self._native(held)
            plan = self._open_plan(tensorrt)
            held.callback(plan.close)
            host, device = self._allocate(cuda)
            held.callback(cuda.drop_graphs)
            self._ready = {
                batch: self._prepare(cuda, plan, k, host, device)
                for k, batch in enumerate(self.buckets)
            }
            self._cuda, self._host = cuda, host
            self._held = held.pop_all()

    def _open_plan(self, tensorrt: TensorRT) -> Plan:
        graph = self.bundle.file(self.variant)
        machine = tensorrt.machine()
        key = plan_key(machine, files.sha256(graph), self.build, self.buckets)
        cache = PlanCache(self.options.cache or default_directory())
        kept = cache.prepare()
        timings = cache.timing_file(machine) if kept else None
        request = BuildRequest(graph, self._tensors, self.buckets, self.build, timings)
        self.about = {**machine.as_dict(), "plan": str(cache.plan_file(key)), "built_s": "0"}
        stored = cache.read(key)
        if stored is not None:
            try:
                return tensorrt.open(stored, request)
            except EngineError as e:
                log.warning("%s: built anew: %s", cache.plan_file(key), e)
        print(f"building a TensorRT plan of {graph.name} for {machine.gpu}, once; "
              f"minutes; kept in {cache.directory}", flush=True)  # fmt: skip
        began = time.monotonic()
        plan = tensorrt.build(request)
        self.about["built_s"] = f"{time.monotonic() - began:.1f}"
        facts = {"graph": str(graph), "buckets": self.buckets, "options": asdict(self.build)}
        if kept:
            cache.write(key, plan, {**facts, **self.about})
        return tensorrt.open(plan, request)

    def _allocate(self, cuda: Cuda) -> tuple[dict[str, NDArray[Any]], dict[str, int]]:
        """One buffer per tensor on either side; every bucket uses the first rows of it."""
        host = {t.name: cuda.pinned(t.batched(self.buckets[-1]), t.dtype) for t in self._tensors}
        return host, {name: cuda.allocate(array.nbytes) for name, array in host.items()}

    def _prepare(
        self,
        cuda: Cuda,
        plan: Plan,
        profile: int,
        host: Mapping[str, NDArray[Any]],
        device: Mapping[str, int],
    ) -> _Bucket:
        batch = self.buckets[profile]
        for tensor in self._tensors:
            host[tensor.name][:batch] = tensor.padding
        enqueue = plan.bind(profile, batch, self._tensors, device, cuda.stream)

        def upload() -> None:
            for tensor in self._tensors:
                if tensor.is_input:
                    cuda.upload(device[tensor.name], host[tensor.name][:batch])

        def download() -> None:
            for tensor in self._tensors:
                if not tensor.is_input:
                    cuda.download(host[tensor.name][:batch], device[tensor.name])

        def whole() -> None:
            upload()
            enqueue()
            download()

        def timed() -> None:
            upload()
            cuda.timed(enqueue)
            download()

        # the first run takes memory and loads kernels, which a capture forbids
        whole()
        cuda.synchronize()
        return _Bucket(timed, self._one_launch(cuda, whole))

    def _one_launch(self, cuda: Cuda, work: Callable[[], None]) -> Callable[[], None]:
        return cuda.capture(work) if self.mode == "cudagraph" else work

    def _compute(self, cuda: Cuda, bucket: _Bucket) -> None:
        if not self.record_device_time:
            bucket.launch()
            cuda.synchronize()
            return
        if bucket.launch_timed is None:
            bucket.launch_timed = self._one_launch(cuda, bucket.timed)
        bucket.launch_timed()
        cuda.synchronize()
        self._spent_on_device(cuda.elapsed_ms())

    def close(self) -> None:
        """Free graphs, contexts, plan, memory and stream."""
        self._ready, self._host, self._cuda = {}, {}, None
        self._held.close()

    @property
    def pads(self) -> bool:
        """Every bucket has a context and a graph of its own."""
        return True

    def _run(
        self,
        noise: NDArray[np.float32],
        label: NDArray[np.int64] | None,
        guidance: NDArray[np.float32] | None,
    ) -> Output:
        if self._cuda is None:
            raise EngineError("engine used outside its with-block")
        count, given = len(noise), {"noise": noise, "label": label, "guidance": guidance}
        bucket = bucket_for(count, self.buckets)
        for tensor in self._tensors:
            if tensor.is_input:
                rows = self._host[tensor.name]
                rows[:count] = given[tensor.name]
                rows[count:bucket] = tensor.padding
        self._compute(self._cuda, self._ready[bucket])
        # copies: the next run writes into the same memory
        image = self._host["image"][:count].copy() if self.spec.is_image else None
        return Output(sample=self._host["sample"][:count].copy(), image=image)

"""TensorRT's runtime: plans and their execution contexts. Needs TensorRT 11 when imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import tensorrt as trt

from mmf_deploy.engines.cuda_runtime import device_facts
from mmf_deploy.engines.trt_build import build_plan, sizes
from mmf_deploy.engines.trt_log import created, tensorrt_log
from mmf_deploy.engines.trt_plan import BuildRequest, Machine, Tensor
from mmf_deploy.errors import EngineError


class NativeTensorRT:
    """TensorRT on the current GPU."""

    def machine(self) -> Machine:
        """What plans built here depend on."""
        return Machine(tensorrt=trt.__version__, **device_facts())

    def build(self, request: BuildRequest) -> bytes:
        """A plan for this machine; takes minutes.

        Raises:
            EngineError: TensorRT refuses the graph or cannot build it.
        """
        return build_plan(request)

    def open(self, plan: bytes, request: BuildRequest) -> NativePlan:
        """Load a plan.

        Raises:
            EngineError: TensorRT cannot load it, or it has other profiles than were asked for.
        """
        runtime = created(trt.Runtime, "runtime")
        # version-compatible plans hold code for the processor; ours were hashed when written
        runtime.engine_host_code_allowed = request.options.version_compatible
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise tensorrt_log().failure("load the plan")
        if engine.num_optimization_profiles != len(request.buckets):
            raise EngineError(
                f"the plan has {engine.num_optimization_profiles} profiles, "
                f"expected {len(request.buckets)}"
            )
        return NativePlan(runtime, engine)


class NativePlan:
    """A plan in GPU memory, with one execution context for every ``bind``."""

    def __init__(self, runtime: trt.Runtime, engine: trt.ICudaEngine) -> None:
        self._runtime: trt.Runtime | None = runtime
        self._engine: trt.ICudaEngine | None = engine
        self._contexts: list[trt.IExecutionContext] = []

    def bind(
        self,
        profile: int,
        batch: int,
        tensors: tuple[Tensor, ...],
        addresses: Mapping[str, int],
        stream: int,
    ) -> Callable[[], None]:
        """A function that enqueues one run of a profile on a stream.

        Args:
            addresses: of device memory by tensor name; they stay the same for ever.
        Raises:
            EngineError: TensorRT refuses a shape or an address, or lacks memory.
        """
        if self._engine is None:
            raise EngineError("plan used after it was closed")
        # memory for this profile alone; the default takes that of the largest for every context
        strategy = trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
        context = self._engine.create_execution_context(strategy)
        if context is None:
            raise tensorrt_log().failure(f"prepare for batches of {batch}")
        index = len(self._contexts)
        self._contexts.append(context)
        _expect(context.set_optimization_profile_async(profile, stream), f"use profile {profile}")
        for tensor in tensors:
            if tensor.is_input:
                shape = tensor.batched(batch)
                what = f"take {tensor.name} of shape {shape}"
                _expect(context.set_input_shape(tensor.name, shape), what)
        for tensor in tensors:
            _check_shape(context, tensor, batch)
            what = f"use the memory for {tensor.name}"
            _expect(context.set_tensor_address(tensor.name, addresses[tensor.name]), what)
        what = f"run a batch of {batch}"
        # by index: a function that someone keeps must not keep the context
        return lambda: _expect(self._contexts[index].execute_async_v3(stream), what)

    def close(self) -> None:
        """Free contexts, engine and runtime, in this order; may be called twice."""
        self._contexts.clear()
        self._engine = None
        self._runtime = None


def _check_shape(context: trt.IExecutionContext, tensor: Tensor, batch: int) -> None:
    """What is written into the memory of a tensor must fit into it."""
    found = sizes(context.get_tensor_shape(tensor.name))
    if found != tensor.batched(batch):
        raise EngineError(f"{tensor.name} has shape {found}; expected {tensor.batched(batch)}")


def _expect(done: bool, what: str) -> None:
    if not done:
        raise tensorrt_log().failure(what)

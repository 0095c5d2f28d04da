"""PyTorch: the baseline every other engine is compared with, as fast as it can be made.

A bundle holds no PyTorch weights, so this engine takes the checkpoint the bundle was
made from and refuses any other.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mmf_deploy import checkpoint
from mmf_deploy.engines import torch_modes
from mmf_deploy.engines.base import Engine, EngineOptions, Output
from mmf_deploy.engines.buckets import BUCKETS, GPU_BUCKETS, bucket_for, padded
from mmf_deploy.engines.gpu_facts import gpu_facts
from mmf_deploy.engines.torch_modes import MODES, Inputs, Run
from mmf_deploy.errors import EngineError
from mmf_deploy.nn.build import network_from
from mmf_deploy.nn.fixed_inputs import fix_inputs
from mmf_deploy.nn.sampler import Sampler, time_grid


class PyTorchEngine(Engine):
    """Runs the checkpoint's network, in float32 unless the mode names another precision.

    Modes that compile or capture prepare a bucket at its first use and pad smaller batches; the
    others take any batch as it is.
    """

    name = "pytorch"
    modes = tuple(MODES)
    formats = ()
    _module: nn.Module | None = None

    @classmethod
    def unavailable(cls, options: EngineOptions) -> str | None:
        """It needs a checkpoint, a GPU if one is asked for, and what its mode needs."""
        if options.checkpoint is None:
            return "it needs the checkpoint the bundle was made from; pass --checkpoint"
        problem = device_problem(options.device)
        if problem is not None:
            return problem
        mode = options.mode or cls.modes[0]
        return torch_modes.problem(mode, torch.device(options.device or "cpu"))

    def _own_buckets(self) -> tuple[int, ...]:
        return GPU_BUCKETS if self._on_gpu else BUCKETS

    @property
    def _on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    def load(self) -> None:
        """Read the weights.

        Raises:
            EngineError: the checkpoint is not the one the bundle was made from.
            CheckpointError: it cannot be read.
        """
        assert self.options.checkpoint is not None  # __enter__ has asked unavailable()
        source = self.bundle.manifest.source
        found = checkpoint.read(self.options.checkpoint)
        digest = found.weights_hash(source.weights)
        if digest != source.weights_sha256:
            raise EngineError(
                f"{found.path}: its {source.weights} weights have SHA-256 {digest}, but "
                f"{self.bundle.path} was made from {source.weights_sha256}; "
                "pass the checkpoint it was exported from"
            )
        net = fix_inputs(network_from(found, source.weights), source.label, source.guidance)
        grid = time_grid(self.variant.steps)
        device = torch.device(self.device)
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats(device)
            self.about = gpu_facts(device.index or 0) | {"runtime": str(torch.version.cuda)}
        sampler = Sampler(net, grid, self.spec.is_image).to(device).eval()
        self._module = torch_modes.arranged(sampler, self.mode)
        self._runs: dict[int, Run] = {}
        self.precision = MODES[self.mode].precision

    def close(self) -> None:
        """Free the network."""
        self._module = None
        self._runs = {}

    @property
    def pads(self) -> bool:
        """Where every batch size would be compiled or captured anew."""
        return MODES[self.mode].fixed_batch

    def device_memory_mb(self) -> float | None:
        """Most that PyTorch's allocator held in tensors since ``load``; None on the CPU."""
        if self._module is None or not self._on_gpu:
            return None
        return torch.cuda.max_memory_allocated(self.device) / 1e6

    @torch.inference_mode()
    def _run(
        self,
        noise: NDArray[np.float32],
        label: NDArray[np.int64] | None,
        guidance: NDArray[np.float32] | None,
    ) -> Output:
        if self._module is None:
            raise EngineError("engine used outside its with-block")
        self._take_the_process()
        count = len(noise)
        rows = bucket_for(count, self.buckets) if self.pads else count
        inputs: Inputs = tuple(
            None if a is None else torch.from_numpy(padded(a, rows)).to(self.device)
            for a in (noise, label, guidance)
        )
        outputs = self._compute(self._prepared(rows, inputs), inputs)
        found = [o[:count].cpu().numpy() for o in outputs]
        return Output(sample=found[0], image=found[1] if self.spec.is_image else None)

    def _compute(self, run: Run, inputs: Inputs) -> tuple[Tensor, ...]:
        if not (self.record_device_time and self._on_gpu):
            return run(inputs)
        outputs, elapsed_ms = torch_modes.timed(run, inputs)
        self._spent_on_device(elapsed_ms())
        return outputs

    def _take_the_process(self) -> None:
        """Settings that are the process's: two of these engines may take turns."""
        if self.options.threads is not None:
            torch.set_num_threads(self.options.threads)
        if self._on_gpu:
            torch_modes.take_the_gpu(self.mode, torch.device(self.device))

    def _prepared(self, rows: int, inputs: Inputs) -> Run:
        assert self._module is not None
        if not self.pads:
            return torch_modes.prepared(self._module, self.mode, inputs)
        if rows not in self._runs:
            self._runs[rows] = torch_modes.prepared(self._module, self.mode, inputs)
        return self._runs[rows]


def device_problem(device: str | None) -> str | None:
    """Why PyTorch cannot run on that device; None if it can."""
    try:
        found = torch.device(device or "cpu")
    except RuntimeError:
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        return f"device {device!r}; it runs on 'cpu' and 'cuda'"
    if found.type == "cuda" and not torch.cuda.is_available():
        return f"device {device!r}, but PyTorch sees no GPU"
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        return f"device {device!r}, but the last GPU is 'cuda:{torch.cuda.device_count() - 1}'"
    return None

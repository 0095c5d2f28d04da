"""PyTorch eager: the baseline every other engine is compared with.

A bundle holds no PyTorch weights, so this engine takes the checkpoint the bundle was
made from and refuses any other.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from mmf_deploy import checkpoint
from mmf_deploy.engines.base import Engine, EngineOptions, Output
from mmf_deploy.errors import EngineError
from mmf_deploy.nn.build import network_from
from mmf_deploy.nn.sampler import Sampler, time_grid


class PyTorchEngine(Engine):
    """Runs the checkpoint's network eagerly in float32."""

    name = "pytorch"
    _sampler: Sampler | None = None

    @classmethod
    def unavailable(cls, options: EngineOptions) -> str | None:
        """It needs a checkpoint, and a GPU if one is asked for."""
        if options.checkpoint is None:
            return "it needs the checkpoint the bundle was made from; pass --checkpoint"
        try:
            kind = torch.device(options.device).type
        except RuntimeError:
            kind = "unknown"
        if kind not in ("cpu", "cuda"):
            return f"device {options.device!r}; it runs on 'cpu' and 'cuda'"
        if kind == "cuda" and not torch.cuda.is_available():
            return f"device {options.device!r}, but PyTorch sees no GPU"
        return None

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
        net = network_from(found, source.weights)
        grid = time_grid(self.variant.steps)
        self._sampler = Sampler(net, grid, self.spec.is_image).to(self.device).eval()
        self.precision = "fp32"

    def close(self) -> None:
        """Free the network."""
        self._sampler = None

    @torch.inference_mode()
    def _run(
        self,
        noise: NDArray[np.float32],
        label: NDArray[np.int64] | None,
        guidance: NDArray[np.float32] | None,
    ) -> Output:
        if self._sampler is None:
            raise EngineError("engine used outside its with-block")
        if self.options.threads is not None:
            # the setting is the process's: two of these engines may take turns
            torch.set_num_threads(self.options.threads)
        inputs = [
            None if a is None else torch.from_numpy(a).to(self.device)
            for a in (noise, label, guidance)
        ]
        found = [o.cpu().numpy() for o in self._sampler(*inputs)]
        return Output(sample=found[0], image=found[1] if self.spec.is_image else None)

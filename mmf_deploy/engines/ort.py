"""ONNX Runtime on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmf_deploy.engines.base import Engine, EngineOptions, Output
from mmf_deploy.errors import EngineError, require


class OnnxRuntimeEngine(Engine):
    """Runs the variant's ONNX file with ONNX Runtime's CPU provider.

    The graph has a dynamic batch, so nothing is padded.
    """

    name = "onnxruntime"
    _session: Any = None

    @classmethod
    def unavailable(cls, options: EngineOptions) -> str | None:
        """Only the CPU is offered."""
        if options.device != "cpu":
            return f"device {options.device!r}; it runs on 'cpu'"
        return None

    def load(self) -> None:
        """Create the session.

        Raises:
            EngineError: ONNX Runtime refuses the file.
        """
        ort = require("onnxruntime", "cpu")
        settings = ort.SessionOptions()
        if self.options.threads is not None:
            settings.intra_op_num_threads = self.options.threads
        # spinning workers would take the core that encodes and answers the previous batch
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        settings.log_severity_level = 3
        path = self.bundle.file(self.variant)
        try:
            self._session = ort.InferenceSession(
                str(path), settings, providers=["CPUExecutionProvider"]
            )
        except Exception as e:  # onnxruntime raises classes of its own without a common base
            raise EngineError(f"{path}: ONNX Runtime cannot load it: {e}") from e
        self._outputs = [o.name for o in self._session.get_outputs()]

    def close(self) -> None:
        """Free the session."""
        self._session = None

    def _run(
        self,
        noise: NDArray[np.float32],
        label: NDArray[np.int64] | None,
        guidance: NDArray[np.float32] | None,
    ) -> Output:
        if self._session is None:
            raise EngineError("engine used outside its with-block")
        feeds: dict[str, NDArray[Any]] = {"noise": noise}
        if label is not None:
            feeds["label"] = label
        if guidance is not None:
            feeds["guidance"] = guidance
        try:
            found = dict(zip(self._outputs, self._session.run(None, feeds), strict=True))
        except Exception as e:
            raise EngineError(f"ONNX Runtime failed on a batch of {len(noise)}: {e}") from e
        return Output(sample=found["sample"], image=found.get("image"))

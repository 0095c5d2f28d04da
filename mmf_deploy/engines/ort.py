"""ONNX Runtime on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmf_deploy.engines.base import Engine, EngineOptions, Output
from mmf_deploy.errors import EngineError, require

SMALL_GRAPH_BYTES = 4 << 20
"""Below this size one thread is the default. On the 0.2M-parameter digits network (0.8 MB) a second
one gains nothing at batch 1 (`mmf-bench --threads 1,2` shows it), and would take the core that
encodes and answers."""


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
        path = self.bundle.file(self.variant)
        if not path.is_file():
            raise EngineError(f"{path}: gone since the bundle was verified; load it again")
        if self.options.threads is not None:
            settings.intra_op_num_threads = self.options.threads
        elif path.stat().st_size < SMALL_GRAPH_BYTES:
            settings.intra_op_num_threads = 1
        # between the nodes of a run workers wait actively, which is faster; after its end they
        # must not: they would take the core that encodes and answers
        settings.add_session_config_entry("session.intra_op.allow_spinning", "1")
        settings.add_session_config_entry("session.force_spinning_stop", "1")
        settings.log_severity_level = 3
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

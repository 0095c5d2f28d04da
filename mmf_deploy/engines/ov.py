"""OpenVINO on the CPU: fp32, bf16 and int8 with oneDNN's kernels."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmf_deploy.engines.base import Engine, EngineOptions, Output
from mmf_deploy.errors import EngineError, require

HINTS = {"fp32": "f32", "fp16": "f32", "int8": "f32", "bf16": "bf16"}
"""What to compute in outside quantised layers. Never left to OpenVINO, which takes bf16 by
default on a CPU that has it, whatever the file says."""


class OpenVinoEngine(Engine):
    """Runs the variant's ONNX file with OpenVINO's CPU plugin.

    Batch 1, where latency counts most, has a compiled model of its own with static shapes
    (a few per cent faster); one with a dynamic batch serves all other sizes. Nothing is padded.
    """

    name = "openvino"
    _single: Any = None
    _dynamic: Any = None

    @classmethod
    def unavailable(cls, options: EngineOptions) -> str | None:
        """Only the CPU is offered, and only where the package is installed."""
        if options.device not in (None, "cpu"):
            return f"device {options.device!r}; it runs on 'cpu'"
        if importlib.util.find_spec("openvino") is None:
            return 'the package openvino is not installed: pip install "mmf-deploy[openvino]"'
        return None

    def load(self) -> None:
        """Compile the graph.

        Raises:
            EngineError: OpenVINO refuses the file.
        """
        ov = require("openvino", "openvino")
        path = self.bundle.file(self.variant)
        if not path.is_file():
            raise EngineError(f"{path}: gone since the bundle was verified; load it again")
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": HINTS[self.precision],
            "PERFORMANCE_HINT": "LATENCY",
        }
        if self.options.threads is not None:
            settings["INFERENCE_NUM_THREADS"] = self.options.threads
        try:
            core = ov.Core()
            model = core.read_model(str(path))
            self._inputs = [i.any_name for i in model.inputs]
            self._outputs = ["sample", "image"] if self.spec.is_image else ["sample"]
            self._dynamic = core.compile_model(model, "CPU", settings).create_infer_request()
            # reshaping changes the model in place: the dynamic one is compiled by now
            model.reshape({i.any_name: [1, *list(i.partial_shape)[1:]] for i in model.inputs})
            self._single = core.compile_model(model, "CPU", settings).create_infer_request()
        except RuntimeError as e:
            self.close()
            raise EngineError(f"{path}: OpenVINO cannot load it: {_short(e)}") from e

    def close(self) -> None:
        """Free the compiled models."""
        self._single = self._dynamic = None

    def _run(
        self,
        noise: NDArray[np.float32],
        label: NDArray[np.int64] | None,
        guidance: NDArray[np.float32] | None,
    ) -> Output:
        request = self._single if len(noise) == 1 else self._dynamic
        if request is None:
            raise EngineError("engine used outside its with-block")
        given = {"noise": noise, "label": label, "guidance": guidance}
        try:
            request.infer({name: given[name] for name in self._inputs})
        except RuntimeError as e:
            raise EngineError(f"OpenVINO failed on a batch of {len(noise)}: {_short(e)}") from e
        # copies: the tensors belong to the request, which the next call overwrites
        found = {name: request.get_tensor(name).data.copy() for name in self._outputs}
        return Output(sample=found["sample"], image=found.get("image"))


def _short(error: Exception) -> str:
    """The last line of OpenVINO's message, which says what; the others say where in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__

"""One ONNX graph in ONNX Runtime or OpenVINO on the CPU, run again and again on the same inputs.

Nothing of the engines' care is here (buckets, labels, copies): what the library itself takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mmf_deploy.errors import EngineError, require

Arrays = Mapping[str, NDArray[Any]]


class GraphRun(Protocol):
    """Opened in the process that runs it; what it is made of can be sent there."""

    def open(self) -> None:
        """Load the graph."""

    def run(self) -> None:
        """Compute the outputs once."""

    def output(self) -> NDArray[Any]:
        """The first output of the last run."""

    def close(self) -> None:
        """Free it."""


class OnnxRuntimeRun:
    """A graph in ONNX Runtime.

    Args:
        model: an ONNX file, or what is in one.
        feeds: its inputs, by name.
    """

    def __init__(self, model: Path | bytes, feeds: Arrays, threads: int) -> None:
        self._model, self._feeds, self._threads = model, feeds, threads
        self._session: Any = None

    def open(self) -> None:
        """Create the session.

        Raises:
            EngineError: ONNX Runtime refuses the graph.
        """
        ort = require("onnxruntime", "cpu")
        settings = ort.SessionOptions()
        settings.log_severity_level = 3
        settings.intra_op_num_threads = self._threads
        # after a run its threads must not keep the cores from the next in turn
        settings.add_session_config_entry("session.force_spinning_stop", "1")
        source = self._model if isinstance(self._model, bytes) else str(self._model)
        try:
            self._session = ort.InferenceSession(
                source, settings, providers=["CPUExecutionProvider"]
            )
        except Exception as e:  # onnxruntime raises classes of its own without a common base
            raise EngineError(f"ONNX Runtime cannot load the graph: {_line(e)}") from e
        self._binding = self._session.io_binding()
        for name, value in self._feeds.items():
            self._binding.bind_cpu_input(name, value)
        for output in self._session.get_outputs():
            self._binding.bind_output(output.name)

    def run(self) -> None:
        """Compute the outputs once."""
        self._session.run_with_iobinding(self._binding)

    def output(self) -> NDArray[Any]:
        """The first output of the last run."""
        return np.array(self._binding.copy_outputs_to_cpu()[0])

    def close(self) -> None:
        """Free the session."""
        self._session = self._binding = None


class OpenVinoRun:
    """A graph in OpenVINO.

    Args:
        model: an ONNX file, or what is in one.
        feeds: its inputs, by name.
        hint: what to compute in where nothing is quantised: f32, f16 or bf16.
    """

    def __init__(self, model: Path | bytes, feeds: Arrays, threads: int, hint: str) -> None:
        self._model, self._feeds, self._threads, self._hint = model, feeds, threads, hint
        self._request: Any = None

    def open(self) -> None:
        """Compile the graph.

        Raises:
            EngineError: OpenVINO refuses the graph.
        """
        ov = require("openvino", "openvino")
        settings = {
            "INFERENCE_PRECISION_HINT": self._hint,
            "INFERENCE_NUM_THREADS": self._threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        source = self._model if isinstance(self._model, bytes) else str(self._model)
        try:
            model = ov.Core().read_model(source)
            model.reshape({name: list(value.shape) for name, value in self._feeds.items()})
            self._request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
            for name, value in self._feeds.items():
                self._request.set_tensor(name, ov.Tensor(value, shared_memory=True))
        except RuntimeError as e:
            raise EngineError(f"OpenVINO cannot load the graph: {_line(e)}") from e

    def run(self) -> None:
        """Compute the outputs once."""
        self._request.infer()

    def output(self) -> NDArray[Any]:
        """The first output of the last run."""
        return np.array(self._request.get_output_tensor(0).data)

    def close(self) -> None:
        """Free the compiled model."""
        self._request = None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[-300:] or type(error).__name__

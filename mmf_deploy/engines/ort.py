"""ONNX Runtime: on the CPU, and on an NVIDIA GPU (ort_cuda.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmf_deploy import files
from mmf_deploy.engines import ort_cuda, ort_probe
from mmf_deploy.engines.base import Engine, EngineOptions, Output
from mmf_deploy.engines.buckets import BUCKETS, GPU_BUCKETS
from mmf_deploy.engines.gpu_facts import gpu_facts
from mmf_deploy.errors import EngineError, require

SMALL_GRAPH_BYTES = 4 << 20
"""Below this size one thread is the default. On the 0.2M-parameter digits network (0.8 MB) a second
one gains nothing at batch 1 (`mmf-bench --threads 1,2` shows it), and would take the core that
encodes and answers."""


class OnnxRuntimeEngine(Engine):
    """Runs the variant's ONNX file with ONNX Runtime.

    On the CPU the graph has a dynamic batch, so nothing is padded, and there is one mode. On
    "cuda" every bucket has buffers of its own: "default" replays a CUDA graph, "eager" launches
    kernel by kernel, "tensorrt" leaves the graph to TensorRT 10.
    """

    name = "onnxruntime"
    modes = ("default", "eager", "tensorrt")
    _session: Any = None
    _bound: ort_cuda.BoundSession | None = None

    @classmethod
    def unavailable(cls, options: EngineOptions) -> str | None:
        """The CPU always; an NVIDIA GPU with its driver, its libraries and the right package."""
        mode = options.mode or cls.modes[0]
        if options.device in (None, "cpu"):
            return None if mode == "default" else f"mode {mode!r} is for device 'cuda'"
        index = ort_cuda.device_index(options.device)
        if index is None:
            return f"device {options.device!r}; it runs on 'cpu', 'cuda' and 'cuda:1'"
        return ort_probe.gpu_problem(index, tensorrt=mode == "tensorrt")

    def _own_buckets(self) -> tuple[int, ...]:
        # TensorRT builds for the whole range beforehand
        large = self.device.startswith("cuda") and self.mode != "tensorrt"
        return GPU_BUCKETS if large else BUCKETS

    def load(self) -> None:
        """Create the session.

        Raises:
            EngineError: ONNX Runtime refuses the file, or the GPU.
        """
        ort = require("onnxruntime", "cpu")
        path = self.bundle.file(self.variant)
        if not path.is_file():
            raise EngineError(f"{path}: gone since the bundle was verified; load it again")
        settings = ort.SessionOptions()
        settings.log_severity_level = 3
        if self.variant.form.get("precision") == "qdq-s8s8":
            # as the file says: rewriting it to unsigned for a CPU, ONNX Runtime trips over opset 21
            settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        index = ort_cuda.device_index(self.device)
        if index is None:
            self._load_on_cpu(ort, path, settings)
        else:
            self._load_on_gpu(ort, path, settings, index)

    def _load_on_cpu(self, ort: Any, path: Path, settings: Any) -> None:
        if self.options.threads is not None:
            settings.intra_op_num_threads = self.options.threads
        elif path.stat().st_size < SMALL_GRAPH_BYTES:
            settings.intra_op_num_threads = 1
        # between the nodes of a run workers wait actively, which is faster; after its end they
        # must not: they would take the core that encodes and answers
        settings.add_session_config_entry("session.intra_op.allow_spinning", "1")
        settings.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self._session = ort.InferenceSession(
                str(path), settings, providers=["CPUExecutionProvider"]
            )
        except Exception as e:  # onnxruntime raises classes of its own without a common base
            raise EngineError(f"{path}: ONNX Runtime cannot load it: {e}") from e

    def _load_on_gpu(self, ort: Any, path: Path, settings: Any, index: int) -> None:
        self.about = gpu_facts(index)
        graphs = self.mode == "default"
        providers = [ort_cuda.cuda_provider(index, self.precision, graphs)]
        if self.mode == "tensorrt":
            cache = ort_cuda.cache_directory(self.options.cache, files.sha256(path))
            cache.mkdir(parents=True, exist_ok=True)
            shapes = self._sample_shapes()
            largest = self.buckets[-1]
            first = ort_cuda.tensorrt_provider(index, self.precision, cache, shapes, largest)
            providers.insert(0, first)
        self._session = ort_cuda.open_session(ort, path, settings, providers)
        place = ("cuda", index)
        self._bound = ort_cuda.BoundSession(ort, self._session, self.buckets, place, graphs)

    def _sample_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one sample's part of every input of the graph."""
        shapes: dict[str, tuple[int, ...]] = {"noise": self.spec.shape}
        if self.spec.conditional:
            shapes["label"] = ()
        if self.spec.guided:
            shapes["guidance"] = ()
        return shapes

    def close(self) -> None:
        """Free the session and its buffers."""
        self._bound = None
        self._session = None

    @property
    def pads(self) -> bool:
        """On CUDA every bucket has buffers of its own; on the CPU the batch is dynamic."""
        return self.device.startswith("cuda")

    def _run(
        self,
        noise: NDArray[np.float32],
        label: NDArray[np.int64] | None,
        guidance: NDArray[np.float32] | None,
    ) -> Output:
        names = ["sample", "image"] if self.spec.is_image else ["sample"]
        found = self._fetch(names, noise, label, guidance)
        return Output(sample=found["sample"], image=found.get("image"))

    def _trajectory(
        self,
        noise: NDArray[np.float32],
        label: NDArray[np.int64] | None,
        guidance: NDArray[np.float32] | None,
    ) -> NDArray[np.float32]:
        points: NDArray[np.float32] = self._fetch(["trajectory"], noise, label, guidance)[
            "trajectory"
        ]
        return points

    def _fetch(
        self,
        names: list[str],
        noise: NDArray[np.float32],
        label: NDArray[np.int64] | None,
        guidance: NDArray[np.float32] | None,
    ) -> dict[str, NDArray[Any]]:
        """The outputs of those names; on a GPU all there are."""
        if self._session is None:
            raise EngineError("engine used outside its with-block")
        feeds: dict[str, NDArray[Any]] = {"noise": noise}
        if label is not None:
            feeds["label"] = label
        if guidance is not None:
            feeds["guidance"] = guidance
        try:
            if self._bound is not None:
                return self._bound.run(feeds)
            return dict(zip(names, self._session.run(names, feeds), strict=True))
        except Exception as e:
            raise EngineError(f"ONNX Runtime failed on a batch of {len(noise)}: {e}") from e

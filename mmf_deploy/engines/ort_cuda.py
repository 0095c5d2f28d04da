"""ONNX Runtime on an NVIDIA GPU: providers, and runs with fixed device buffers.

CUDA graphs replay what was captured at the addresses it was captured with, so every bucket
has buffers of its own, bound once; smaller batches are padded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmf_deploy.engines.buckets import bucket_for, padded
from mmf_deploy.errors import EngineError

CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
DTYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(uint8)": np.uint8}
TYPICAL = 8
"""Batch that TensorRT chooses its kernels for; it allows the whole range of buckets."""

Provider = tuple[str, dict[str, str]]


def device_index(device: str | None) -> int | None:
    """0 for "cuda", 2 for "cuda:2", None for anything else."""
    kind, _, index = (device or "").partition(":")
    if kind != "cuda" or (device != "cuda" and not (index.isascii() and index.isdigit())):
        return None
    return int(index or 0)


def cuda_provider(device: int, precision: str, graphs: bool) -> Provider:
    """The CUDA provider and its options.

    Args:
        graphs: capture a CUDA graph for every ``gpu_graph_id``.
    """
    return CUDA, {
        "device_id": str(device),
        # the shapes are few and fixed: the search for the fastest algorithm is paid once each
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        # fp32 means fp32: TF32 rounds the factors of products to 10 bits
        "use_tf32": "0" if precision == "fp32" else "1",
        "enable_cuda_graph": "1" if graphs else "0",
    }


def tensorrt_provider(
    device: int, precision: str, cache: Path, shapes: Mapping[str, Sequence[int]], largest: int
) -> Provider:
    """The TensorRT provider and its options.

    Args:
        cache: directory for what TensorRT builds; of this one graph, since the provider names
            its files by the graph's structure and not by its weights.
        shapes: of one sample, by input.
        largest: batch.
    """

    def profile(batch: int) -> str:
        return ",".join(f"{k}:{'x'.join(map(str, (batch, *s)))}" for k, s in shapes.items())

    return TENSORRT, {
        "device_id": str(device),
        "trt_fp16_enable": "1" if precision == "fp16" else "0",
        "trt_bf16_enable": "1" if precision == "bf16" else "0",
        "trt_int8_enable": "1" if precision == "int8" else "0",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(cache),
        "trt_profile_min_shapes": profile(1),
        "trt_profile_opt_shapes": profile(min(TYPICAL, largest)),
        "trt_profile_max_shapes": profile(largest),
    }


def cache_directory(given: Path | None, digest: str) -> Path:
    """Where TensorRT's files for a graph lie: below ``given`` or the user's cache directory.

    Args:
        digest: SHA-256 of the graph's file, weights included.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (given or home / "mmf-deploy") / "onnxruntime-tensorrt" / digest[:16]


def open_session(ort: Any, path: Path, settings: Any, providers: Sequence[Provider]) -> Any:
    """A session on the first of the providers, never on a lesser one.

    Raises:
        EngineError: ONNX Runtime refuses the file, or went on without the provider.
    """
    wanted = providers[0][0]
    try:
        session = ort.InferenceSession(
            str(path), settings, providers=list(providers), enable_fallback=0
        )
    except Exception as e:  # onnxruntime raises classes of its own without a common base
        raise EngineError(f"{path}: ONNX Runtime cannot load it with {wanted}: {_line(e)}") from e
    found = session.get_providers()
    if wanted not in found:
        raise EngineError(
            f"ONNX Runtime left out {wanted} and would run on {', '.join(found)}; "
            "its log above says which library it misses"
        )
    return session


def _line(error: Exception) -> str:
    """ONNX Runtime's message in one line, without the C++ functions it went through."""
    text = " ".join(str(error).split()).rpartition(" : FAIL : ")[2]
    return text[-300:] or type(error).__name__


@dataclass(frozen=True)
class _Slot:
    """One bucket: its buffers, bound once, and the options of its runs."""

    binding: Any
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    options: Any


class BoundSession:
    """Runs a session with buffers that stay where they are, one set a bucket.

    A bucket is prepared when it is first needed; with CUDA graphs, its first run captures.

    Args:
        ort: the module onnxruntime.
        place: kind and index of the device of the buffers.
        graphs: whether the session captures CUDA graphs.
    """

    def __init__(
        self, ort: Any, session: Any, buckets: Sequence[int], place: tuple[str, int], graphs: bool
    ) -> None:
        self._ort, self._session = ort, session
        self._buckets, self._place, self._graphs = buckets, place, graphs
        self._slots: dict[int, _Slot] = {}

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Outputs by name, of as many rows as the inputs; they belong to the caller."""
        count = len(next(iter(feeds.values())))
        bucket = bucket_for(count, self._buckets)
        slot = self._slots.get(bucket) or self._prepare(bucket)
        for name, buffer in slot.inputs.items():
            buffer.update_inplace(padded(feeds[name], bucket))
        self._session.run_with_iobinding(slot.binding, slot.options)
        return {name: np.array(buffer.numpy()[:count]) for name, buffer in slot.outputs.items()}

    def _prepare(self, bucket: int) -> _Slot:
        binding = self._session.io_binding()
        inputs = {v.name: self._buffer(v, bucket) for v in self._session.get_inputs()}
        outputs = {v.name: self._buffer(v, bucket) for v in self._session.get_outputs()}
        for name, buffer in inputs.items():
            binding.bind_ortvalue_input(name, buffer)
        for name, buffer in outputs.items():
            binding.bind_ortvalue_output(name, buffer)
        options = self._ort.RunOptions()
        if self._graphs:
            # one graph an id; 0 is not for users
            options.add_run_config_entry("gpu_graph_id", str(bucket))
        self._slots[bucket] = _Slot(binding, inputs, outputs, options)
        return self._slots[bucket]

    def _buffer(self, value: Any, bucket: int) -> Any:
        shape = [bucket, *value.shape[1:]]
        return self._ort.OrtValue.ortvalue_from_shape_and_type(
            shape, DTYPES[value.type], *self._place
        )

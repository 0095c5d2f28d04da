"""Large matrix products in every library at hand: what the arithmetic rate is measured with."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mmf_deploy.errors import EngineError, require

from . import plain_graphs
from .graph_runs import GraphRun, OnnxRuntimeRun, OpenVinoRun

CPU_EDGE, GPU_EDGE = 768, 8192
"""Rows and columns: on the plateau, but a core's share stays in its caches, so that others who use
the last level slow it down little."""


def edge_for(device: str, threads: int) -> int:
    """Rows and columns of a product that takes about as long whatever the number of threads."""
    if device != "cpu":
        return GPU_EDGE
    return round(CPU_EDGE * math.cbrt(threads) / 128) * 128


class Product(ABC):
    """c = a b, two square matrices; b counts as a weight, and libraries may rearrange it first.

    Use as a context manager, or call ``open`` and ``close``. Opening may set the number of
    threads of a library for the whole process.

    Args:
        stands_in: it is asked for another dtype than its own.

    Attributes:
        library: what computes it, unique among the candidates for a dtype.
        dtype: of the arithmetic.
        flops: of one product.
    """

    name = ""
    """Of the library."""
    probe_edge = 512
    """Of a small product, whose time says whether a large one is worth waiting for."""
    needs: tuple[str, ...] = ()
    """Packages."""

    def __init__(
        self,
        dtype: str,
        threads: int,
        device: str = "cpu",
        edge: int | None = None,
        stands_in: bool = False,
    ) -> None:
        self.dtype, self.threads, self.device = dtype, threads, device
        self.stands_in = stands_in
        self.library = f"{self.name} in {dtype}" if stands_in else self.name
        self.edge = edge or edge_for(device, threads)
        self.flops = 2.0 * self.edge**3

    def operands(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """a in [-2, 2) and b in [-1, 1), the same every time."""
        random = np.random.default_rng(0)
        a, b = random.random((2, self.edge, self.edge), np.float32)
        return 4 * a - 2, 2 * b - 1

    def of_edge(self, edge: int) -> Self:
        """The same of another size, not opened."""
        return type(self)(self.dtype, self.threads, self.device, edge, self.stands_in)

    def open(self) -> None:
        """Prepare the operands and compute the product once.

        Raises:
            EngineError: this library cannot do it here.
            DependencyError: a package is missing.
        """
        try:
            self._open()
            self.run()
        except (RuntimeError, AttributeError) as e:
            self.close()
            text = " ".join(str(e).split())[:200]
            raise EngineError(f"{self.library} cannot multiply in {self.dtype}: {text}") from e

    @abstractmethod
    def _open(self) -> None: ...

    @abstractmethod
    def run(self) -> None:
        """Compute one product, to its end."""

    @abstractmethod
    def result(self) -> NDArray[Any]:
        """c of the last run; quantised sums in whatever form the library gives them."""

    @abstractmethod
    def close(self) -> None:
        """Free the operands."""

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class NumpyProduct(Product):
    """NumPy's BLAS, whose threads are set through threadpoolctl."""

    name, needs = "numpy", ("threadpoolctl",)

    def _open(self) -> None:
        limits = require("threadpoolctl", "train").threadpool_limits
        self._limits = limits(self.threads, user_api="blas")
        self._a, self._b = self.operands()
        self._c = np.empty_like(self._a)

    def run(self) -> None:
        """Compute one product."""
        np.matmul(self._a, self._b, out=self._c)

    def result(self) -> NDArray[Any]:
        """c, float32."""
        return self._c

    def close(self) -> None:
        """Give BLAS its threads back."""
        if hasattr(self, "_limits"):
            self._limits.restore_original_limits()
            del self._limits


class GraphProduct(Product):
    """A library that runs ONNX graphs."""

    _graph: GraphRun

    @abstractmethod
    def _make(self, a: NDArray[np.float32], b: NDArray[np.float32]) -> GraphRun: ...

    def _model(self, b: NDArray[np.float32], dtype: str) -> bytes:
        return plain_graphs.matmul(self.edge, b, dtype)

    def _open(self) -> None:
        self._graph = self._make(*self.operands())
        self._graph.open()

    def run(self) -> None:
        """Compute one product."""
        self._graph.run()

    def result(self) -> NDArray[Any]:
        """c."""
        return self._graph.output()

    def close(self) -> None:
        """Free the graph."""
        if hasattr(self, "_graph"):
            self._graph.close()


class OnnxRuntimeProduct(GraphProduct):
    """ONNX Runtime's own kernels; int8 is u8 by s8 into int32."""

    name, needs = "onnxruntime", ("onnxruntime", "onnx")

    def _make(self, a: NDArray[np.float32], b: NDArray[np.float32]) -> GraphRun:
        integer = self.dtype == "int8"
        model = self._model(b, "integer" if integer else "fp32")
        feeds = {"a": plain_graphs.quantised(a) if integer else a}
        return OnnxRuntimeRun(model, feeds, self.threads)


class OpenVinoProduct(GraphProduct):
    """OpenVINO, that is oneDNN; int8 is u8 by s8, rounded to u8."""

    name, needs = "openvino", ("openvino", "onnx")

    def _make(self, a: NDArray[np.float32], b: NDArray[np.float32]) -> GraphRun:
        integer = self.dtype == "int8"
        model = self._model(b, "int8" if integer else "fp32")
        feeds = {"a": plain_graphs.quantised(a) if integer else a}
        hint = "bf16" if self.dtype == "bf16" else "f32"
        return OpenVinoRun(model, feeds, self.threads, hint)


class TorchProduct(Product):
    """PyTorch, on the CPU or a GPU; int8 is s8 by s8 into int32."""

    name, needs = "torch", ("torch",)

    def _open(self) -> None:
        torch = require("torch", "train")
        if self.device == "cpu":
            torch.set_num_threads(self.threads)
        else:
            torch.set_float32_matmul_precision("high" if self.dtype == "tf32" else "highest")
        names = {"bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}
        kind = names.get(self.dtype, torch.float32)
        a, b = map(torch.from_numpy, self._factors())
        self._a, self._b = a.to(self.device, kind), b.to(self.device, kind)
        integer = self.dtype == "int8"
        self._multiply, into = (torch._int_mm, torch.int32) if integer else (torch.mm, kind)
        self._c = torch.empty((self.edge, self.edge), dtype=into, device=self.device)
        self._wait = None if self.device == "cpu" else torch.cuda.synchronize

    def _factors(self) -> tuple[NDArray[Any], NDArray[Any]]:
        a, b = self.operands()
        if self.dtype != "int8":
            return a, b
        signed = (plain_graphs.quantised(a).astype(np.int16) - 128).astype(np.int8)
        return signed, plain_graphs.quantised_weight(b)

    def run(self) -> None:
        """Compute one product and wait for its end."""
        self._multiply(self._a, self._b, out=self._c)
        if self._wait is not None:
            self._wait()

    def result(self) -> NDArray[Any]:
        """c, float32 or int32."""
        whole = self._c if self.dtype == "int8" else self._c.float()
        found: NDArray[Any] = whole.cpu().numpy()
        return found

    def close(self) -> None:
        """Free the operands."""
        self._a = self._b = self._c = None

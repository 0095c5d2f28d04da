"""A large 3×3 convolution in libraries that run graphs: some compute it faster than a product."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from . import plain_graphs
from .products import GraphProduct, OnnxRuntimeProduct, OpenVinoProduct

CHANNELS = 256
SIDE = 32
"""Of its image for one thread: about the arithmetic of a large product, and within the caches."""


class GraphConvolution(GraphProduct):
    """c of as many channels as a and of its size; b is the weight, ``edge`` the side of the image.

    Products with padding zeros do not count, since a library may leave them out.
    """

    probe_edge = 16

    def __init__(
        self,
        dtype: str,
        threads: int,
        device: str = "cpu",
        edge: int | None = None,
        stands_in: bool = False,
    ) -> None:
        side = edge or 4 * round(SIDE * math.sqrt(threads) / 4)
        super().__init__(dtype, threads, device, side, stands_in)
        self.flops = 2.0 * CHANNELS**2 * (3 * side - 2) ** 2

    def operands(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """a in [-2, 2) and b in [-1, 1), the same every time."""
        random = np.random.default_rng(0)
        a = random.random((1, CHANNELS, self.edge, self.edge), np.float32)
        b = random.random((CHANNELS, CHANNELS, 3, 3), np.float32)
        return 4 * a - 2, 2 * b - 1

    def _model(self, b: NDArray[np.float32], dtype: str) -> bytes:
        # no library convolves into whole sums
        return plain_graphs.conv(CHANNELS, self.edge, b, "fp32" if dtype == "fp32" else "int8")


class OnnxRuntimeConvolution(GraphConvolution, OnnxRuntimeProduct):
    """ONNX Runtime's own kernels; int8 is u8 by s8, rounded to u8."""

    name = "onnxruntime convolution"


class OpenVinoConvolution(GraphConvolution, OpenVinoProduct):
    """OpenVINO, that is oneDNN; int8 is u8 by s8, rounded to u8."""

    name = "openvino convolution"

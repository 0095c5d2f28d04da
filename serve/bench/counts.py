"""FLOPs and bytes of an ONNX graph at one batch size.

What is counted as arithmetic stands in flops.py. A node that only has constants as inputs is
computed once, when an engine loads the graph, and so is not listed; what it makes is a weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmf_deploy.errors import ConfigError, EngineError, nearest

from .flops import RULES, Flops, flops
from .onnx_shapes import Graph, read_graph

SIZES = {"fp64": 8, "fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "fp8": 1, "int8": 1}
"""Bytes of one value, by the dtype of the arithmetic."""
FLOATS = ("fp64", "fp32", "tf32", "fp16", "bf16")
NAMES = {"double": "fp64", "float": "fp32", "float16": "fp16", "bfloat16": "bf16"}
INTEGER_OPS = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")
MOVES = ("Reshape", "Transpose", "Identity", "Squeeze", "Unsqueeze", "Flatten")
"""They leave values as they are, so what was quantised before them still is."""


@dataclass(frozen=True)
class NodeCount:
    """One node.

    Attributes:
        dtype: of its arithmetic as it is executed; of its result where there is none.
        flops: two per multiply-add, as papers and profilers count them.
        padding_flops: of them, what need not be computed (``Flops.padding``).
        bytes_in, bytes_out: of the values that it reads and writes; weights are not among them.
        weight_bytes: of the constants that it reads, as stored.
    """

    name: str
    op: str
    dtype: str
    flops: float
    padding_flops: float
    bytes_in: int
    bytes_out: int
    weight_bytes: int


@dataclass(frozen=True)
class Counts:
    """A graph.

    Attributes:
        weight_bytes: of all constants that are used, each once, as stored.
        read_bytes: the same in the dtype that they are multiplied in: what is read at run time.
        io_bytes: of the graph's inputs and outputs.
    """

    batch: int
    nodes: tuple[NodeCount, ...] = field(repr=False)
    weight_bytes: int
    read_bytes: int
    io_bytes: int

    @property
    def flops(self) -> dict[str, float]:
        """By the dtype of the arithmetic; as papers and profilers count them."""
        return self._by_dtype({id(n): n.flops for n in self.nodes})

    @property
    def needed_flops(self) -> dict[str, float]:
        """By the dtype of the arithmetic; without those that a kernel may leave out."""
        return self._by_dtype({id(n): n.flops - n.padding_flops for n in self.nodes})

    @property
    def activation_bytes(self) -> int:
        """Read and written by all nodes, as if nothing was fused."""
        return sum(n.bytes_in + n.bytes_out for n in self.nodes)

    def _by_dtype(self, amount: Mapping[int, float]) -> dict[str, float]:
        found: dict[str, float] = {}
        for node in self.nodes:
            if node.flops:
                found[node.dtype] = found.get(node.dtype, 0.0) + amount[id(node)]
        return found


def count(path: Path, batch: int = 1, compute: str | None = None) -> Counts:
    """FLOPs and bytes of one run of a graph.

    Args:
        path: an ONNX file with a symbolic batch; one with a fixed batch is counted as it is.
        batch: number of samples.
        compute: dtype that the engine does floating-point arithmetic in, whatever the file says
            (an fp32 file run in bf16); quantised nodes keep theirs.
    Raises:
        ConfigError: no such ``compute``.
        EngineError: not an ONNX graph, a shape that cannot be inferred, or an operator whose
            arithmetic is not known.
        DependencyError: the package onnx is missing.
    """
    if compute not in (None, *FLOATS):
        raise ConfigError(
            f"compute {compute!r}{nearest(str(compute), FLOATS)}: expected {', '.join(FLOATS)}"
        )
    try:
        state = path.stat()
    except OSError as e:
        raise EngineError(f"{path}: cannot be read ({e.strerror}); expected an ONNX file") from None
    return _count(path, (state.st_mtime_ns, state.st_size), batch, compute)


@lru_cache(maxsize=64)
def _count(path: Path, version: tuple[int, int], batch: int, compute: str | None) -> Counts:
    graph = read_graph(path, batch)
    nodes = []
    read: dict[tuple[str, ...], int] = {}
    for node in graph.nodes:
        dtype = _dtype(graph, node, compute)
        try:
            amount = _flops(graph, node)
        except EngineError as e:
            raise EngineError(f"{path}: {_title(node)}: {e}") from None
        for k, name in enumerate(node.input):
            if name in graph.weights:
                factor = amount.total and k in (0, RULES[node.op_type][1])
                size = SIZES[dtype] if factor and dtype in SIZES else graph.item_bytes(name)
                read.setdefault(graph.weights[name], int(graph.elements(name) * size))
        weights = {root for name in node.input for root in graph.weights.get(name, ())}
        nodes.append(
            NodeCount(
                name=node.name,
                op=node.op_type,
                dtype=dtype,
                flops=amount.total,
                padding_flops=amount.padding,
                bytes_in=sum(graph.nbytes(n) for n in node.input if n and n not in graph.weights),
                bytes_out=sum(graph.nbytes(n) for n in node.output if n),
                weight_bytes=sum(graph.nbytes(root) for root in weights),
            )
        )
    used = {root for roots in read for root in roots}
    return Counts(
        batch=batch,
        nodes=tuple(nodes),
        weight_bytes=sum(graph.nbytes(root) for root in used),
        read_bytes=sum(read.values()),
        io_bytes=sum(graph.nbytes(name) for name in (*graph.inputs, *graph.outputs)),
    )


def _flops(graph: Graph, node: Any) -> Flops:
    shapes = [graph.shapes[name] if name else () for name in node.input]
    return flops(node.op_type, shapes, graph.shapes[node.output[0]], graph.attributes(node))


def _title(node: Any) -> str:
    return f"node {node.name!r} ({node.op_type})" if node.name else f"a node {node.op_type}"


def _dtype(graph: Graph, node: Any, compute: str | None) -> str:
    """Of the arithmetic as it is executed; of the first output where there is none."""
    if node.op_type not in RULES:
        found = graph.dtypes[node.output[0]]
        return NAMES.get(found, found)
    if node.op_type in INTEGER_OPS:
        return "int8"
    stored = {_quantised(graph, name) for name in node.input[:2]}
    if stored == {"int8"} or stored == {"fp8"}:
        return str(stored.pop())
    found = NAMES.get(graph.dtypes[node.input[0]], graph.dtypes[node.input[0]])
    return compute if compute is not None and found in FLOATS else found


def _quantised(graph: Graph, name: str) -> str | None:
    """int8 or fp8 if a tensor comes out of a DequantizeLinear of such values."""
    node = graph.producers.get(name)
    while node is not None and node.op_type in MOVES:
        node = graph.producers.get(node.input[0])
    if node is None or node.op_type != "DequantizeLinear":
        return None
    stored = graph.dtypes[node.input[0]]
    if stored in ("int8", "uint8"):
        return "int8"
    return "fp8" if stored.startswith("float8") else None

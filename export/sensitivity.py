"""Which layers to quantise: as many as a floor of quality allows, the costliest errors last.

Every layer is quantised alone and its noise measured. Noise of different layers adds up almost
independently, so the layers with the most noise for each multiplication saved are the first
to stay in fp32, and a bisection over that order finds the largest set above the floor.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from mmf_deploy.engines.ort import SMALL_GRAPH_BYTES
from mmf_deploy.errors import ParityError, require

from .parity import psnr
from .quantize import Layer, quantise
from .reference import Reference

SEEDS_ALONE = 8
SEEDS_TOGETHER = 64
CHUNK = 8
CURVE = (1.0, 0.9, 0.75, 0.5, 0.25, 0.0)
Progress = Callable[[str, int, int], None]
"""(what, done, of how many)."""
Latency = Callable[[Path], float]
"""Milliseconds of one image through a graph."""


@dataclass(frozen=True)
class Point:
    """One choice of layers.

    Attributes:
        layers: how many are quantised.
        share: of all multiplications that are quantised.
        psnr: in dB, over ``SEEDS_TOGETHER`` seeds.
        latency_ms: of one image, where it was measured.
    """

    layers: int
    share: float
    psnr: float
    latency_ms: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(self).items()}


@dataclass(frozen=True)
class Choice:
    """What was chosen, and what it was chosen from.

    Attributes:
        nodes: names of the nodes to quantise.
        kept: names of those that stay in fp32.
        curve: quality against the share quantised; empty where nothing had to be given up.
        alone: PSNR of each layer quantised alone, in dB; empty likewise.
    """

    nodes: tuple[str, ...]
    kept: tuple[str, ...]
    curve: tuple[Point, ...] = ()
    alone: dict[str, float] | None = None


class Chooser:
    """Chooses the layers of one graph; what it has measured of them is kept for the next time.

    Args:
        model: fp32.
        layers, ranges, symmetric: as for ``quantise``.
        reference: PyTorch's samples of fixed seeds; none of them calibrated.
        scratch: directory for trial graphs.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        layers: Sequence[Layer],
        ranges: Any,
        symmetric: bool,
        reference: Reference,
        scratch: Path,
    ) -> None:
        self._model, self._layers, self._ranges = model, list(layers), ranges
        self._symmetric, self._reference = symmetric, reference
        self._trial = scratch / "trial.onnx"
        self._alone: dict[str, float] = {}
        self._together: dict[frozenset[str], float] = {}

    def choose(
        self,
        min_psnr: float,
        curve: bool = False,
        latency: Latency | None = None,
        on_progress: Progress = lambda what, done, total: None,
    ) -> Choice:
        """The largest set of layers whose images stay above the floor.

        Args:
            min_psnr: in dB.
            curve: measure the whole trade-off even if every layer can be quantised.
            latency: times a graph where it will run, for the curve.
        Raises:
            ParityError: the floor is not reached with any layer quantised.
        """
        everything = [layer.node for layer in self._layers]
        if self._psnr(everything) >= min_psnr and not curve:
            return Choice(tuple(everything), ())
        noise = self._noise_alone(on_progress)
        # most noise for each multiplication saved first
        order = sorted(self._layers, key=lambda layer: noise[layer.node] / layer.macs, reverse=True)
        names = [layer.node for layer in order]
        dropped = self._bisect(names, min_psnr, on_progress)
        starts = {dropped, *(self._first(order, share) for share in CURVE)} if curve else {dropped}
        chosen = set(names[dropped:])
        return Choice(
            nodes=tuple(n for n in everything if n in chosen),
            kept=tuple(names[:dropped]),
            curve=tuple(self._curve(names, sorted(starts), latency, on_progress)),
            alone={name: round(psnr(value, self._peak), 2) for name, value in noise.items()},
        )

    def write(self, choice: Choice, path: Path) -> None:
        """Write the graph with the chosen layers quantised."""
        quantise(self._model, self._ranges, choice.nodes, self._symmetric, path)

    @property
    def _peak(self) -> float:
        spec = self._reference.spec
        return 2.0 if spec.is_image else float(np.ptp(self._reference.sample))

    def _noise_alone(self, on_progress: Progress) -> dict[str, float]:
        """Mean square error of each layer quantised alone."""
        for done, layer in enumerate(self._layers if not self._alone else ()):
            on_progress("layer by layer", done, len(self._layers))
            self._alone[layer.node] = self._noise([layer.node], SEEDS_ALONE)
        return self._alone

    def _bisect(self, names: Sequence[str], min_psnr: float, on_progress: Progress) -> int:
        """The smallest number of layers dropped from the front that reaches the floor."""
        if self._psnr(names) >= min_psnr:
            return 0
        low, high = 0, len(names)
        tries = math.ceil(math.log2(max(2, len(names))))
        for done in range(tries):
            on_progress("looking for the floor", done, tries)
            middle = (low + high) // 2
            if middle == low:
                break
            if self._psnr(names[middle:]) >= min_psnr:
                high = middle
            else:
                low = middle
        if high == len(names):
            raise ParityError(
                f"int8: {min_psnr:g} dB is not reached with a single layer quantised; "
                "ask for less with --min-psnr, or use fp32"
            )
        return high

    def _first(self, order: Sequence[Layer], share: float) -> int:
        """How many to drop so that at most ``share`` of the multiplications are quantised."""
        total = sum(layer.macs for layer in order)
        left, k = total, 0
        while k < len(order) and left > share * total:
            left -= order[k].macs
            k += 1
        return k

    def _curve(
        self,
        names: Sequence[str],
        starts: Sequence[int],
        latency: Latency | None,
        on_progress: Progress,
    ) -> Iterator[Point]:
        for done, k in enumerate(starts):
            on_progress("trade-off", done, len(starts))
            yield self._point(names[k:], latency)

    def _point(self, nodes: Sequence[str], latency: Latency | None) -> Point:
        macs = sum(layer.macs for layer in self._layers)
        chosen = set(nodes)
        quality = self._psnr(nodes)
        if latency is not None:
            quantise(self._model, self._ranges, nodes, self._symmetric, self._trial)
        return Point(
            layers=len(chosen),
            share=sum(layer.macs for layer in self._layers if layer.node in chosen) / macs,
            psnr=quality,
            latency_ms=None if latency is None else latency(self._trial),
        )

    def _psnr(self, nodes: Sequence[str]) -> float:
        key = frozenset(nodes)
        if key not in self._together:
            self._together[key] = self._noise(nodes, SEEDS_TOGETHER)
        return psnr(self._together[key], self._peak)

    def _noise(self, nodes: Sequence[str], seeds: int) -> float:
        """Mean square error of the clamped samples with these nodes quantised."""
        quantise(self._model, self._ranges, nodes, self._symmetric, self._trial)
        ort = require("onnxruntime", "cpu")
        settings = ort.SessionOptions()
        settings.log_severity_level = 3
        if self._trial.stat().st_size < SMALL_GRAPH_BYTES:
            # as its engine does: a second thread gains nothing there
            settings.intra_op_num_threads = 1
        if self._symmetric:
            # as the file says: rewriting it to unsigned for a CPU, ONNX Runtime trips over opset 21
            settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(
            str(self._trial), settings, providers=["CPUExecutionProvider"]
        )
        squares, count = 0.0, 0
        seeds = min(seeds, len(self._reference))
        for start in range(0, seeds, CHUNK):
            rows = slice(start, min(start + CHUNK, seeds))
            feeds = {k: v[rows] for k, v in self._reference.inputs.named().items()}
            found, expected = session.run(["sample"], feeds)[0], self._reference.sample[rows]
            if self._reference.spec.is_image:
                found, expected = found.clip(-1, 1), expected.clip(-1, 1)
            squares += float(((found.astype(np.float64) - expected) ** 2).sum())
            count += found.size
        return squares / count


def median_ms(run: Callable[[], object], seconds: float = 1.0, least: int = 5) -> float:
    """Median milliseconds of a call, over at least ``least`` calls after two that warm up."""
    run()
    run()
    times: list[float] = []
    total = 0.0
    while len(times) < least or total < seconds:
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
        total += times[-1]
    return float(np.median(times)) * 1e3

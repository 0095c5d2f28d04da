"""The Engine contract: noise in, images out.

Adding an engine is one new file with a subclass and one line in ``ENGINES``; the
contract tests run over that dict.
"""

from __future__ import annotations

import abc
import importlib
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from mmf_deploy.bundle import Bundle, Variant
from mmf_deploy.engines import ENGINES
from mmf_deploy.engines.buckets import BUCKETS, at_most
from mmf_deploy.engines.inputs import check_inputs
from mmf_deploy.engines.options import EngineOptions
from mmf_deploy.errors import EngineError, nearest
from mmf_deploy.spec import SampleSpec

__all__ = ["BUCKETS", "Engine", "EngineOptions", "Output", "check_inputs", "engine_class",
           "open_engine"]  # fmt: skip


@dataclass(frozen=True)
class Output:
    """What one run gives.

    Attributes:
        sample: float32 [B, *shape], not clamped.
        image: uint8 [B, H, W, C]; None for vectors.
    """

    sample: NDArray[np.float32]
    image: NDArray[np.uint8] | None


class Engine(abc.ABC):
    """Runs one variant of a bundle on one device.

    Construction touches no device and no file; ``with engine:`` loads it and frees it.
    An engine is used by one thread at a time.

    Attributes:
        name: its key in ``ENGINES``.
        spec: what one sample is.
        precision: the variant's.
        mode: the way of running chosen among ``modes``.
        buckets: batch sizes it is prepared for, ascending; larger batches are split.
        about: facts of its device and libraries, for reports; filled by ``load``.
        record_device_time: whether runs note ``device_ms``, which costs a little; may be set
            and reset at any time.
        device_ms: milliseconds of the last ``run`` on the device itself, by its own clock: from
            the first kernel to the last, gaps between them included, copies from and to the
            host left out. None where it is not recorded, or the engine has no such clock: the
            CPU's have not, nor has ONNX Runtime, whose stream is its own.
    """

    name: ClassVar[str]
    modes: ClassVar[tuple[str, ...]] = ("default",)
    formats: ClassVar[tuple[str, ...]] = (".onnx",)
    """Endings of the files it runs; empty if it reads none."""

    def __init__(
        self, bundle: Bundle, variant: Variant | None = None, options: EngineOptions | None = None
    ) -> None:
        self.bundle = bundle
        self.variant = variant or bundle.variant()
        given = options or EngineOptions()
        self.device = given.device or self.variant.device
        self.mode = given.mode or self.modes[0]
        self.options = replace(given, device=self.device, mode=self.mode)
        self.spec: SampleSpec = bundle.spec
        self.precision = self.variant.precision
        self.buckets: tuple[int, ...] = at_most(given.max_batch, self._own_buckets())
        self.about: dict[str, str] = {}
        self.record_device_time = False
        self.device_ms: float | None = None

    @classmethod
    def unavailable(cls, options: EngineOptions) -> str | None:
        """Why this engine cannot run here, or None if it can."""
        return None

    @property
    def pads(self) -> bool:
        """Whether a smaller batch is padded to its bucket, and so costs as much as a full one."""
        return False

    def _own_buckets(self) -> tuple[int, ...]:
        """Its batch sizes where no limit is set, ascending."""
        return BUCKETS

    def device_memory_mb(self) -> float | None:
        """Most memory of its own that it held on the device since ``load``, in megabytes.

        None where that is not known: on a CPU, and of every engine but PyTorch.
        """
        return None

    def _spent_on_device(self, ms: float) -> None:
        """Add to ``device_ms``: a run of several batches is their sum."""
        self.device_ms = ms + (self.device_ms or 0.0)

    @abc.abstractmethod
    def load(self) -> None:
        """Take memory and get ready to run."""

    @abc.abstractmethod
    def close(self) -> None:
        """Give everything back; may be called twice."""

    @abc.abstractmethod
    def _run(
        self,
        noise: NDArray[np.float32],
        label: NDArray[np.int64] | None,
        guidance: NDArray[np.float32] | None,
    ) -> Output:
        """Run one batch of checked inputs, at most ``buckets[-1]`` samples."""

    def __enter__(self) -> Self:
        self._check_options()
        reason = self.unavailable(self.options)
        if reason is not None:
            raise EngineError(f"engine {self.name!r} cannot run here: {reason}")
        self.load()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _check_options(self) -> None:
        if self.mode not in self.modes:
            raise EngineError(
                f"engine {self.name!r} has no mode {self.mode!r}{nearest(self.mode, self.modes)}; "
                f"it has {', '.join(self.modes)}"
            )
        file = self.variant.file
        if self.formats and not file.endswith(self.formats):
            raise EngineError(
                f"engine {self.name!r} does not run {file}, made for {self.variant.target}; "
                f"--engine {self.variant.engine} does"
            )

    def run(
        self,
        noise: NDArray[np.float32],
        label: NDArray[np.int64] | None = None,
        guidance: NDArray[np.float32] | None = None,
    ) -> Output:
        """Generate samples, in batches of at most the largest bucket.

        Args:
            noise: float32 [B, *shape].
            label: int64 [B], required if and only if the generator is conditional.
            guidance: float32 [B], required if and only if it is guided.
        Raises:
            ShapeError: an input does not fit the spec.
        """
        label, guidance = check_inputs(self.spec, noise, label, guidance)
        self.device_ms = None
        largest = self.buckets[-1]
        parts = []
        for start in range(0, len(noise), largest):
            rows = slice(start, start + largest)
            parts.append(
                self._run(
                    np.ascontiguousarray(noise[rows]),
                    None if label is None else label[rows],
                    None if guidance is None else guidance[rows],
                )
            )
        if len(parts) == 1:
            return parts[0]
        images = [p.image for p in parts if p.image is not None]
        return Output(
            sample=np.concatenate([p.sample for p in parts]),
            image=np.concatenate(images) if images else None,
        )

    def trajectory(
        self,
        noise: NDArray[np.float32],
        label: NDArray[np.int64] | None = None,
        guidance: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """All K + 1 points of the path from noise to sample, float32 [B, K + 1, *shape].

        Args: as of ``run``.
        Raises:
            EngineError: the variant, or this engine, does not give it.
            ShapeError: an input does not fit the spec.
        """
        if not self.variant.trajectory:
            raise EngineError(
                f"variant {self.variant.name!r} gives no trajectory; export one of several steps: "
                "mmf-export CHECKPOINT --steps 1,4"
            )
        label, guidance = check_inputs(self.spec, noise, label, guidance)
        largest = self.buckets[-1]
        return np.concatenate(
            [
                self._trajectory(
                    np.ascontiguousarray(noise[k : k + largest]),
                    None if label is None else label[k : k + largest],
                    None if guidance is None else guidance[k : k + largest],
                )
                for k in range(0, len(noise), largest)
            ]
        )

    @property
    def gives_trajectory(self) -> bool:
        """Whether ``trajectory`` works: the variant has it, and this engine can."""
        return self.variant.trajectory and type(self)._trajectory is not Engine._trajectory

    def _trajectory(
        self,
        noise: NDArray[np.float32],
        label: NDArray[np.int64] | None,
        guidance: NDArray[np.float32] | None,
    ) -> NDArray[np.float32]:
        """Like ``_run``, of a variant that has it."""
        raise EngineError(f"engine {self.name!r} gives no trajectories; engine 'onnxruntime' does")

    def generate(
        self,
        noise: NDArray[np.float32],
        label: NDArray[np.int64] | None = None,
        guidance: NDArray[np.float32] | None = None,
    ) -> NDArray[Any]:
        """Like ``run``: uint8 [B, H, W, C] images, or float32 [B, D] vectors."""
        output = self.run(noise, label, guidance)
        return output.sample if output.image is None else output.image


def engine_class(name: str) -> type[Engine]:
    """The engine class of that name, imported now.

    Raises:
        EngineError: there is none.
    """
    if name not in ENGINES:
        raise EngineError(
            f"no engine {name!r}{nearest(name, ENGINES)}; there are {', '.join(ENGINES)}"
        )
    module, _, attribute = ENGINES[name].partition(":")
    found: type[Engine] = getattr(importlib.import_module(module), attribute)
    return found


def open_engine(
    name: str | None,
    bundle: Bundle,
    variant: str | None = None,
    options: EngineOptions | None = None,
) -> Engine:
    """Build an engine for a bundle; use it as a context manager.

    Args:
        name: a key of ``ENGINES``; the variant's own engine if None.
    Raises:
        EngineError: no such engine.
        BundleError: no such variant.
    """
    found = bundle.variant(variant)
    name = name or found.engine
    try:
        return engine_class(name)(bundle, found, options)
    except ModuleNotFoundError as e:
        raise EngineError(
            f"engine {name!r} needs the package {e.name!r}, not installed here"
        ) from e

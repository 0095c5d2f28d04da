"""What an engine must prove on the machine at hand before it serves: the checks and the times."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmf_deploy.engines.base import Engine, Output
from mmf_deploy.errors import BundleError, EngineError
from mmf_deploy.golden import verify_golden
from mmf_deploy.noise import gaussian_batch
from mmf_deploy.spec import SampleSpec

FIRST_SEED = 1000
MIN_CALLS, MAX_CALLS = 3, 200
PSNR_DB = {"tf32": 40.0, "fp16": 40.0, "bf16": 32.0}
"""What an engine must reach that rounds more than the variant does (PyTorch's modes): as much as
export asks of an artefact in that precision. TF32 rounds factors as fp16 does."""


@dataclass(frozen=True)
class Row:
    """One batch size.

    Attributes:
        bucket: the one it falls into; a batch larger than all is split.
        difference: largest difference to the same samples computed one by one.
        median_ms, p90_ms: of one call, from arrays on the host to arrays on the host; None for
            a size that is not a bucket.
        images_per_s: at the median.
        device_ms: median of the calls by the device's own clock, copies left out; None where
            the engine has none.
    """

    batch: int
    bucket: int
    difference: float
    median_ms: float | None = None
    p90_ms: float | None = None
    images_per_s: float | None = None
    calls: int = 0
    device_ms: float | None = None


@dataclass(frozen=True)
class Allowed:
    """How far samples may be from what they are compared with; one of both is None.

    Attributes:
        largest: difference of any value: levels of 255 for images, absolute for vectors.
        psnr_db: least PSNR of them all.
    """

    largest: float | None
    psnr_db: float | None = None

    def __str__(self) -> str:
        if self.largest is not None:
            return f"at most {self.largest:g}"
        return f"a PSNR of at least {self.psnr_db:g} dB"

    def problem(self, found: NDArray[Any], expected: NDArray[Any]) -> str | None:
        """What is wrong, and what was expected; None if nothing is."""
        # written so that NaN fails
        if self.largest is not None:
            difference = _difference(found, expected)
            text = f"differ by {difference:g}, expected {self}"
            return None if difference <= self.largest else text
        assert self.psnr_db is not None
        psnr_db = _psnr_db(found, expected)
        text = f"have a PSNR of {psnr_db:.1f} dB, expected {self}"
        return None if psnr_db >= self.psnr_db else text


@dataclass(frozen=True)
class Selftest:
    """What the checks gave.

    Attributes:
        golden: largest difference to the golden outputs.
        unit: of it.
        allowed: what the checks asked for.
        memory_mb: most memory of its own that the engine held on the device; None where it does
            not tell.
    """

    golden: float
    unit: str
    allowed: Allowed
    rows: list[Row]
    memory_mb: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def batches_to_test(buckets: Sequence[int]) -> list[int]:
    """Every bucket, and sizes that are padded to one or split into several."""
    largest = buckets[-1]
    return sorted({*buckets, 3, max(1, largest - 1), largest + 1})


def run_selftest(
    engine: Engine,
    seconds: float = 0.3,
    on_progress: Callable[[str, int], None] = lambda what, done: None,
) -> Selftest:
    """Check an open engine and time it.

    1. The golden outputs are reproduced, alone and in a batch.
    2. Every bucket, and sizes between and above them, give finite samples in order.
    3. A sample is the same alone and in any of these batches, within what is allowed.

    Allowed is the golden tolerance. An engine that rounds more than the variant does, as modes of
    PyTorch do, is held to the PSNR of its precision instead.

    Args:
        seconds: time for the calls of one bucket; at least 3 and at most 200 calls.
        on_progress: called with what is going on, and the share that is over, in percent.
    Raises:
        BundleError: the golden outputs are not reproduced.
        EngineError: any other check fails; the message says which, and by how much.
    """
    on_progress("golden outputs", 0)
    allowed = allowed_for(engine)
    if allowed.psnr_db is None:
        golden = verify_golden(engine.bundle, engine, engine.variant)
    else:
        golden = _golden(engine, allowed)
    batches = batches_to_test(engine.buckets)
    inputs = _inputs(engine.spec, batches[-1])
    alone = _alone(engine, inputs)
    rows = []
    for k, batch in enumerate(batches):
        on_progress(f"batch {batch}", sum(batches[:k]) * 100 // sum(batches))
        given = [None if a is None else a[:batch] for a in inputs]
        found = _checked(engine, given)
        problem = allowed.problem(found, alone[:batch])
        if problem is not None:
            raise EngineError(
                f"engine {engine.name!r}: samples of a batch of {batch} and the same ones "
                f"computed alone {problem}"
            )
        rows.append(_row(engine, given, _difference(found, alone[:batch]), seconds))
    on_progress("done", 100)
    unit = "of 255 levels" if engine.spec.is_image else "absolute"
    return Selftest(golden, unit, allowed, rows, engine.device_memory_mb())


def allowed_for(engine: Engine) -> Allowed:
    """What an open engine is held to."""
    if engine.precision != engine.variant.precision and engine.precision in PSNR_DB:
        return Allowed(None, PSNR_DB[engine.precision])
    return Allowed(engine.bundle.golden().tolerance[engine.variant.name])


def _golden(engine: Engine, allowed: Allowed) -> float:
    """The largest difference to the golden outputs, alone and in a batch."""
    golden = engine.bundle.golden()
    x1 = gaussian_batch([int(s) for s in golden.seeds], engine.spec.shape)
    worst = 0.0
    for rows in (slice(0, 1), slice(None)):
        given = (a if a is None else a[rows] for a in (x1, golden.labels, golden.guidance))
        found, expected = _checked(engine, list(given)), golden.expected(engine.variant)[rows]
        problem = allowed.problem(found, expected)
        if problem is not None:
            raise BundleError(
                f"{engine.bundle.path}: its golden outputs and those of engine {engine.name!r} in "
                f"{engine.precision} {problem}"
            )
        worst = max(worst, _difference(found, expected))
    return worst


def _inputs(spec: SampleSpec, count: int) -> list[NDArray[Any] | None]:
    seeds = range(FIRST_SEED, FIRST_SEED + count)
    label = np.array([spec.default_label(s) for s in seeds], np.int64)
    guidance = None
    if spec.guidance is not None:
        guidance = np.linspace(*spec.guidance, count, dtype=np.float32)
    return [gaussian_batch(seeds, spec.shape), label if spec.conditional else None, guidance]


def _alone(engine: Engine, inputs: list[NDArray[Any] | None]) -> NDArray[Any]:
    """The samples one by one."""
    assert inputs[0] is not None  # the noise
    rows = [[None if a is None else a[k : k + 1] for a in inputs] for k in range(len(inputs[0]))]
    return np.concatenate([_checked(engine, row) for row in rows])


def _checked(engine: Engine, inputs: list[Any]) -> NDArray[Any]:
    """What the engine serves, after a look at its whole output."""
    batch, spec = len(inputs[0]), engine.spec
    output = engine.run(*inputs)
    shape = (batch, *spec.shape)
    if output.sample.shape != shape or output.sample.dtype != np.float32:
        raise EngineError(
            f"engine {engine.name!r}: samples {output.sample.dtype}{list(output.sample.shape)} "
            f"for a batch of {batch}; expected float32{list(shape)}"
        )
    if not np.isfinite(output.sample).all():
        bad = int((~np.isfinite(output.sample)).sum())
        raise EngineError(f"engine {engine.name!r}: {bad} values not finite in a batch of {batch}")
    return _served(engine, output, batch)


def _served(engine: Engine, output: Output, batch: int) -> NDArray[Any]:
    if not engine.spec.is_image:
        return output.sample
    c, h, w = engine.spec.shape
    image = output.image
    if image is None or image.shape != (batch, h, w, c) or image.dtype != np.uint8:
        found = None if image is None else f"{image.dtype}{list(image.shape)}"
        raise EngineError(
            f"engine {engine.name!r}: images {found} for a batch of {batch}; "
            f"expected uint8{[batch, h, w, c]}"
        )
    return image


def _difference(found: NDArray[Any], expected: NDArray[Any]) -> float:
    return float(np.abs(found.astype(np.float64) - expected).max())


def _psnr_db(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """With the range of images, or of vectors, whose scale is 1, as the peak."""
    peak = 255.0 if expected.dtype == np.uint8 else 2.0
    mean_square = float(np.mean((found.astype(np.float64) - expected) ** 2))
    return 10 * math.log10(peak**2 / max(mean_square, 1e-20))


def _row(engine: Engine, inputs: list[Any], difference: float, seconds: float) -> Row:
    batch = len(inputs[0])
    if batch not in engine.buckets:
        bucket = min((b for b in engine.buckets if b > batch), default=engine.buckets[-1])
        return Row(batch, bucket, difference)
    calls: list[float] = []
    end = time.perf_counter() + seconds
    while len(calls) < MIN_CALLS or (time.perf_counter() < end and len(calls) < MAX_CALLS):
        began = time.perf_counter()
        engine.run(*inputs)
        calls.append(1e3 * (time.perf_counter() - began))
    median, p90 = (float(x) for x in np.percentile(calls, [50, 90]))
    per_s = round(1e3 * batch / max(median, 1e-6), 1)
    device_ms = _device_ms(engine, inputs, len(calls))
    return Row(batch, batch, difference, round(median, 4), round(p90, 4), per_s, len(calls),
               device_ms)  # fmt: skip


def _device_ms(engine: Engine, inputs: list[Any], calls: int) -> float | None:
    """By calls of their own: recording may launch them otherwise."""
    if not engine.device.startswith("cuda"):
        return None
    engine.record_device_time = True
    times: list[float] = []
    try:
        engine.run(*inputs)  # what recording needs is made in its first call
        while engine.device_ms is not None and len(times) < calls:
            engine.run(*inputs)
            times.append(engine.device_ms)
    finally:
        engine.record_device_time = False
    return round(float(np.median(times)), 4) if times else None

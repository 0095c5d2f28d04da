"""What an engine must prove on the machine at hand before it serves: the checks and the times."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmf_deploy.engines.base import Engine, Output
from mmf_deploy.errors import EngineError
from mmf_deploy.golden import verify_golden
from mmf_deploy.noise import gaussian_batch
from mmf_deploy.spec import SampleSpec

FIRST_SEED = 1000
MIN_CALLS, MAX_CALLS = 3, 200


@dataclass(frozen=True)
class Row:
    """One batch size.

    Attributes:
        bucket: the one it falls into; a batch larger than all is split.
        difference: largest difference to the same samples computed one by one.
        median_ms, p90_ms: of one call, from arrays on the host to arrays on the host; None for
            a size that is not a bucket.
        images_per_s: at the median.
    """

    batch: int
    bucket: int
    difference: float
    median_ms: float | None = None
    p90_ms: float | None = None
    images_per_s: float | None = None
    calls: int = 0


@dataclass(frozen=True)
class Selftest:
    """What the checks gave.

    Attributes:
        golden: largest difference to the golden outputs.
        tolerance: what the bundle allows.
        unit: of both.
    """

    golden: float
    tolerance: float
    unit: str
    rows: list[Row]

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
    3. A sample is the same alone and in any of these batches, within the golden tolerance.

    Args:
        seconds: time for the calls of one bucket; at least 3 and at most 200 calls.
        on_progress: called with what is going on, and the share that is over, in percent.
    Raises:
        BundleError: the golden outputs are not reproduced.
        EngineError: any other check fails; the message says which, and by how much.
    """
    on_progress("golden outputs", 0)
    golden = verify_golden(engine.bundle, engine, engine.variant)
    tolerance = engine.bundle.golden().tolerance[engine.variant.name]
    batches = batches_to_test(engine.buckets)
    inputs = _inputs(engine.spec, batches[-1])
    alone = _alone(engine, inputs)
    rows = []
    for k, batch in enumerate(batches):
        on_progress(f"batch {batch}", sum(batches[:k]) * 100 // sum(batches))
        given = [None if a is None else a[:batch] for a in inputs]
        found = _checked(engine, given)
        difference = _difference(alone, found)
        if not difference <= tolerance:
            raise EngineError(
                f"engine {engine.name!r}: samples of a batch of {batch} differ by {difference:g} "
                f"from the same ones computed alone; expected at most {tolerance:g}"
            )
        rows.append(_row(engine, given, difference, seconds))
    on_progress("done", 100)
    unit = "of 255 levels" if engine.spec.is_image else "absolute"
    return Selftest(golden, tolerance, unit, rows)


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


def _difference(alone: NDArray[Any], found: NDArray[Any]) -> float:
    return float(np.abs(found.astype(np.float64) - alone[: len(found)]).max())


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
    return Row(batch, batch, difference, round(median, 4), round(p90, 4), per_s, len(calls))

"""What goes into an engine, checked against the specification of a sample."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmf_deploy.errors import ShapeError
from mmf_deploy.spec import SampleSpec


def check_inputs(
    spec: SampleSpec,
    noise: NDArray[np.float32],
    label: NDArray[np.int64] | None,
    guidance: NDArray[np.float32] | None,
) -> tuple[NDArray[np.int64] | None, NDArray[np.float32] | None]:
    """Check engine inputs against a spec; return label and guidance in the graph's dtypes.

    Raises:
        ShapeError: what came and what was expected.
    """
    if noise.dtype != np.float32 or noise.ndim < 1 or noise.shape[1:] != spec.shape:
        expected = ", ".join(["B", *map(str, spec.shape)])
        raise ShapeError(f"noise {noise.dtype}{list(noise.shape)}: expected float32 [{expected}]")
    batch = len(noise)
    if batch == 0:
        raise ShapeError("noise is an empty batch; expected at least one sample")
    if spec.conditional:
        if label is None or label.shape != (batch,) or label.dtype.kind not in "iu":
            raise ShapeError(f"label: expected {batch} integers, one a sample")
        if label.min() < 0 or label.max() > spec.classes:
            raise ShapeError(
                f"label {label.min()} … {label.max()}: expected 0 … {spec.classes - 1}, "
                f"or {spec.classes} for none"
            )
        label = np.ascontiguousarray(label, np.int64)
    elif label is not None:
        raise ShapeError("label given, but this generator has no classes; leave it out")
    if spec.guidance is not None:
        low, high = spec.guidance
        if guidance is None or guidance.shape != (batch,):
            raise ShapeError(f"guidance: expected {batch} numbers, one a sample")
        if not (np.isfinite(guidance).all() and low <= guidance.min() and guidance.max() <= high):
            raise ShapeError(f"guidance out of range: expected {low:g} … {high:g}")
        guidance = np.ascontiguousarray(guidance, np.float32)
    elif guidance is not None:
        raise ShapeError("guidance given, but this generator takes none; leave it out")
    return label, guidance

"""What a bundle looks like as a model of the Open Inference Protocol V2.

Inputs are ``seed`` INT64 [B], ``label`` INT64 [B] for models with classes and ``guidance`` FP32
[B] for guided ones, the last two optional; outputs ``image`` UINT8 [B, H, W, C], or ``sample``
FP32 [B, D] for vectors. ``seed`` and ``label`` come back if they are asked for. Its version is
the beginning of the bundle's digest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmf_deploy.errors import RequestError, nearest
from mmf_deploy.noise import MAX_SEED
from mmf_deploy.spec import SampleSpec

from .first_error import short
from .kserve_codec import Output, Tensor
from .kserve_schema import InferRequest, RequestParameters, malformed
from .made import Made
from .model import Loaded
from .resolve import class_of
from .samples import Item, Priority
from .work import Work

VERSION_DIGITS = 12
_LEVELS = (Priority.NORMAL, Priority.HIGH, Priority.NORMAL, Priority.LOW)  # 0 is the default


def version_of(loaded: Loaded) -> str:
    """The only version of a model that there is."""
    return loaded.digest[:VERSION_DIGITS]


def input_tensors(spec: SampleSpec) -> list[tuple[str, str, list[int]]]:
    """Name, datatype and shape of every input; -1 stands for the number of images."""
    extras = [("label", "INT64", [-1])] if spec.conditional else []
    extras += [("guidance", "FP32", [-1])] if spec.guided else []
    return [("seed", "INT64", [-1]), *extras]


def output_tensor(spec: SampleSpec) -> tuple[str, str, list[int]]:
    """Name, datatype and shape of the output; -1 stands for the number of images."""
    if not spec.is_image:
        return "sample", "FP32", [-1, *spec.shape]
    c, h, w = spec.shape
    return "image", "UINT8", [-1, h, w, c]


def metadata(loaded: Loaded) -> dict[str, Any]:
    """The reply of GET /v2/models/NAME."""
    tensors = {
        "inputs": input_tensors(loaded.spec),
        "outputs": [output_tensor(loaded.spec)],
    }
    return {
        "name": loaded.name,
        "versions": [version_of(loaded)],
        "platform": f"mmf_{loaded.engine.name}",
        **{
            side: [{"name": n, "datatype": d, "shape": s} for n, d, s in of]
            for side, of in tensors.items()
        },
    }


def config(loaded: Loaded, max_images: int) -> dict[str, Any]:
    """The reply of GET /v2/models/NAME/config, in the words of Triton's model configuration.

    The batch is part of the shapes, hence ``max_batch_size`` 0.
    """
    inputs = [_configured(*tensor) for tensor in input_tensors(loaded.spec)]
    return {
        "name": loaded.name,
        "platform": f"mmf_{loaded.engine.name}",
        "backend": "mmf",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": 0,
        "input": [given | {"optional": given["name"] != "seed"} for given in inputs],
        "output": [_configured(*output_tensor(loaded.spec))],
        "parameters": {
            "max_images": {"string_value": str(max_images)},
            "steps": {"string_value": ",".join(map(str, loaded.steps))},
            "variant": {"string_value": loaded.engine.variant.name},
            "bundle": {"string_value": loaded.digest},
        },
    }


def _configured(name: str, datatype: str, shape: list[int]) -> dict[str, Any]:
    return {"name": name, "data_type": f"TYPE_{datatype}", "dims": shape}


def work_of(request: InferRequest, tensors: Mapping[str, Tensor], spec: SampleSpec) -> Work:
    """What a request asks for.

    Raises:
        RequestError: 400, an input is missing, unknown, or does not fit the model.
    """
    known = [name for name, _, _ in input_tensors(spec)]
    for name in tensors:
        if name not in known:
            raise malformed(
                f"no input {short(name)}{nearest(name[:64], known)}; "
                f"this model takes {', '.join(known)}"
            )
    if "seed" not in tensors:
        raise malformed("the input 'seed' is missing; every image needs one", "seed")
    seeds = _seeds(tensors["seed"])
    labels = _labels(tensors.get("label"), seeds, spec)
    guidance = _guidance(tensors.get("guidance"), len(seeds), spec)
    items = [Item(*one) for one in zip(seeds, labels, guidance, strict=True)]
    given = request.parameters or RequestParameters()
    return Work(items, given.steps, _priority(given.priority), _deadline_s(given))


def wanted(request: InferRequest, spec: SampleSpec) -> list[tuple[str, bool]]:
    """Names of the outputs that a request wants, and whether as bytes.

    Raises:
        RequestError: 400, there is no such output, or one is asked for twice.
    """
    main = output_tensor(spec)[0]
    by_default = bool(request.parameters and request.parameters.binary_data_output)
    if not request.outputs:
        return [(main, by_default)]
    known = [main, "seed", *(["label"] if spec.conditional else [])]
    found: dict[str, bool] = {}
    for output in request.outputs:
        if output.name not in known:
            raise malformed(
                f"no output {short(output.name)}{nearest(output.name[:64], known)}; "
                f"this model has {', '.join(known)}"
            )
        if output.name in found:
            raise malformed(f"outputs: {short(output.name)} is asked for twice", "outputs")
        binary = output.parameters.binary_data if output.parameters else None
        found[output.name] = by_default if binary is None else binary
    return list(found.items())


def outputs_of(made: Made[Any], names: list[tuple[str, bool]]) -> list[Output]:
    """The tensors of a reply."""

    def values(name: str) -> NDArray[Any]:
        if name == "seed":
            return np.array([item.seed for item in made.items], np.int64)
        if name == "label":
            return np.array([item.label for item in made.items], np.int64)
        return made.values

    return [Output(name, values(name), binary) for name, binary in names]


def _seeds(tensor: Tensor) -> list[int]:
    seeds = _integers(tensor)
    if not seeds:
        raise malformed("'seed' is empty; expected one seed an image", "seed")
    for seed in seeds:
        if not 0 <= seed <= MAX_SEED:
            raise malformed(f"'seed': {short(seed)} is out of range; expected 0 … {MAX_SEED}")
    return seeds


def _labels(tensor: Tensor | None, seeds: list[int], spec: SampleSpec) -> list[int]:
    if tensor is None:
        return [spec.default_label(seed) for seed in seeds]
    names_or_numbers: list[int] | list[str]
    if isinstance(tensor.values, list):
        _check_shape(tensor, len(seeds))
        names_or_numbers = tensor.values
    else:
        names_or_numbers = _integers(tensor, len(seeds))
    return [class_of(label, spec, "label") for label in names_or_numbers]


def _guidance(tensor: Tensor | None, count: int, spec: SampleSpec) -> list[float]:
    low, high = spec.guidance or (1.0, 1.0)
    if tensor is None:
        return [low] * count
    _check_shape(tensor, count)
    if isinstance(tensor.values, list):
        raise malformed("'guidance' of datatype BYTES; expected FP32", "guidance")
    # the engine computes in float32, and the float32 nearest to a bound may lie beyond it
    values = tensor.values.astype(np.float64)
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float32)
        fits = (np.float32(low) <= rounded) & (rounded <= np.float32(high))
    if not fits.all():
        wrong = values[~fits][0]
        raise malformed(
            f"'guidance': {wrong:g} is out of range; expected {low:g} … {high:g}", "guidance"
        )
    scales: list[float] = values.clip(low, high).tolist()
    return scales


def _check_shape(tensor: Tensor, count: int | None = None) -> None:
    """[B] or [B, 1]; B is ``count`` if that is known."""
    shape = tensor.shape
    fits = len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)
    if not fits or (count is not None and shape[0] != count):
        size = "B" if count is None else str(count)
        raise malformed(
            f"{tensor.name!r} of shape {short(list(shape))}; expected [{size}] or [{size}, 1]",
            tensor.name,
        )


def _integers(tensor: Tensor, count: int | None = None) -> list[int]:
    """The values of a tensor of any datatype that holds integers exactly."""
    _check_shape(tensor, count)
    values = tensor.values
    if isinstance(values, list):
        raise malformed(f"{tensor.name!r} of datatype BYTES; expected INT64", tensor.name)
    if values.dtype.kind != "f":
        return [int(value) for value in values.tolist()]
    # beyond this a float may be the rounded form of another integer
    limit = 2.0 ** (np.finfo(values.dtype).nmant + 1)
    for value in values.tolist():
        if not (abs(value) <= limit and value == int(value)):
            raise malformed(
                f"{tensor.name!r}: {value} of datatype {tensor.datatype} is not an integer, or "
                "not for sure; send it as INT64",
                tensor.name,
            )
    return [int(value) for value in values.tolist()]


def _priority(given: str | int | None) -> Priority:
    if isinstance(given, str):
        return Priority(given)
    return _LEVELS[min(given or 0, len(_LEVELS) - 1)]


def _deadline_s(given: RequestParameters) -> float | None:
    """The sooner of both ways to say it."""
    said = [given.timeout / 1e6] if given.timeout else []
    said += [given.deadline_ms / 1e3] if given.deadline_ms is not None else []
    return min(said, default=None)


def not_that_version(loaded: Loaded, version: str) -> RequestError:
    """404 for a version that does not exist."""
    return RequestError(
        f"model {loaded.name!r} has no version {short(version)}; there is {version_of(loaded)!r}",
        status=404,
        code="version_not_found",
    )

"""What the bodies of the native routes mean for the model that is asked."""

from __future__ import annotations

from mmf_deploy.errors import RequestError, nearest
from mmf_deploy.noise import MAX_SEED, random_seed
from mmf_deploy.spec import SampleSpec

from .first_error import short
from .samples import Item, Toward
from .schema import GenerateRequest, InterpolateRequest, Label, TrajectoryRequest


def resolve(request: GenerateRequest, spec: SampleSpec, max_images: int) -> list[Item]:
    """Say seed, label and guidance of every image.

    Args:
        max_images: most images one request may ask for.
    Raises:
        RequestError: a value does not fit the generator; names the field.
    """
    seeds = _seeds(request, max_images)
    labels = _resolve_labels(request, spec, seeds)
    guidance = guidance_of(request.guidance, spec)
    return [
        Item(seed=seed, label=label, guidance=guidance)
        for seed, label in zip(seeds, labels, strict=True)
    ]


def resolve_path(request: InterpolateRequest, spec: SampleSpec, max_images: int) -> list[Item]:
    """The frames of an interpolation, in order.

    Raises:
        RequestError: a value does not fit the generator; names the field.
    """
    _at_most(request.frames, max_images, "frames")
    label = _one_label(request.label, request.start, spec)
    guidance = guidance_of(request.guidance, spec)
    last = request.frames - 1
    return [
        Item(request.start, label, guidance, Toward(request.end, k / last))
        for k in range(request.frames)
    ]


def resolve_trajectory(request: TrajectoryRequest, spec: SampleSpec) -> Item:
    """The image whose way is asked for.

    Raises:
        RequestError: a value does not fit the generator; names the field.
    """
    seed = random_seed() if request.seed is None else request.seed
    label = _one_label(request.label, seed, spec)
    return Item(seed, label, guidance_of(request.guidance, spec))


def _one_label(label: Label | None, seed: int, spec: SampleSpec) -> int:
    if label is None:
        return spec.default_label(seed)
    if not spec.conditional:
        raise RequestError("label: this model has no classes; leave label out", field="label")
    return class_of(label, spec, "label")


def _seeds(request: GenerateRequest, max_images: int) -> list[int]:
    if request.seeds is not None:
        _at_most(len(request.seeds), max_images, "seeds")
        if request.seed is not None:
            raise RequestError("seeds: give either seed or seeds, not both", field="seeds")
        if request.n not in (None, len(request.seeds)):
            raise RequestError(
                f"n: {request.n} does not match the {len(request.seeds)} seeds; leave n out",
                field="n",
            )
        return request.seeds
    count = request.n
    if count is None:
        count = len(request.labels) if isinstance(request.labels, list) else 1
        _at_most(count, max_images, "labels")
    _at_most(count, max_images, "n")
    first = random_seed() if request.seed is None else request.seed
    if first + count - 1 > MAX_SEED:
        raise RequestError(
            f"seed: the last of {count} seeds from {first} on exceeds {MAX_SEED}", field="seed"
        )
    return list(range(first, first + count))


def _at_most(count: int, limit: int, field: str) -> None:
    if count > limit:
        raise RequestError(f"{field}: {count} images in one request; at most {limit}", field=field)


def _resolve_labels(request: GenerateRequest, spec: SampleSpec, seeds: list[int]) -> list[int]:
    labels = request.labels
    if labels is None:
        return [spec.default_label(seed) for seed in seeds]
    if not spec.conditional:
        raise RequestError("labels: this model has no classes; leave labels out", field="labels")
    if not isinstance(labels, list):
        return [class_of(labels, spec)] * len(seeds)
    if len(labels) != len(seeds):
        raise RequestError(
            f"labels: {len(labels)} for {len(seeds)} images; give one, or one an image",
            field="labels",
        )
    return [class_of(label, spec) for label in labels]


def class_of(label: Label, spec: SampleSpec, field: str = "labels") -> int:
    """The number of a class given by number or name.

    Raises:
        RequestError: there is no such class; names the field.
    """
    if isinstance(label, str):
        if label in spec.class_names:
            return spec.class_names.index(label)
        hint = nearest(label, spec.class_names) if len(label) <= 64 else ""
        have = ", ".join(spec.class_names[:20]) or f"numbers only, 0 … {spec.classes - 1}"
        raise RequestError(f"{field}: no class {short(label)}{hint}; expected {have}", field=field)
    if not 0 <= label < spec.classes:
        raise RequestError(
            f"{field}: {short(label)} is out of range; expected 0 … {spec.classes - 1}",
            field=field,
        )
    return label


def guidance_of(guidance: float | None, spec: SampleSpec) -> float:
    """The guidance scale of a request; the lowest one if it gives none.

    Raises:
        RequestError: the model takes none, or not that much.
    """
    if spec.guidance is None:
        if guidance is not None:
            raise RequestError(
                "guidance: this model takes none; leave guidance out", field="guidance"
            )
        return 1.0
    low, high = spec.guidance
    if guidance is None:
        return low
    if not low <= guidance <= high:
        raise RequestError(
            f"guidance: {guidance:g} is out of range; expected {low:g} … {high:g}", field="guidance"
        )
    return guidance

"""From a checkpoint to a bundle: export, compare, and only then write."""

from __future__ import annotations

import contextlib
import math
import platform
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from mmf_deploy import __version__, bundle, files
from mmf_deploy.golden import Golden
from mmf_deploy.images import save_grid
from mmf_deploy.nn.judge import Judge
from mmf_deploy.spec import SampleSpec

from . import ort_web
from .build import Builder, Built, share_files
from .card import render
from .gates import LIMITS, judge_variant, limits_of
from .measurements import latency_ms
from .origin import Origin, from_checkpoint
from .parity import Parity, compare
from .plan import Planned, Request, make_plan, options_of, refuse_to_overwrite
from .reference import Reference, samples_to_compare
from .to_web import has_page, page_files, write_page

GOLDEN_SEEDS = 16
FLOOR_ATTEMPTS = 4
"""Builds of an int8 variant with fewer and fewer layers, until its images reach the floor."""
Layers = Callable[[str, int, int], None]

__all__ = ["Request", "export_bundle", "export_origin"]


@dataclass(frozen=True)
class Compared:
    """A built variant with what its comparison gave.

    Attributes:
        variant: the manifest's entry.
        golden: what its engine gave for the golden seeds, float32 [16, *shape].
        exact: compared by the engine that will serve it.
    """

    built: Built
    variant: bundle.Variant
    parity: Parity
    golden: np.ndarray[Any, np.dtype[np.float32]]
    exact: bool


def export_bundle(
    request: Request,
    on_progress: Callable[[str, int], None] = lambda stage, done: None,
    on_layers: Layers = lambda what, done, total: None,
) -> bundle.Bundle:
    """Export a checkpoint; see ``export_origin``.

    Raises:
        CheckpointError: the source cannot be read.
    """
    refuse_to_overwrite(request.out, request.force)
    origin = from_checkpoint(request.source, request.weights)
    return export_origin(origin, request, on_progress, on_layers)


def export_origin(
    origin: Origin,
    request: Request,
    on_progress: Callable[[str, int], None] = lambda stage, done: None,
    on_layers: Layers = lambda what, done, total: None,
) -> bundle.Bundle:
    """Export a network as a bundle with every variant of the request.

    Args:
        on_progress: called with the stage and the images made so far, of ``images_to_make``.
        on_layers: called during a search over the layers to quantise.
    Raises:
        ConfigError: ``out`` exists, or the request asks for what cannot be.
        DependencyError: something that a target needs is not here.
        ParityError: a variant differs too much from the network; nothing is written.
    """
    refuse_to_overwrite(request.out, request.force)
    planned, _ = make_plan(request, origin.spec)
    origin = freeze(origin, request)
    # before anything slow: npm may be missing
    page = (
        page_files(request.ort_web, lambda what: on_progress(what, 0))
        if has_page(request.targets, origin.spec)
        else {}
    )
    done = 0

    def made(stage: str, images: int) -> None:
        nonlocal done
        done += images
        on_progress(stage, done)

    with tempfile.TemporaryDirectory() as scratch:
        count = samples_to_compare(origin.spec, request.samples)
        builder = Builder(origin, request, Path(scratch), count, made, on_layers)
        judge = None if origin.judge is None else Judge.load(origin.judge)
        compared = [_compared(builder, one, judge, request, made) for one in planned]
        shared = share_files([c.built for c in compared])
        compared = [
            replace(c, built=b, variant=c.variant.model_copy(update={"file": b.path.name}))
            for c, b in zip(compared, shared, strict=True)
        ]
        return _write(request, origin, builder, compared, page)


def freeze(origin: Origin, request: Request) -> Origin:
    """The origin with the request's fixed inputs: constants now, and no inputs of a sample."""
    source = origin.source.model_copy(
        update={
            "label": request.label,
            "guidance": request.guidance,
            "options": options_of(request),
        }
    )
    spec: dict[str, Any] = {}
    if request.label is not None:
        spec |= {"classes": 0, "class_names": ()}
    if request.guidance is not None:
        spec["guidance"] = None
    return replace(origin, source=source, spec=origin.spec.model_copy(update=spec))


def _compared(
    builder: Builder,
    planned: Planned,
    judge: Judge | None,
    request: Request,
    made: Callable[[str, int], None],
) -> Compared:
    """Build one variant, compare it image by image, refuse it if a gate fails."""
    expected = builder.reference(planned.steps)
    limits = limits_of(planned.precision, request.min_psnr)
    margin = 0.0
    for _ in range(FLOOR_ATTEMPTS):
        built = builder.build(planned, margin)
        with builder.opened(planned, built.path) as engine:
            stage = f"{planned.name}: comparing"
            parity, output = compare(engine, expected, judge, lambda n, s=stage: made(s, n))  # type: ignore[misc]
            milliseconds = latency_ms(engine)
        # the layers were chosen on fewer seeds, and by ONNX Runtime
        missing = limits.psnr - parity.psnr
        if planned.precision != "int8" or "psnr" in request.allow or not missing > 0:
            break
        margin += missing + 0.1
    exceptions = judge_variant(
        planned.name,
        planned.precision,
        parity,
        expected.spec,
        request.min_psnr,
        request.allow,
    )
    builder.measured.latency[planned.name] = {"batch1_ms": milliseconds, "on": planned.verified}
    variant = builder.variant(built).model_copy(
        update={"parity": parity.as_dict(), "exceptions": exceptions}
    )
    exact = planned.verifier == (planned.target.engine, planned.target.device)
    return Compared(built, variant, parity, output.sample[:GOLDEN_SEEDS], exact)


def _write(
    request: Request,
    origin: Origin,
    builder: Builder,
    compared: list[Compared],
    page: dict[str, bytes],
) -> bundle.Bundle:
    first = builder.reference(compared[0].variant.steps)
    manifest = bundle.Manifest(
        name=request.out.name,
        spec=origin.spec,
        variants=[c.variant for c in compared],
        source=origin.source,
        recipe=origin.recipe,
        quality=origin.quality if _unchanged(origin) else {},
        versions=_versions(compared) | ({"onnxruntime-web": ort_web.VERSION} if page else {}),
    )

    def fill(directory: Path) -> None:
        for path in {c.built.path for c in compared}:
            shutil.copy(path, directory / path.name)
        _golden(builder, first, compared).save(directory / bundle.GOLDEN)
        _samples(first, directory / "samples.png")
        builder.measured.save(directory, manifest.versions)
        (directory / "README.md").write_text(render(manifest))
        write_page(directory, page)

    return bundle.write(request.out, manifest, fill, sign_key=request.sign_key)


def _unchanged(origin: Origin) -> bool:
    """What training measured holds for the generator with all its inputs."""
    return origin.source.label is None and origin.source.guidance is None


def _versions(compared: list[Compared]) -> dict[str, str]:
    found = {
        "mmf-deploy": __version__,
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "python": platform.python_version(),
    }
    quantised = any("qdq" in c.variant.form.get("precision", "") for c in compared)
    engines = {c.variant.verified.split()[0] for c in compared}
    engines |= {"onnxruntime"} if quantised else set()
    for package in ("numpy", "onnxscript", "onnx-ir", *sorted(engines)):
        for name in (package, f"{package}-gpu"):
            with contextlib.suppress(metadata.PackageNotFoundError):
                found[name] = metadata.version(name)
    return found


def _outputs(reference: Reference) -> np.ndarray[Any, Any]:
    return reference.sample if reference.image is None else reference.image


def _golden(builder: Builder, first: Reference, compared: list[Compared]) -> Golden:
    rows = slice(0, GOLDEN_SEEDS)
    inputs = first.inputs
    outputs = _outputs(first)
    return Golden(
        seeds=np.arange(GOLDEN_SEEDS, dtype=np.int64),
        labels=None if inputs.label is None else inputs.label[rows],
        guidance=None if inputs.guidance is None else inputs.guidance[rows],
        outputs=outputs[rows],
        other_steps={
            str(n): _outputs(builder.reference(n))[rows]
            for n in sorted({c.variant.steps for c in compared} - {compared[0].variant.steps})
        },
        tolerance={c.variant.name: _tolerance(c, first.spec) for c in compared},
        samples={c.variant.name: c.golden for c in compared},
        rms={c.variant.name: _allowed_rms(c) for c in compared},
        graphs={c.variant.name: files.sha256(c.built.path) for c in compared},
    )


def _tolerance(compared: Compared, spec: SampleSpec) -> float:
    """Levels (images) or absolute (vectors) to PyTorch's outputs."""
    limits = LIMITS[compared.variant.precision]
    parity = compared.parity
    if not spec.is_image:
        return max(limits.absolute or 0.0, 2 * parity.max_abs)
    if limits.levels is not None and parity.max_levels <= limits.levels:
        return float(limits.levels)
    return float(min(255, math.ceil(1.5 * parity.max_levels) + 2))


def _allowed_rms(compared: Compared) -> float:
    """How far a run may be from the samples of the comparison.

    Another engine than the one that compared may differ as much as both differ from PyTorch;
    the same one only by what another processor rounds otherwise.
    """
    rms = compared.parity.rms
    if compared.variant.precision == "fp32" and not compared.variant.exceptions:
        return max(10 * rms, 1e-4 if compared.exact else 1e-3)
    return max(rms / 4 if compared.exact else 2 * rms, 1e-4)


def _samples(first: Reference, path: Path) -> None:
    """A grid of the first seeds; fewer where images are large."""
    if first.image is None:
        return
    count = min(100 if first.spec.elements <= 1024 else 36, len(first))
    images = first.image[:count]
    if first.spec.classes == 10 and count == 100:
        # labels come in turn: transposed, each row is one class
        images = images.reshape(10, 10, *images.shape[1:]).swapaxes(0, 1).reshape(images.shape)
    save_grid(path, images)

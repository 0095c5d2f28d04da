"""From a checkpoint to a bundle: export, compare, and only then write."""

from __future__ import annotations

import json
import platform
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from mmf_deploy import __version__, bundle, checkpoint
from mmf_deploy.errors import ConfigError
from mmf_deploy.golden import Golden
from mmf_deploy.images import save_grid
from mmf_deploy.nn.sampler import Sampler
from mmf_deploy.spec import SampleSpec

from .card import render
from .graph import fixed_inputs, frozen_sampler
from .parity import BATCHES, TOLERANCES, compare, judge
from .to_onnx import OPSET, GraphFacts, export_onnx

GOLDEN_SEEDS = 16


@dataclass(frozen=True)
class Request:
    """What to export.

    Attributes:
        source: a checkpoint or a run.
        out: where the bundle shall lie; it must not exist unless ``force``.
        weights: "model" or an average; the slowest average if None.
    """

    source: Path
    out: Path
    weights: str | None = None
    force: bool = False


def export_bundle(
    request: Request, on_progress: Callable[[str, int], None] = lambda stage, done: None
) -> tuple[bundle.Bundle, GraphFacts]:
    """Export a checkpoint as a bundle with an fp32 ONNX variant.

    Args:
        on_progress: called with the stage and the images made so far, of ``images_to_make``.
    Raises:
        CheckpointError: the source cannot be read.
        ConfigError: ``out`` exists.
        ParityError: the graph differs from the checkpoint; nothing is written.
    """
    refuse_to_overwrite(request)
    source = checkpoint.read(request.source)
    weights = request.weights or source.default_weights()
    sampler = frozen_sampler(source, weights)
    count = _sample_count(source.spec)
    done = 0

    def made(images: int, stage: str = "comparing") -> None:
        nonlocal done
        done += images
        on_progress(stage, done)

    with tempfile.TemporaryDirectory() as scratch:
        graph = Path(scratch) / "model.fp32.onnx"
        made(0, "tracing")
        facts = export_onnx(sampler, source.spec, graph)
        made(0)
        parity = compare(sampler, source.spec, graph, BATCHES, made)
        judge(parity, TOLERANCES["fp32"], graph.name)
        variant = bundle.Variant(
            name="fp32", file=graph.name, precision="fp32", opset=OPSET, parity=parity.as_dict()
        )
        manifest = _manifest(request, source, weights, variant, sampler)

        def fill(directory: Path) -> None:
            shutil.copy(graph, directory / graph.name)
            _golden(sampler, source.spec).save(directory / bundle.GOLDEN)
            made(GOLDEN_SEEDS, "writing")
            _samples(sampler, source.spec, count, directory / "samples.png")
            made(count, "writing")
            (directory / "README.md").write_text(render(manifest, {variant.name: facts}))

        written = bundle.write(request.out, manifest, fill)
    return written, facts


def refuse_to_overwrite(request: Request) -> None:
    """Raise ConfigError if something is in the way that may not be replaced."""
    out = request.out
    if not out.name or out.name == "..":
        raise ConfigError(f"--out {out}: give the bundle a name, for example bundles/digits")
    if not out.exists():
        return
    if not request.force:
        raise ConfigError(f"{out} exists; choose another --out, or replace it with --force")
    if not out.is_dir() or (not (out / bundle.MANIFEST).is_file() and any(out.iterdir())):
        raise ConfigError(f"{out} is not a bundle; --force replaces only bundles")


def _manifest(
    request: Request,
    source: checkpoint.Checkpoint,
    weights: str,
    variant: bundle.Variant,
    sampler: Sampler,
) -> bundle.Manifest:
    return bundle.Manifest(
        name=request.out.name,
        spec=source.spec,
        variants=[variant],
        source=bundle.Source(
            run=str(source.meta.get("name", "unknown")),
            command=str(source.meta.get("command", "")),
            step=source.step,
            weights=weights,
            weights_sha256=source.weights_hash(weights),
            parameters=sum(p.numel() for p in sampler.net.parameters()),
        ),
        recipe=source.config,
        quality=_measured_quality(source),
        versions={
            "mmf-deploy": __version__,
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            "python": platform.python_version(),
        },
    )


def _measured_quality(source: checkpoint.Checkpoint) -> dict[str, Any]:
    """What training measured of this very checkpoint, if it did."""
    path = source.path.parent.parent / "evaluation.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if found.pop("step", None) == source.step else {}


@torch.inference_mode()
def _golden(sampler: Sampler, spec: SampleSpec) -> Golden:
    inputs = fixed_inputs(spec, GOLDEN_SEEDS)
    tolerance = TOLERANCES["fp32"]
    return Golden(
        seeds=np.arange(GOLDEN_SEEDS, dtype=np.int64),
        labels=inputs.label,
        guidance=inputs.guidance,
        outputs=sampler(**inputs.tensors())[-1].numpy(),
        tolerance={"fp32": tolerance.levels if spec.is_image else tolerance.absolute},
    )


def images_to_make(spec: SampleSpec) -> int:
    """How many images an export evaluates, by both engines together."""
    return 2 * sum(BATCHES) + GOLDEN_SEEDS + _sample_count(spec)


def _sample_count(spec: SampleSpec) -> int:
    """Images in samples.png; fewer where each costs a large network a quarter second."""
    if not spec.is_image:
        return 0
    return 100 if spec.elements <= 1024 else 36


@torch.inference_mode()
def _samples(sampler: Sampler, spec: SampleSpec, count: int, path: Path) -> None:
    if not count:
        return
    images = sampler(**fixed_inputs(spec, count).tensors())[1].numpy()
    if spec.classes == 10 and count == 100:
        # labels come in turn: transposed, each row is one class
        images = images.reshape(10, 10, *images.shape[1:]).swapaxes(0, 1).reshape(images.shape)
    save_grid(path, images)

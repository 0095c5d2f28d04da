"""What is exported: a network u(x, r, t, …) with what is known of where it came from."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from mmf_deploy import bundle, checkpoint
from mmf_deploy.nn.build import network_from
from mmf_deploy.spec import SampleSpec


@dataclass(frozen=True)
class Origin:
    """A network in evaluation mode on the CPU, and its history.

    Attributes:
        net: u(x, r, t, label, guidance).
        spec: what one sample is.
        source: for the manifest.
        recipe: the whole configuration of the run; empty if there was none.
        quality: what training measured of these very weights, if it did.
        judge: directory of the classifier that judged it, if training left one.
        default_name: of the bundle, if the user gives none.
    """

    net: nn.Module
    spec: SampleSpec
    source: bundle.Source
    recipe: dict[str, Any] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)
    judge: Path | None = None
    default_name: str = "generator"


def from_checkpoint(path: Path, weights: str | None = None) -> Origin:
    """The origin of a checkpoint, or of the newest one of a run.

    Args:
        weights: "model" or an average; the slowest average if None.
    Raises:
        CheckpointError: it cannot be read, or has no such weights.
    """
    found = checkpoint.read(path)
    name = weights or found.default_weights()
    net = network_from(found, name)
    place = found.path.resolve()
    # runs/NAME/checkpoints/step-…
    run = place.parent.parent if place.parent.name == "checkpoints" else None
    return Origin(
        net=net,
        spec=found.spec,
        source=bundle.Source(
            run=str(found.meta.get("name", "unknown")),
            command=str(found.meta.get("command", "")),
            step=found.step,
            weights=name,
            weights_sha256=found.weights_hash(name),
            parameters=sum(p.numel() for p in net.parameters()),
        ),
        recipe=found.config,
        # measured with the default weights
        quality=_quality(run, found.step) if run and name == found.default_weights() else {},
        judge=run / "judge" if run and (run / "judge").is_dir() else None,
        default_name=run.name if run else place.name,
    )


def _quality(run: Path, step: int) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((run / "evaluation.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if found.pop("step", None) == step else {}

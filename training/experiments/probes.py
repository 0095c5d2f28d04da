"""What can be measured of a trained run, by name. Each takes a subject and gives plain numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import probes_images, probes_paths, probes_training, probes_vectors
from .subject import Subject


@dataclass(frozen=True)
class Probe:
    """A measurement.

    Attributes:
        seconds: guess of what it takes at digits scale on one core, for the time left.
        alone: whether nothing else may run meanwhile.
    """

    measure: Callable[[Subject], dict[str, Any]]
    seconds: float
    alone: bool = False


PROBES = {
    "quality": Probe(probes_images.quality, 3),
    "steps": Probe(probes_images.steps, 12),
    "guidance": Probe(probes_images.guidance, 4),
    "diversity": Probe(probes_images.diversity, 5),
    "strips": Probe(probes_images.strips, 1),
    "paths": Probe(probes_paths.paths, 12),
    "shifts": Probe(probes_paths.shifts, 15),
    "history": Probe(probes_paths.history, 15),
    "stability": Probe(probes_training.stability, 0.1),
    "latency": Probe(probes_training.latency, 3, alone=True),
    "plane": Probe(probes_vectors.plane, 4),
    "motion": Probe(probes_vectors.motion, 2),
}

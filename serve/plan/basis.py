"""What a plan rests on."""

from __future__ import annotations

from dataclasses import dataclass

from .cost import EngineCost
from .fit import Fitted
from .observe import Observed, Served


@dataclass(frozen=True)
class Measured:
    """Everything that a plan rests on."""

    served: Served
    engine: EngineCost
    observed: Observed
    fitted: Fitted

    @property
    def cores(self) -> float | None:
        """Cores that a replica uses at full load."""
        used = [s.cores for s in self.observed.loads if s.cores is not None]
        return max(used) if used else None

    @property
    def other_cores(self) -> float:
        """Cores that other processes used meanwhile."""
        return max((s.other_cores or 0.0 for s in self.observed.loads), default=0.0)

    @property
    def title(self) -> str:
        """What is planned."""
        images = "one image" if self.served.images == 1 else f"{self.served.images} images"
        return f"{self.served.bundle.manifest.name} {self.engine.variant}, {images} a request"

"""SampleSpec: what one sample is. It travels from the data through checkpoint and bundle."""

from __future__ import annotations

import math
from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator

from mmf_deploy.errors import SpecError


class SampleSpec(BaseModel):
    """Shape and conditioning of one sample.

    Attributes:
        shape: (C, H, W) for an image, (D,) for a vector.
        classes: number of classes; 0 when the generator is not conditional. Labels are
            0 … classes - 1, and ``classes`` itself is the null label.
        class_names: one name a class, or empty.
        guidance: (low, high) of the guidance scale ω, or None when it is not an input.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    shape: tuple[int, ...]
    classes: int = 0
    class_names: tuple[str, ...] = ()
    guidance: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.shape) not in (1, 3) or min(self.shape) < 1:
            raise SpecError(f"sample shape {self.shape}: expected (C, H, W) or (D,), all positive")
        if self.is_image and self.shape[0] not in (1, 3):
            raise SpecError(f"an image has 1 or 3 channels, not {self.shape[0]}")
        if self.classes < 0:
            raise SpecError(f"classes = {self.classes}: expected 0 (unconditional) or more")
        if self.class_names and len(self.class_names) != self.classes:
            raise SpecError(f"{len(self.class_names)} class names for {self.classes} classes")
        if self.guidance is not None and not 1.0 <= self.guidance[0] <= self.guidance[1] < math.inf:
            raise SpecError(f"guidance range {self.guidance}: expected 1 <= low <= high < ∞")
        return self

    @property
    def is_image(self) -> bool:
        """True for (C, H, W), False for (D,)."""
        return len(self.shape) == 3

    @property
    def conditional(self) -> bool:
        """True when the generator takes a label."""
        return self.classes > 0

    @property
    def guided(self) -> bool:
        """True when the generator takes a guidance scale."""
        return self.guidance is not None

    @property
    def elements(self) -> int:
        """Number of elements d of one sample."""
        return math.prod(self.shape)

    def default_label(self, seed: int) -> int:
        """The label of a seed that comes without one: classes in turn, ``seed mod classes``."""
        return seed % self.classes if self.conditional else 0

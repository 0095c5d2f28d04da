"""What happens when a loss or a gradient is not a finite number.

The step is skipped and counted. After ``max_skipped`` in a row the run goes back to its
last checkpoint with a lower learning rate and other random numbers, which is taken back
when all goes well for a while; after ``max_rollbacks`` of that from one checkpoint it stops
and says what it saw.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from mmf_deploy.checkpoint import Checkpoint

if TYPE_CHECKING:
    from .config import TrainConfig


LEAST_SCALE = 1 / 64
"""With a learning rate lower than this share of the recipe's, a run learns nothing: it stops."""
CALM = 10
"""Checkpoints without trouble after which one lowering of the rate is taken back."""


class RecoveryConfig(BaseModel):
    """``loop.recovery``.

    Attributes:
        max_skipped: steps in a row that may be skipped.
        max_rollbacks: how often the run goes back to one checkpoint before it stops.
        lr_factor: what the learning rate is multiplied with each time.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_skipped: int = Field(10, ge=1)
    max_rollbacks: int = Field(3, ge=0)
    lr_factor: float = Field(0.5, gt=0.0, le=1.0)


@dataclass
class Recovery:
    """The state of it, saved in every checkpoint so that a resumed run goes the same way.

    Attributes:
        calm: checkpoints since the run last went back.
        in_a_row: steps skipped since the last good one.
        skipped: steps skipped in the whole run.
        rollbacks: times the run went back; also decides the random numbers of later steps.
        stuck: of these, the ones since it last got further than before.
        went_to: step of the checkpoint it last went back to.
        lr_scale: factor of the learning rate.
        loss, norm: of the last good step.
    """

    calm: int = 0
    in_a_row: int = 0
    skipped: int = 0
    rollbacks: int = 0
    stuck: int = 0
    went_to: int = -1
    lr_scale: float = 1.0
    loss: float = 0.0
    norm: float = 0.0

    @classmethod
    def read(cls, record: dict[str, Any]) -> Recovery:
        """From a checkpoint's record; fresh where it has none."""
        known = {f.name for f in fields(cls)}
        return cls(**{k: v for k, v in record.items() if k in known})

    def record(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self)

    def good(self, loss: float, norm: float) -> None:
        """A step was taken."""
        self.in_a_row, self.loss, self.norm = 0, loss, norm

    def skip(self) -> None:
        """A step was skipped."""
        self.in_a_row += 1
        self.skipped += 1

    def may_roll_back(self, to_step: int, config: RecoveryConfig) -> bool:
        """Whether going back to a checkpoint is still worth trying."""
        tried = 0 if to_step > self.went_to else self.stuck
        return tried < config.max_rollbacks and self.lr_scale * config.lr_factor >= LEAST_SCALE

    def roll_back(self, to_step: int, config: RecoveryConfig) -> None:
        """The run goes back to the checkpoint of ``to_step``."""
        self.rollbacks += 1
        self.stuck = 1 if to_step > self.went_to else self.stuck + 1
        self.went_to = to_step
        self.in_a_row = self.calm = 0
        self.lr_scale *= config.lr_factor

    def saved(self, config: RecoveryConfig) -> None:
        """A checkpoint is about to be written; after some without trouble the rate rises again."""
        self.calm += 1
        if self.calm >= CALM and self.lr_scale < 1.0:
            self.lr_scale = min(1.0, self.lr_scale / config.lr_factor)
            self.calm = 0

    def diagnosis(self, step: int, good: Checkpoint, config: TrainConfig) -> str:
        """What was seen and what helps, in one line."""
        optimizer, objective = config.optimizer, config.objective
        advice = ["a lower optimizer.lr", "a longer optimizer.warmup_steps"]
        if optimizer.clip_norm is None or optimizer.clip_norm > self.norm > 0:
            advice.append(f"optimizer.clip_norm={max(1e-3, float(f'{self.norm:.1g}')):g}")
        if objective.warnings:
            advice.append(f"another objective ({objective.warnings[0].partition(';')[0]})")
        if config.loop.precision == "bf16":
            advice.append("loop.precision=fp32")
        return (
            f"loss or gradient not finite at step {step}, also after going back {self.stuck} times "
            f"to step {good.step}, with the learning rate at last {self.lr_scale:g} × "
            f"{optimizer.lr:g}; the last good step had loss {self.loss:.3g} and gradient norm "
            f"{self.norm:.3g}. What helps: {', '.join(advice)}; in another --out or with --fresh. "
            f"The last checkpoint, {good.path}, is good"
        )

"""The configuration of a run: what a recipe may say."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mmf_deploy.errors import ConfigError, nearest
from mmf_deploy.nn.config import NetworkConfig
from mmf_deploy.spec import SampleSpec

from .data import SOURCES
from .data.augment import LABELS, AugmentConfig
from .data.base import Source
from .data.subset import Subset, SubsetConfig
from .objective_config import Objective
from .recovery import RecoveryConfig

Model = TypeVar("Model", bound=BaseModel)


class OptimizerConfig(BaseModel):
    """``optimizer:``. Adam; the rate warms up linearly, then decays.

    Attributes:
        lr: peak learning rate.
        warmup_steps: optimiser steps of linear warm-up.
        decay: ``cosine`` to zero at the last step, or ``constant``.
        weight_decay: decoupled, as in AdamW.
        clip_norm: largest Euclidean norm of the gradient; longer ones are shortened to it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    lr: float = Field(1e-4, gt=0.0)
    beta1: float = Field(0.9, ge=0.0, lt=1.0)
    beta2: float = Field(0.999, ge=0.0, lt=1.0)
    warmup_steps: int = Field(0, ge=0)
    decay: Literal["cosine", "constant"] = "cosine"
    weight_decay: float = Field(0.0, ge=0.0)
    clip_norm: float | None = Field(None, gt=0.0)


class LoopConfig(BaseModel):
    """``loop:``.

    Attributes:
        steps: optimiser steps of the whole run.
        batch_size: samples a step, over all processes and parts.
        accumulate: parts that a process computes one after the other, to save memory.
        precision: ``fp32``; ``tf32`` rounds the factors of products on GPUs that can;
            ``bf16`` runs the network, but not the derivative, in bfloat16.
        compile: compile the whole step with torch.compile, if it passes a gradient check.
        ema: decays of the averages to keep; the largest is what gets exported.
        checkpoint_every, sample_every: in steps; sample_every 0 draws no grids.
        keep: how many checkpoints to keep.
        keep_every: also keep those of every so many steps, to look back on a run; 0 for none.
        tensorboard: also write scalars and grids for TensorBoard.
        recovery: what happens when a loss is not finite.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(ge=0)
    batch_size: int = Field(128, ge=1)
    accumulate: int = Field(1, ge=1)
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    compile: bool = False
    ema: tuple[Annotated[float, Field(ge=0.0, lt=1.0)], ...] = (0.999,)
    checkpoint_every: int = Field(1000, ge=1)
    sample_every: int = Field(1000, ge=0)
    keep: int = Field(3, ge=1)
    keep_every: int = Field(0, ge=0)
    tensorboard: bool = True
    recovery: RecoveryConfig = RecoveryConfig()

    @model_validator(mode="after")
    def _distinct_averages(self) -> Self:
        if len({f"{decay:g}" for decay in self.ema}) < len(self.ema):
            raise ConfigError(f"loop.ema {list(self.ema)}: expected different decays")
        return self


class TrainConfig(BaseModel):
    """A whole recipe.

    Attributes:
        data: ``source`` names an entry of ``SOURCES``; ``subset`` keeps a part of it; the other
            keys are that source's own.
        augment: random warps of images, told to the network; null for none.
        init_from: a checkpoint or run whose weights this run starts with.
        evaluate: ``digits`` measures the finished run's samples (training/evaluate.py).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    seed: int = Field(0, ge=0)
    data: dict[str, Any]
    augment: AugmentConfig | None = None
    network: NetworkConfig
    init_from: str | None = None
    objective: Objective = Objective()
    optimizer: OptimizerConfig = OptimizerConfig()
    loop: LoopConfig
    evaluate: Literal["digits"] | None = None

    @model_validator(mode="after")
    def _judge_fits(self) -> Self:
        if self.evaluate == "digits" and self.data.get("source") != "digits":
            raise ConfigError(
                f"evaluate 'digits' judges digits, but data.source is "
                f"{self.data.get('source')!r}; set evaluate=null"
            )
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        dim = getattr(self.network, "augment_dim", 0)
        if self.augment is not None and dim != LABELS:
            raise ConfigError(
                f"augment tells the network what it did by {LABELS} labels; "
                f"set network.augment_dim={LABELS} (now {dim}), or augment=null"
            )
        if self.objective.tangent == "ema" and not self.loop.ema:
            raise ConfigError(
                "objective.tangent 'ema' needs an average; set loop.ema, e.g. [0.999]"
            )
        return self

    def fit(self, spec: SampleSpec) -> SampleSpec:
        """What the trained network will generate from this data.

        Raises:
            ConfigError: the recipe asks for what the data does not have.
        """
        guidance = self.objective.guidance
        if guidance.label_dropout and not spec.conditional:
            raise ConfigError(
                "objective.guidance needs classes, and this data has none; "
                "set objective.guidance.mode=off and label_dropout=0"
            )
        if self.augment is not None and not spec.is_image:
            raise ConfigError(f"augment warps images; this data are vectors of {spec.shape}")
        if guidance.mode != "input":
            return spec
        return spec.model_copy(update={"guidance": (1.0, guidance.max)})

    def check_parts(self, processes: int) -> None:
        """A batch must divide into equal parts.

        Raises:
            ConfigError: it does not.
        """
        if self.loop.batch_size % (parts := processes * self.loop.accumulate):
            raise ConfigError(
                f"loop.batch_size {self.loop.batch_size} does not divide into {parts} equal parts "
                f"({processes} processes × loop.accumulate {self.loop.accumulate})"
            )

    def load_data(self) -> Source:
        """Read the data.

        Raises:
            ConfigError: no such source, or a key that it does not know.
        """
        options = dict(self.data)
        part = options.pop("subset", None)
        name = str(options.pop("source", None))
        if name not in SOURCES:
            raise ConfigError(
                f"data.source {name!r}{nearest(name, SOURCES)}; there are {', '.join(SOURCES)}"
            )
        module = importlib.import_module(SOURCES[name])
        config = _validated(module.Config, options, "data.")
        subset = None if part is None else _validated(SubsetConfig, part, "data.subset.")
        source: Source = module.load(config)
        return source if subset is None else Subset.of(source, subset)


def _validated(model: type[Model], given: Any, prefix: str) -> Model:
    try:
        return model.model_validate(given)
    except ValidationError as e:
        raise ConfigError(explain(e, prefix, model)) from None


def explain(error: ValidationError, prefix: str, model: type[BaseModel]) -> str:
    """The first error of a pydantic validation as one line in the words of the recipe."""
    first = error.errors()[0]
    # a union's branch (unet, mlp) is part of pydantic's path, not of the recipe's
    loc = [str(p) for p in first["loc"] if p not in ("unet", "mlp", "constrained-str", "float")]
    where = (prefix + ".".join(loc)).rstrip(".")
    if first["type"] == "extra_forbidden":
        section = where.removesuffix(loc[-1])
        valid = [section + field for field in _fields(model, loc[:-1])]
        return f"unknown key {where!r}{nearest(where, valid)}"
    if first["type"] == "missing":
        return f"key {where!r} is missing"
    return f"{where} = {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"


def _fields(model: Any, loc: Sequence[str]) -> list[str]:
    """Valid keys of the section at ``loc``."""
    models = [model]
    for key in loc:
        annotations = [m.model_fields[key].annotation for m in models if key in m.model_fields]
        models = [m for a in annotations for m in (a, *get_args(a)) if hasattr(m, "model_fields")]
    return [name for m in models for name in m.model_fields]

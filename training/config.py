"""The configuration of a run: a recipe, with what the command line sets on top."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mmf_deploy.errors import ConfigError, nearest
from mmf_deploy.nn.config import NetworkConfig

from .data import SOURCES
from .data.base import Source
from .objective import Objective
from .recipe_files import RECIPES, recipe_names


class OptimizerConfig(BaseModel):
    """``optimizer:``. Adam; the rate warms up linearly, then decays.

    Attributes:
        lr: peak learning rate.
        warmup_steps: optimiser steps of linear warm-up.
        decay: ``cosine`` to zero at the last step, or ``constant``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    lr: float = Field(1e-4, gt=0.0)
    beta1: float = Field(0.9, ge=0.0, lt=1.0)
    beta2: float = Field(0.999, ge=0.0, lt=1.0)
    warmup_steps: int = Field(0, ge=0)
    decay: Literal["cosine", "constant"] = "cosine"


class LoopConfig(BaseModel):
    """``loop:``.

    Attributes:
        steps: optimiser steps of the whole run.
        batch_size: samples a step.
        ema: decays of the averages to keep; the largest is what gets exported.
        checkpoint_every, sample_every: in steps; sample_every 0 draws no grids.
        keep: how many checkpoints to keep.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(ge=0)
    batch_size: int = Field(128, ge=1)
    ema: tuple[Annotated[float, Field(ge=0.0, lt=1.0)], ...] = (0.999,)
    checkpoint_every: int = Field(1000, ge=1)
    sample_every: int = Field(1000, ge=0)
    keep: int = Field(3, ge=1)

    @model_validator(mode="after")
    def _distinct_averages(self) -> Self:
        if len({f"{decay:g}" for decay in self.ema}) < len(self.ema):
            raise ConfigError(f"loop.ema {list(self.ema)}: expected different decays")
        return self


class TrainConfig(BaseModel):
    """A whole recipe.

    Attributes:
        data: ``source`` names an entry of ``SOURCES``; the other keys are that source's own.
        evaluate: ``digits`` measures the finished run's samples (training/evaluate.py).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    seed: int = Field(0, ge=0)
    data: dict[str, Any]
    network: NetworkConfig
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

    def load_data(self) -> Source:
        """Read the data.

        Raises:
            ConfigError: no such source, or a key that it does not know.
        """
        options = dict(self.data)
        name = str(options.pop("source", None))
        if name not in SOURCES:
            raise ConfigError(
                f"data.source {name!r}{nearest(name, SOURCES)}; there are {', '.join(SOURCES)}"
            )
        module = importlib.import_module(SOURCES[name])
        try:
            config = module.Config.model_validate(options)
        except ValidationError as e:
            raise ConfigError(_explain(e, "data.", module.Config)) from None
        source: Source = module.load(config)
        return source


def load_config(recipe: str, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a recipe and set ``key.path=value`` on top.

    Args:
        recipe: a name of ``recipe_names()`` or the path of a YAML file.
        overrides: for example ``["loop.steps=500", "objective.lam=1"]``; values are YAML.
    Raises:
        ConfigError: no such recipe, an unknown key (with the nearest valid one), a wrong value.
    """
    content = _read(recipe)
    for override in overrides:
        _set(content, override)
    try:
        return TrainConfig.model_validate(content)
    except ValidationError as e:
        raise ConfigError(_explain(e, "", TrainConfig)) from None


def _read(recipe: str) -> dict[str, Any]:
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ConfigError(f"{path}: no such recipe file")
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as e:
            raise ConfigError(f"{path}: not a readable text file ({e})") from None
    elif recipe in recipe_names():
        text = (RECIPES / f"{recipe}.yaml").read_text()
    else:
        names = recipe_names()
        raise ConfigError(
            f"no recipe {recipe!r}{nearest(recipe, names)}; there are {', '.join(names)}, "
            "or give the path of a .yaml file"
        )
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise ConfigError(f"{recipe}: not valid YAML: {' '.join(str(e).split())}") from e
    if not isinstance(content, dict):
        raise ConfigError(f"{recipe}: expected keys such as data, network, objective, loop")
    return content


def _set(content: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise ConfigError(f"--set {override!r}: expected key.path=value, e.g. objective.lam=1")
    *parents, last = path.split(".")
    for key in parents:
        content = content.setdefault(key, {})
        if not isinstance(content, dict):
            raise ConfigError(f"--set {override!r}: {key!r} is a value, not a section")
    try:
        content[last] = yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise ConfigError(f"--set {override!r}: the value is not valid YAML") from e


def _explain(error: ValidationError, prefix: str, model: type[BaseModel]) -> str:
    """The first error of a pydantic validation as one line in the words of the recipe."""
    first = error.errors()[0]
    # a union's branch (unet, mlp) is part of pydantic's path, not of the recipe's
    loc = [str(p) for p in first["loc"] if p not in ("unet", "mlp", "constrained-str", "float")]
    where = prefix + ".".join(loc)
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

"""Reading a recipe, and setting keys on top."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mmf_deploy.errors import ConfigError, nearest

from .config import TrainConfig, explain
from .objective_config import OBJECTIVES
from .recipe_files import RECIPES, recipe_names


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
        raise ConfigError(explain(e, "", TrainConfig)) from None


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
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise ConfigError(f"--set {override!r}: the value is not valid YAML") from e
    if path == "objective" and not isinstance(value, dict):
        path = "objective.name"
    if path == "objective.name":
        _make_room(content, value)
    *parents, last = path.split(".")
    for key in parents:
        if content.get(key) is None:
            content[key] = {}
        content = content[key]
        if not isinstance(content, dict):
            raise ConfigError(f"--set {override!r}: {key!r} is a value, not a section")
    content[last] = value


def _make_room(content: dict[str, Any], name: Any) -> None:
    """An objective that is named on the command line is what its name says: the parts that it
    presets take the place of the recipe's."""
    written = content.get("objective")
    if not isinstance(written, dict):
        content["objective"] = {}
        return
    for key, preset in OBJECTIVES.get(name, {}).items() if isinstance(name, str) else ():
        section = written.get(key)
        if isinstance(preset, dict) and isinstance(section, dict):
            written[key] = {k: v for k, v in section.items() if k not in preset}
        else:
            written.pop(key, None)

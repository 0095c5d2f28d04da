"""What network a weight file is for: a YAML file, or a recipe by name."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mmf_deploy.errors import ConfigError, SpecError, nearest
from mmf_deploy.spec import SampleSpec


def read_network(path: Path) -> tuple[dict[str, Any], SampleSpec | None]:
    """The network's configuration in a file, and the sample's if it is there too.

    The file is a recipe, or the meta.json of a checkpoint, or has ``network:`` and, if it
    likes, ``spec:`` (shape, classes, guidance) as these have; other keys are not looked at.

    Raises:
        ConfigError: no such file, or none of these.
    """
    try:
        content: Any = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        reason = " ".join(str(e).split())
        raise ConfigError(f"{path}: not a readable YAML file ({reason})") from None
    network = content.get("network") if isinstance(content, dict) else None
    if not isinstance(network, dict):
        raise ConfigError(
            f"{path}: found no network: section, expected one as in a recipe, for example "
            "network: {type: unet, model_channels: 128}"
        )
    spec = content.get("spec")
    try:
        return network, None if spec is None else SampleSpec.model_validate(spec)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(str(part) for part in ("spec", *first["loc"]))
        raise ConfigError(f"{path}: {where}: {first['msg']}") from None
    except SpecError as e:
        raise ConfigError(f"{path}: spec: {e}") from None


def recipe_file(recipe: str) -> Path:
    """The file of a recipe that is given by name or path.

    Raises:
        ConfigError: no such recipe.
    """
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml"):
        return path
    # a file of another stage, found without importing that stage
    stage = find_spec("mmf_deploy.training")
    folders = stage.submodule_search_locations or [] if stage else []
    found = {p.stem: p for f in folders for p in sorted(Path(f, "recipes").glob("*.yaml"))}
    if recipe not in found:
        raise ConfigError(
            f"--recipe {recipe}: no such recipe{nearest(recipe, found)}; there are "
            f"{', '.join(sorted(found))}, or give the path of a .yaml file"
        )
    return found[recipe]

"""The recipes that come with the package; imports nothing heavy."""

from __future__ import annotations

from importlib import resources

RECIPES = resources.files("mmf_deploy.training") / "recipes"


def recipe_names() -> list[str]:
    """Names of the recipes, to be used instead of a path."""
    found = (p.name for p in RECIPES.iterdir())
    return sorted(n.removesuffix(".yaml") for n in found if n.endswith(".yaml"))

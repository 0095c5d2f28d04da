"""The renderer of benchmarks/, which is no package: its folder is on the path while it loads."""

import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def load():
    """``benchmarks/render.py`` and what makes its tables."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module("render"), importlib.import_module("tables")
    finally:
        sys.path.pop(0)


render, tables = load()

"""The rules of the house, as tests: who may import whom, and what an install contains."""

import ast
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

from mmf_deploy.cli import COMMANDS

ROOT = Path(__file__).parent.parent
STAGES = ("training", "export", "serve")
TORCH_ALLOWED = {
    f"mmf_deploy/engines/{name}.py" for name in ("torch_engine", "torch_modes", "aoti")
}


def sources(folder):
    return sorted(p for p in (ROOT / folder).rglob("*.py") if "__pycache__" not in p.parts)


def package_of(path):
    """Dotted package of a file, as installed."""
    parts = path.relative_to(ROOT).with_suffix("").parts[:-1]
    return list(parts if parts[0] == "mmf_deploy" else ("mmf_deploy", *parts))


def imported(node, package):
    """Absolute names of what an import statement could import; relative ones resolved."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = package[: len(package) - node.level + 1] if node.level else []
    module = ".".join([*base, *([node.module] if node.module else [])])
    return [module, *(f"{module}.{alias.name}" for alias in node.names)]


@cache
def imports(path, relative=True):
    """Absolute names imported anywhere in a file."""
    nodes = ast.walk(ast.parse(path.read_text()))
    found = [n for n in nodes if relative or not getattr(n, "level", 0)]
    return [name for node in found for name in imported(node, package_of(path))]


def top_level_imports(path):
    for node in ast.parse(path.read_text()).body:
        if not getattr(node, "level", 0):
            yield from imported(node, package_of(path))


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("from ..training import loop", "mmf_deploy.training.loop"),
        ("from ...training.loop import x", "mmf_deploy.training.loop"),
        ("from mmf_deploy import training", "mmf_deploy.training"),
        ("import mmf_deploy.training.loop", "mmf_deploy.training.loop"),
        ("from . import batcher", "mmf_deploy.serve.routes.batcher"),
    ],
)
def test_every_way_to_import_another_stage_is_seen(code, expected):
    package = ["mmf_deploy", "serve", "routes"][: 2 if code.startswith("from ..t") else 3]
    assert expected in imported(ast.parse(code).body[0], package)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_never_imports_another_stage(stage):
    forbidden = [f"{prefix}{s}" for s in STAGES if s != stage for prefix in ("mmf_deploy.", "")]
    files = sources(stage)
    assert files
    for path in files:
        for name in imports(path):
            assert not any(name == f or name.startswith(f"{f}.") for f in forbidden), (path, name)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_imports_its_own_siblings_relatively(stage):
    for path in sources(stage):
        for name in imports(path, relative=False):
            assert not name.startswith(f"mmf_deploy.{stage}"), (path, name)


def test_the_core_imports_no_stage():
    for path in sources("mmf_deploy"):
        for name in imports(path):
            assert not any(name.startswith(f"mmf_deploy.{s}") for s in STAGES), (path, name)


def test_only_networks_and_the_torch_engine_import_torch_in_the_core():
    for path in sources("mmf_deploy"):
        relative = path.relative_to(ROOT).as_posix()
        if relative.startswith("mmf_deploy/nn/") or relative in TORCH_ALLOWED:
            continue
        assert "torch" not in {name.split(".")[0] for name in imports(path)}, relative


def test_nothing_of_the_serve_stage_imports_torch():
    for path in sources("serve"):
        assert "torch" not in {name.split(".")[0] for name in imports(path)}, path


def test_no_module_bears_the_name_of_a_package_it_uses():
    for folder in ("mmf_deploy", *STAGES):
        for path in sources(folder):
            names = {name.split(".")[0] for name in imports(path, relative=False)}
            assert path.stem not in names or path.stem == "__init__", path


@pytest.mark.parametrize("command", COMMANDS)
def test_command_modules_import_nothing_heavy(command):
    heavy = {"torch", "onnx", "onnxruntime", "openvino", "tensorrt", "fastapi", "uvicorn",
             "matplotlib", "sklearn", "cryptography"}  # fmt: skip
    parts = COMMANDS[command][0].removeprefix("mmf_deploy.").split(".")
    folder = ROOT if parts[0] in STAGES else ROOT / "mmf_deploy"
    path = folder.joinpath(*parts).with_suffix(".py")
    assert not heavy & {name.split(".")[0] for name in top_level_imports(path)}, path


def test_every_package_is_listed_for_installation():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = set(project["tool"]["setuptools"]["packages"])
    found = set()
    for folder in ("mmf_deploy", *STAGES):
        for path in sources(folder):
            if path.name == "__init__.py":
                dotted = path.parent.relative_to(ROOT).as_posix().replace("/", ".")
                found.add(dotted if folder == "mmf_deploy" else f"mmf_deploy.{dotted}")
    assert found == listed
    mapped = project["tool"]["setuptools"]["package-dir"]
    assert {f"mmf_deploy.{s}": s for s in STAGES}.items() <= mapped.items()


def test_every_folder_with_modules_is_a_package():
    for folder in ("mmf_deploy", *STAGES):
        for path in sources(folder):
            assert (path.parent / "__init__.py").is_file(), path.parent


SERVE_WITHOUT_TORCH = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch" or name.startswith("torch."):
            raise AssertionError("torch was imported")

sys.meta_path.insert(0, NoTorch())

import pkgutil, importlib
import mmf_deploy.serve
for module in pkgutil.walk_packages(mmf_deploy.serve.__path__, "mmf_deploy.serve."):
    importlib.import_module(module.name)

from mmf_deploy import bundle as bundles, noise
from mmf_deploy.embedded import digits_bundle
from mmf_deploy.engines.base import open_engine
from mmf_deploy.golden import verify_golden

bundle = bundles.load(digits_bundle())
with open_engine("onnxruntime", bundle) as engine:
    verify_golden(bundle, engine, bundle.variant())
assert "torch" not in sys.modules
print("served without torch")
"""


def test_the_whole_serving_path_runs_where_importing_torch_raises():
    done = subprocess.run(
        [sys.executable, "-c", SERVE_WITHOUT_TORCH], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "served without torch", done.stderr


def test_the_trap_of_the_test_above_works():
    code = SERVE_WITHOUT_TORCH.replace("import mmf_deploy.serve", "import torch", 1)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "torch was imported" in done.stderr

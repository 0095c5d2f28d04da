"""TensorRT and CUDA as far as they can be checked without a GPU: names, signatures, import.

The bindings of TensorRT are on the ordinary package index, its libraries are not. The bindings
load once every library they are linked to exists and has the nine C functions they import, so
empty libraries are made here. Their functions return null: nothing of TensorRT runs.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
ENGINES = ROOT / "mmf_deploy" / "engines"
SOURCES = sorted([*ENGINES.glob("trt*.py"), *ENGINES.glob("cuda_*.py")])
LIBRARIES = {
    "nvinfer": ["createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL",
                "createInferRuntime_INTERNAL", "getBuilderPluginRegistry", "getPluginRegistry"],
    "nvinfer_plugin": ["initLibNvInferPlugins"],
    "nvonnxparser": ["createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL",
                     "getNvOnnxParserVersion"],
}  # fmt: skip


def needs(*modules: str) -> None:
    for module in modules:
        try:
            found = find_spec(module)
        except ModuleNotFoundError:  # its parent is missing
            found = None
        if found is None:
            pytest.skip(f"{module} is not installed; the extra dev brings it on Linux x86-64")


@pytest.fixture(scope="session")
def bindings(tmp_path_factory) -> dict[str, str]:
    """Environment in which `import tensorrt` gives the real bindings over empty libraries."""
    needs("tensorrt_bindings", "pybind11_stubgen")
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed, so there are no empty libraries to load")
    folder = tmp_path_factory.mktemp("tensorrt")
    for library, functions in LIBRARIES.items():
        file = f"lib{library}.so.11"
        code = "".join(f"void *{name}(void) {{ return 0; }}\n" for name in functions)
        (folder / f"{library}.c").write_text(code)
        subprocess.run(
            ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{file}", "-o", folder / file,
             folder / f"{library}.c"], check=True)  # fmt: skip
    # what the package tensorrt-cu13 does
    (folder / "tensorrt").mkdir()
    (folder / "tensorrt" / "__init__.py").write_text(
        "from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__\n"
    )
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": os.pathsep.join(paths)}


def run_python(env, *args, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, args)], env=env, cwd=folder, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip


# --- names ---------------------------------------------------------------------------------


def dotted(node: ast.AST) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (inner := dotted(node.value)):
        return f"{inner}.{node.attr}"
    return None


def names_of(alias: str, code: str) -> set[str]:
    """Every ``alias.X.Y`` of a source file, annotations and text annotations included."""
    trees = [ast.parse(code)]
    for node in ast.walk(trees[0]):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and alias in node.value:
            try:
                trees.append(ast.parse(node.value, mode="eval"))
            except SyntaxError:
                continue  # prose
    found = {dotted(n) for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    return {n.removeprefix(f"{alias}.") for n in found if n and n.startswith(f"{alias}.")}


NAMES = """
import json, operator, sys
import tensorrt as trt
missing = []
for name in json.loads(sys.argv[1]):
    try:
        operator.attrgetter(name)(trt)
    except AttributeError:
        missing.append(name)
print(json.dumps({"version": trt.__version__, "missing": missing}))
"""


def test_every_tensorrt_name_exists_and_a_wrong_one_is_found(bindings):
    code = "\n".join(p.read_text() for p in SOURCES)
    names = names_of("trt", code)
    assert {"Builder", "BuilderFlag.TF32", "DataType.INT64", "IExecutionContext"} <= names
    wrong = ["BuilderFlag.FP16", "NetworkDefinitionCreationFlag.EXPLICIT_BATCH", "Bilder"]
    done = run_python(bindings, "-c", NAMES, json.dumps([*sorted(names), *wrong]))
    found = json.loads(done.stdout)
    assert found["missing"] == wrong
    assert int(found["version"].partition(".")[0]) >= 11


# --- import and null -----------------------------------------------------------------------

NULL = """
import ctypes
from pathlib import Path
import tensorrt as trt
from mmf_deploy.engines import trt_build, trt_runtime
from mmf_deploy.engines.trt_log import tensorrt_log
from mmf_deploy.engines.trt_plan import BuildOptions, BuildRequest
from mmf_deploy.errors import EngineError
from mmf_deploy.progress import TaskProgress

request = BuildRequest(Path("model.onnx"), (), (1,), BuildOptions())
tensorrt_log().log(trt.ILogger.Severity.ERROR, "no  memory\\nleft")
for call in (
    lambda: trt_build.build_plan(request),
    lambda: trt_runtime.NativeTensorRT().open(b"plan", request),
):
    try:
        call()
    except EngineError as e:
        print(e)

class Interrupted(TaskProgress):
    def show(self, what, done, status=""):
        raise KeyboardInterrupt

monitor = trt_build._Monitor(Interrupted("%", 100))
monitor.phase_start("outer", None, 4)
print(monitor.step_complete("outer", 0), repr(monitor.raised))
print(trt_build.sizes(trt.Dims((8, 1, 2))), trt_build._DTYPES["uint8"].name)

def gives_a_buffer(kind):
    # PyTypeObject.tp_as_buffer->bf_getbuffer
    methods = ctypes.c_void_p.from_address(id(kind) + 20 * ctypes.sizeof(ctypes.c_void_p)).value
    return bool(methods and ctypes.c_void_p.from_address(methods).value)

print([gives_a_buffer(kind) for kind in (trt.IHostMemory, bytes, trt.Dims, int)])
"""


def test_what_needs_tensorrt_imports_and_a_null_of_its_libraries_is_one_line(bindings):
    done = run_python(bindings, "-W", "error", "-c", NULL, folder=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "TensorRT cannot create a builder: no memory left",
        "TensorRT cannot create a runtime: it gave no reason",
        # an interrupt stops the build instead of crossing TensorRT's frames
        "False KeyboardInterrupt()",
        "(8, 1, 2) UINT8",
        "[True, True, False, False]",
    ]


# --- signatures ----------------------------------------------------------------------------

MYPY_CONFIG = """
[mypy]
strict = True
follow_imports = skip
disallow_subclassing_any = False
warn_return_any = False
warn_unused_ignores = False
[mypy-tensorrt.*]
follow_imports = normal
ignore_errors = True
[mypy-cuda.*]
follow_imports = normal
ignore_errors = True
"""


def repaired(stub: str) -> tuple[str, list[str]]:
    """A generated stub as valid Python, and the methods whose arguments that cost."""
    lines, lost = stub.split("\n"), []
    while True:
        try:
            ast.parse("\n".join(lines))
        except SyntaxError as e:
            line = lines[e.lineno - 1]
            name = re.match(r"\s*def (\w+)\(.*\) ->", line)
            if name is None:
                raise
            free = "(*args: typing.Any, **kwargs: typing.Any) ->"
            lines[e.lineno - 1] = re.sub(r"\(.*\) ->", free, line)
            lost.append(name[1])
        else:
            return "\n".join(lines), lost


def cuda_stub() -> str:
    """Type stubs of cuda.bindings.runtime from its signatures and its docstrings' Returns."""
    from cuda.bindings import runtime

    lines = ["from typing import Any", "import enum"]
    for name, value in sorted(vars(runtime).items()):
        if name.startswith("_") or inspect.ismodule(value):
            continue
        if inspect.isclass(value):
            members = getattr(value, "__members__", None)
            lines.append(f"class {name}(enum.IntEnum):" if members else f"class {name}:")
            public = members or [n for n in dir(value) if not n.startswith("_")]
            lines += [f"    {n} = {k}" if members else f"    {n}: Any"
                      for k, n in enumerate(public)] or ["    pass"]  # fmt: skip
            # handles convert to int
            lines += [] if members else ["    def __int__(self) -> int: ..."]
        elif isinstance(value, int):
            lines.append(f"{name}: int")
        elif callable(value):
            lines.append(function_stub(name, value))
    return "\n".join(lines)


def function_stub(name: str, function) -> str:
    try:
        parameters = ", ".join(f"{p}: Any" for p in inspect.signature(function).parameters)
    except ValueError:
        return f"def {name}(*args: Any, **kwargs: Any) -> Any: ..."
    text = inspect.getdoc(function) or ""
    section = re.search(r"^Returns\n-+\n(.*?)(?:^\S+( \S+)*\n-+\n|\Z)", text, re.S | re.M)
    entries = re.findall(r"^(\S.*)$", section[1], re.M) if section else []
    kinds = ["cudaError_t", *(kind_of(e.rpartition(" : ")[2]) for e in entries[1:])]
    result = f"tuple[{', '.join(kinds)}]" if entries else "Any"
    return f"def {name}({parameters}) -> {result}: ..."


def kind_of(text: str) -> str:
    known = re.search(r"cuda\w+", text)
    return text if text in ("int", "bytes") else known[0] if known else "Any"


@pytest.fixture(scope="session")
def check_types(bindings, tmp_path_factory):
    """Runs mypy over a folder of sources against stubs of TensorRT's and CUDA's bindings."""
    needs("cuda.bindings.runtime")
    folder = tmp_path_factory.mktemp("stubs")
    done = run_python(
        bindings, "-m", "pybind11_stubgen", "tensorrt_bindings.tensorrt", "-o", folder
    )
    assert done.returncode == 0, done.stderr
    generated = (folder / "tensorrt_bindings" / "tensorrt.pyi").read_text()
    # a dtype of this name would stand for every bool below it
    text, lost = repaired(re.sub(r"^bool: DataType.*$", "", generated, flags=re.M))
    assert not set(lost) & set(re.findall(r"\.(\w+)\(", "".join(p.read_text() for p in SOURCES)))
    # a buffer, which the generator cannot see; the test with NULL does
    buffer = "class IHostMemory:\n    def __buffer__(self, flags: int) -> memoryview: ...\n"
    text = text.replace("class IHostMemory:\n", buffer, 1) + "\n__version__: str\n"
    packages = {"tensorrt": text, "cuda": "", "cuda/bindings": "",
                "cuda/bindings/runtime": cuda_stub()}  # fmt: skip
    for package, stub in packages.items():
        (folder / "types" / package).mkdir(parents=True)
        (folder / "types" / package / "__init__.pyi").write_text(stub)
    (folder / "mypy.ini").write_text(MYPY_CONFIG)

    def check(root: Path) -> list[str]:
        package = root / "mmf_deploy"
        files = [package / "errors.py", *(package / "engines" / p.name for p in SOURCES)]
        environment = {**os.environ, "MYPYPATH": str(folder / "types")}
        found = run_python(
            environment, "-m", "mypy", "--config-file", folder / "mypy.ini", "--no-error-summary",
            "--cache-dir", folder / "cache", *files, folder=root,
        )  # fmt: skip
        assert found.returncode in (0, 1), found.stdout + found.stderr
        return found.stdout.splitlines()

    return check


def test_calls_fit_the_signatures_of_tensorrt_and_cuda(check_types):
    assert "\n".join(check_types(ROOT)) == ""


MISTAKES = [
    ("trt_build.py", "builder.create_network(0)", "builder.create_netwerk(0)"),
    ("trt_build.py", "trt.BuilderFlag.REFIT", "trt.BuilderFlag.FP16"),
    ("trt_build.py", "parser.num_errors", "parser.nb_errors"),
    ("trt_build.py", "config.builder_optimization_level =", "config.optimization_level ="),
    ("trt_build.py", "profile.set_shape(tensor.name, shape, shape, shape)",
     "profile.set_shape(tensor.name, shape)"),
    ("trt_runtime.py", "set_optimization_profile_async(profile, stream)",
     "set_optimization_profile_async(profile)"),
    ("trt_runtime.py", "set_tensor_address(tensor.name,", "set_tensor_address("),
    ("trt_runtime.py", "self._contexts[index].execute_async_v3(stream)",
     "self._contexts[index].execute_async_v3(tensors)"),
    ("cuda_runtime.py", "array.nbytes, kind, self._stream", "array.nbytes, kind"),
    ("cuda_runtime.py", "cudaStreamCaptureModeThreadLocal", "cudaStreamCaptureModePerThread"),
    ("cuda_runtime.py", 'status, graph = cudart', 'status, graph, more = cudart'),
    ("cuda_runtime.py", '_value("find the current device", cudart.cudaGetDevice())',
     '_value("find the current device", cudart.cudaDeviceSynchronize())'),
    ("cuda_runtime.py", "found.name.decode", "found.names.decode"),
]  # fmt: skip


def test_every_planted_mistake_is_found(check_types, tmp_path):
    (tmp_path / "mmf_deploy" / "engines").mkdir(parents=True)
    for path in (Path("errors.py"), *(Path("engines") / p.name for p in SOURCES)):
        shutil.copy(ROOT / "mmf_deploy" / path, tmp_path / "mmf_deploy" / path)
    for package in ("", "engines"):
        (tmp_path / "mmf_deploy" / package / "__init__.py").touch()
    expected = set()
    for file, right, wrong in MISTAKES:
        path = tmp_path / "mmf_deploy" / "engines" / file
        text = path.read_text()
        assert right in text, right
        path.write_text(text.replace(right, wrong, 1))
    for file, _, wrong in MISTAKES:
        text = (tmp_path / "mmf_deploy" / "engines" / file).read_text()
        expected.add((file, text[: text.index(wrong)].count("\n") + 1))
    found = {
        (Path(m[1]).name, int(m[2]))
        for line in check_types(tmp_path)
        if (m := re.match(r"(\S+):(\d+): error", line))
    }
    assert expected <= found, expected - found


# --- CUDA without a driver -----------------------------------------------------------------


def calls_of(alias: str, code: str) -> list[tuple[str, int]]:
    """(name, number of arguments) of every call of ``alias.name``."""
    return [
        (node.func.attr, len(node.args))
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == alias
    ]


def test_every_cuda_name_exists_and_takes_so_many_arguments():
    needs("cuda.bindings.runtime")
    from cuda.bindings import runtime

    code = (ENGINES / "cuda_runtime.py").read_text()
    names = names_of("cudart", code)
    assert {"cudaGraphLaunch", "cudaMemcpyKind.cudaMemcpyHostToDevice"} <= names
    for name in names:
        value = runtime
        for part in name.split("."):
            assert hasattr(value, part), name
            value = getattr(value, part)
    calls = calls_of("cudart", code)
    assert len(calls) >= 18
    for name, count in calls:
        inspect.signature(getattr(runtime, name)).bind(*range(count))


def test_results_of_cuda_calls_have_the_length_their_documentation_says():
    needs("cuda.bindings.runtime")
    from cuda.bindings import runtime

    stub = cuda_stub()
    assert "def cudaMalloc(size: Any) -> tuple[cudaError_t, Any]: ..." in stub
    for name, args in (("cudaGetDeviceCount", ()), ("cudaFree", (0,)), ("cudaGetDevice", ()),
                       ("cudaDriverGetVersion", ()), ("cudaFreeHost", (0,))):  # fmt: skip
        length = len(getattr(runtime, name)(*args))
        kinds = re.search(rf"def {name}\(.*\) -> tuple\[(.*)\]: \.\.\.", stub)
        assert kinds[1].count(",") + 1 == length, name

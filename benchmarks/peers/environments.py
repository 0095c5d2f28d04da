"""One environment for each peer: its own packages first, PyTorch and this project behind them.

A copy of PyTorch for each would be gigabytes, and its weights could not be read without this
project. So an environment gets exactly what its requirements file pins, without dependencies, and
a .pth file adds the packages of the environment that runs the comparison at the end of the path.
peer.py checks that what a peer measures is its own.
"""

from __future__ import annotations

import site
import subprocess
import venv
from pathlib import Path

from mmf_deploy.errors import DependencyError

HERE = Path(__file__).parent
ENVIRONMENTS = HERE / ".venv"


def requirements(name: str) -> Path:
    """What is installed for a peer."""
    return HERE / f"requirements-{name}.txt"


def folder(name: str) -> Path:
    """Where a peer's environment lies."""
    return ENVIRONMENTS / name


def is_ready(requirements: bytes, path: Path) -> bool:
    """Whether the environment there is whole and has these requirements."""
    written = path / "requirements.txt"
    return written.is_file() and written.read_bytes() == stamp(requirements)


def stamp(requirements: bytes) -> bytes:
    """What an environment was made of: its requirements, and what stands behind them."""
    return requirements + _shared().encode()


def python_of(name: str) -> Path:
    """The interpreter of a peer's environment, which is made if it is not there as it should be.

    Raises:
        DependencyError: it cannot be installed.
    """
    wanted, path = requirements(name), folder(name)
    python = path / "bin" / "python"
    if is_ready(wanted.read_bytes(), path):
        return python
    try:
        venv.create(path, with_pip=True, clear=True)
        subprocess.run(
            [python, "-m", "pip", "install", "-q", "--no-deps", "-r", wanted],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
    except (subprocess.CalledProcessError, OSError) as e:
        raise DependencyError(f"cannot be installed: {_reason(e)}") from e
    (own,) = path.glob("lib/python*/site-packages")
    (own / "project.pth").write_text(_shared())
    (path / "requirements.txt").write_bytes(stamp(wanted.read_bytes()))
    return python


def _shared() -> str:
    """A .pth file that appends this environment's packages, those installed for editing, too."""
    shared = [p for p in site.getsitepackages() if Path(p).is_dir()]
    return "".join(f"import site; site.addsitedir({p!r})\n" for p in shared)


def _reason(error: subprocess.CalledProcessError | OSError) -> str:
    lines = [line for line in (getattr(error, "stderr", None) or "").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines
    return errors[-1].removeprefix("ERROR: ") if errors else str(error)

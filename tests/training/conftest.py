"""Commands in processes of their own that do not import PyTorch anew, which takes seconds."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

# what a training run imports, also what only its first step does
IMPORTED = (
    "mmf_deploy.training.loop", "mmf_deploy.training.read_recipe", "accelerate", "torch._dynamo",
    "torch._decomp.decompositions_for_jvp", "torch.utils.tensorboard", "sklearn.datasets",
    "safetensors.numpy", "pytest",
)  # fmt: skip

# as a fresh interpreter would be: its environment, arguments and outputs, then -m or -c
RUN = """
import os, runpy, sys
os.environ.update(environment)
for stream, path in ((sys.stdout, stdout), (sys.stderr, stderr)):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream.fileno())
kind, what, *rest = arguments
sys.argv = [kind, *rest]
if kind == "-m":
    runpy.run_module(what, run_name="__main__", alter_sys=True)
else:
    exec(what, {"__name__": "__main__"})
"""


@dataclass(frozen=True)
class Ended:
    """What ``subprocess.run`` would have returned."""

    returncode: int
    stdout: str
    stderr: str


class Started:
    """A process that runs, the part of ``subprocess.Popen`` that the tests use."""

    def __init__(self, process: BaseProcess, stdout: Path, stderr: Path) -> None:
        self._process, self._stdout, self._stderr = process, stdout, stderr

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def end(self, timeout: float = 120.0) -> Ended:
        """Wait for its end; it is killed, and the test fails, where that takes longer."""
        self._process.join(timeout)
        late = self._process.exitcode is None
        if late:
            self._process.kill()
            self._process.join()
        said = [path.read_text() if path.exists() else "" for path in (self._stdout, self._stderr)]
        assert not late, said
        return Ended(int(self._process.exitcode or 0), *said)


@pytest.fixture(scope="session")
def start(tmp_path_factory) -> Iterator[Callable[..., Started]]:
    """``start("-m", module, *arguments)`` or ``start("-c", code, *arguments)``: a new process.

    It is forked from a server that has imported what a run imports, and done nothing else.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    folder, running = tmp_path_factory.mktemp("outputs"), []

    def begin(*arguments: object, environment: dict[str, str] | None = None) -> Started:
        paths = [folder / f"{len(running)}.{name}" for name in ("stdout", "stderr")]
        job = {
            "arguments": [str(a) for a in arguments],
            "environment": {**os.environ, **(environment or {})},
            "stdout": str(paths[0]),
            "stderr": str(paths[1]),
        }
        process = context.Process(target=exec, args=(RUN, job), daemon=True)
        process.start()
        running.append(process)
        return Started(process, *paths)

    yield begin
    for process in running:
        process.kill()
        process.join()
        process.close()

"""A server as a child process: started on a free port, watched, ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from mmf_deploy.errors import ServiceError

READY_S = 300.0
"""How long a server may take to get ready: a large network has golden images to reproduce."""
END_S = 40.0


class Child:
    """A server process; use as a context manager.

    Args:
        command: what starts it. It says on a line of stdout, once it is ready, something that
            ends with its address: ``… on http://127.0.0.1:PORT``.
        environment: its variables; those of this process if None.
        ends_with: the exit code after SIGTERM; another one is a problem.
    Attributes:
        url: its address.
        line: what it said.
        ready_s: how long it took from the start to being ready.
        problem: what was wrong with its end, or None.
    """

    url: str
    line: str
    ready_s: float
    problem: str | None = None
    _drain: threading.Thread | None = None

    def __init__(
        self,
        command: Sequence[str],
        environment: dict[str, str] | None = None,
        ends_with: int = -signal.SIGTERM,
    ) -> None:
        self._command, self._ends_with = list(command), ends_with
        self._environment = environment

    def __enter__(self) -> Self:
        began = time.perf_counter()
        self._stderr = tempfile.TemporaryFile()
        # a session of its own, so that Ctrl+C reaches it through us, in order
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=self._stderr, text=True,
            env=self._environment, start_new_session=True,
        )  # fmt: skip
        try:
            self.line, self.url = self._wait()
        except BaseException:
            self._end()
            self._stderr.close()
            raise
        self.ready_s = time.perf_counter() - began
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        code = self._end()
        with self._stderr:
            if code != self._ends_with:
                self.problem = f"the server ended with exit code {code}: {self._said()}"

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def memory_mb(self) -> float | None:
        """Resident memory now, in megabytes; None where the system does not say, or it is gone."""
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    return round(int(line.split()[1]) * 1024 / 1e6, 1)
        return None

    def cpu_s(self) -> float | None:
        """Processor time used so far, in seconds; None where the system does not say."""
        with contextlib.suppress(OSError):
            # the name, in brackets, may hold anything
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return None

    def _wait(self) -> tuple[str, str]:
        assert self._process.stdout is not None
        watchdog = threading.Timer(READY_S, self._process.kill)
        watchdog.start()
        try:
            for line in self._process.stdout:
                before, _, url = line.strip().rpartition(" on ")
                if before and url.startswith("http"):
                    # what it says from now on must not fill the pipe
                    self._drain = threading.Thread(target=_read_all, args=(self._process.stdout,))
                    self._drain.start()
                    return line.strip(), url
        finally:
            watchdog.cancel()
        self._process.wait()
        raise ServiceError(f"the server did not get ready: {self._said()}")

    def _said(self) -> str:
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return lines[-1].removeprefix("error: ") if lines else "it said nothing"

    def _end(self) -> int:
        self._process.terminate()
        try:
            code = self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            code = -signal.SIGKILL
        # what it started itself, and what did not listen
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        if self._drain is not None:
            self._drain.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
        return code


def _read_all(stream: IO[str]) -> None:
    for _ in stream:
        pass


def busy_s() -> float | None:
    """Processor time that this machine has spent on anything, or None if it does not say."""
    with contextlib.suppress(OSError):
        user, nice, system, _, _, irq, softirq, *_ = map(
            int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        )
        return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
    return None


def mmf_serve(arguments: Sequence[str]) -> Child:
    """`mmf-serve` with these arguments, on a free port of this machine alone."""
    code = "from mmf_deploy.cli import main_serve; main_serve()"
    command = [sys.executable, "-c", code, *arguments, "--host", "127.0.0.1", "--port", "0"]
    # settings that a person exported for a service of theirs are no part of the measurement
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MMF_SERVE_")}
    return Child(command, environment, ends_with=0)

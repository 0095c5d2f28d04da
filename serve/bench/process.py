"""A process of its own that answers questions, and never leaves its parent waiting."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from typing import Any

from mmf_deploy.errors import EngineError, MMFError

HEAP = {
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
"""The C library's heap (glibc) keeps what is freed. Otherwise it gives memory back and takes it
again at every call, or does not, depending on how the heap happens to lie: PyTorch then runs at one
of two speeds from process to process, and mostly at the slower one."""


class Process:
    """The parent's side.

    Args:
        name: for its errors.
        target: what runs in it, given its end of the pipe and ``arguments``: sends None when it is
            ready, then an answer to every question, or an MMFError in the place of either.
    """

    def __init__(self, name: str, target: Callable[..., None], *arguments: Any) -> None:
        self._name, self._target, self._arguments = name, target, arguments

    def start(self) -> None:
        """Start it; ``answer`` waits until it is ready."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_answer, args=(theirs, self._target, *self._arguments), name=self._name,
            daemon=True,
        )  # fmt: skip
        with _environment(HEAP):
            self._process.start()
        theirs.close()

    def ask(self, question: Any) -> Any:
        """Ask, and wait for the answer.

        Raises:
            EngineError: the process died.
        """
        with contextlib.suppress(OSError):  # a dead process is found by what follows
            self._pipe.send(question)
        return self.answer()

    def answer(self) -> Any:
        """The next thing it sends; an error that it sends is raised."""
        try:
            found = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(5)
            code = self._process.exitcode
            raise EngineError(f"{self._name} died, exit code {code}") from None
        if isinstance(found, MMFError):
            raise found
        return found

    def stop(self) -> None:
        """End it, ready or not."""
        self._pipe.close()  # its end: the process leaves
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.join()


@contextlib.contextmanager
def _environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """Variables for a process that is started meanwhile; those that a person has set stay."""
    added = [name for name in wanted if name not in os.environ]
    os.environ.update({name: wanted[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _answer(pipe: Connection, target: Callable[..., None], *arguments: Any) -> None:
    try:
        target(pipe, *arguments)
    except (EOFError, KeyboardInterrupt):
        return
    except MMFError as e:
        pipe.send(e)
    except Exception as e:
        pipe.send(EngineError(f"{type(e).__name__}: {' '.join(str(e).split())[:300]}"))

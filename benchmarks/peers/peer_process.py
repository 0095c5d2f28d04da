"""Our side of a peer: its files, made once, and its process."""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from contenders import Peer
from numpy.typing import NDArray

from mmf_deploy import files
from mmf_deploy.errors import EngineError

HERE = Path(__file__).parent
PATIENCE_S = 900.0
"""Longest that a conversion, or one answer, may take."""


@dataclass(frozen=True)
class Task:
    """What all peers get.

    Attributes:
        checkpoint, weights: the network, and the hash of its weights.
        calibration: noise samples for those that quantise.
    """

    checkpoint: Path
    weights: str
    digest: str
    batch: int
    threads: int
    calibration: int

    def arguments(self, folder: Path) -> list[str]:
        """For a worker script."""
        return [
            "--checkpoint", str(self.checkpoint), "--weights", self.weights,
            "--folder", str(folder), "--batch", str(self.batch),
            "--threads", str(self.threads), "--calibration", str(self.calibration),
        ]  # fmt: skip


@dataclass(frozen=True)
class Converted:
    """A peer's files.

    Attributes:
        seconds: that making them took.
        bytes: of those that running needs; 0 where a tool keeps none.
    """

    folder: Path
    seconds: float
    bytes: int


def convert(peer: Peer, python: Path, task: Task, root: Path) -> Converted:
    """The files of a peer, made unless they are there: of this network, by these versions.

    Args:
        root: under which files of any network are kept.
    Raises:
        EngineError: the tool cannot; why, on one line.
    """
    folder = root / f"{_maker(peer)}-{_key(peer, task)}"
    record = folder / "converted.json"
    if not record.is_file():
        with files.atomic_directory(folder) as making:
            found = _make(peer, python, task, making)
            (making / record.name).write_text(json.dumps(found) + "\n")
    found = json.loads(record.read_text())
    if "error" in found:
        raise EngineError(found["error"])
    return Converted(folder, found["seconds"], found["bytes"])


def _maker(peer: Peer) -> str:
    return peer.files or peer.name


def _key(peer: Peer, task: Task) -> str:
    """Of everything that decides what the files are."""
    made_of = [HERE / name for name in ("peer.py", "peer_plain.py", peer.script)]
    parts = [p.read_bytes() for p in (*made_of, HERE / f"requirements-{peer.environment}.txt")]
    given = f"{task.digest} {task.batch} {task.threads} {task.calibration}".encode()
    return hashlib.sha256(b"\0".join([*parts, given])).hexdigest()[:12]


def _make(peer: Peer, python: Path, task: Task, folder: Path) -> dict[str, Any]:
    """Errors that the tool raised are kept with the files; a process that died is tried again."""
    command = [str(python), str(HERE / peer.script), _maker(peer), "convert"]
    with (folder / "log.txt").open("wb") as log:
        try:
            done = subprocess.run(
                [*command, *task.arguments(folder)], stdout=subprocess.PIPE, stderr=log,
                stdin=subprocess.DEVNULL, timeout=PATIENCE_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise EngineError(f"its conversion took longer than {PATIENCE_S:g} s") from None
    if not done.stdout:
        raise EngineError(f"its conversion ended with exit code {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


class PeerProcess:
    """A peer that is open and waits for its turn; use as a context manager.

    Attributes:
        load_s: from opening its files to the first samples.
        versions: of its packages.
        precision: it chose itself, or None.
    """

    load_s: float
    versions: dict[str, str]
    precision: str | None

    def __init__(self, peer: Peer, python: Path, task: Task, made: Converted) -> None:
        self._peer, self._made = peer, made
        self._command = [str(python), str(HERE / peer.script), peer.name, "run",
                         *task.arguments(made.folder)]  # fmt: skip

    def __enter__(self) -> Self:
        with (self._made.folder / f"log-{self._peer.name}.txt").open("wb") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        try:
            ready = self._receive()["ready"]
        except BaseException:
            self._end()
            raise
        self.load_s, self.versions = ready["load_s"], ready["versions"]
        self.precision = ready["precision"]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def turn(self, batch: int, seconds: float) -> list[float]:
        """Seconds of each timed call of one turn, after one that is not counted.

        Raises:
            EngineError: the tool failed, or its process died.
        """
        found: list[float] = self._ask({"batch": batch, "seconds": seconds})["times"]
        return found

    def samples(self, seeds: list[int]) -> NDArray[np.float32]:
        """What it makes of these seeds, float32 [seeds, *shape]."""
        file = Path(self._ask({"samples": seeds})["file"])
        found: NDArray[np.float32] = np.load(file)
        file.unlink()
        return found

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # of one that died; what follows says how
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        return self._receive()

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        watch = threading.Timer(PATIENCE_S, self._process.kill)
        watch.start()
        try:
            line = self._process.stdout.readline()
        finally:
            watch.cancel()
        if not line:
            raise EngineError(f"its process ended with exit code {self._process.wait()}")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise EngineError(found["error"])
        return found

    def _end(self) -> None:
        """It leaves when there are no more questions."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

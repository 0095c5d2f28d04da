"""Checks the image without a container engine: deploy/check_image.sh calls it.

Copies what .dockerignore lets through, runs the Dockerfile's pip and venv lines below a temporary
folder that stands for the image's root, starts the image's command from there, asks for one
image, and stops it. What needs an engine (the user, the read-only root) is not checked here.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import dockerfile
from dockerfile import Stage, Step

REPOSITORY = Path(__file__).parent.parent
START_S = 1.5
RESIDENT_MB = 200
STARTS = 3
"""The first one after an install reads everything from the disk; the fastest counts."""


class CheckError(Exception):
    """The image is not what it should be."""


def expect(holds: object, message: str) -> None:
    """Raise CheckError with ``message`` unless it ``holds``."""
    if not holds:
        raise CheckError(message)


@dataclass
class Image:
    """What the Dockerfile makes of a folder.

    Args:
        root: stands for ``/``; all stages share it, as they agree on their paths.
    """

    root: Path
    env: dict[str, str]
    workdir: str = "/"
    command: tuple[str, ...] = ()
    health: tuple[str, ...] = ()

    def inside(self, text: str) -> str:
        """``text`` with the image's absolute paths moved below ``root``."""
        return re.sub(r"(?<![\w.}/])/(?=(?:opt|src|bundle|tmp)\b)", f"{self.root}/", text)

    def build(self, stage: Stage) -> None:
        """Carry out the steps of a stage."""
        for step in stage.steps:
            match step.word:
                case "WORKDIR":
                    self.workdir = self.inside(step.text)
                    Path(self.workdir).mkdir(parents=True, exist_ok=True)
                case "ENV":
                    found = dockerfile.environment(step, self.env)
                    self.env |= {name: self.inside(value) for name, value in found.items()}
                case "COPY":
                    self._copy(step)
                case "RUN":
                    self._run(step)
                case "CMD":
                    self.command = tuple(self.inside(word) for word in step.words())
                case "HEALTHCHECK":
                    self.health = tuple(json.loads(step.text.partition("CMD")[2]))

    def _copy(self, step: Step) -> None:
        *sources, target = step.words()
        if "from" in step.flags:
            expect(sources == [target], f"COPY {step.text}: the stages must agree on their paths")
            return
        into = Path(self.workdir, self.inside(target))
        allowed = dockerfile.context(REPOSITORY)
        for source in sources:
            files = [p for p in allowed if p.is_relative_to(source)]
            expect(files, f"COPY {source}: nothing that .dockerignore lets through")
            for path in files:
                single = path == Path(source)
                to = into / path.name if single else into / path.relative_to(source)
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(REPOSITORY / path, to)

    def _run(self, step: Step) -> None:
        if "pip" not in step.text:
            print(f"not run, needs an image: {step.text[:60]}")
            return
        print(f"run: {step.text[:90]}", flush=True)
        subprocess.run(["sh", "-euc", self.inside(step.text)], cwd=self.workdir, check=True,
                       env=os.environ | self.env)  # fmt: skip


def pythons(folder: Path) -> None:
    """``python`` and ``pip`` of this interpreter, as the base image has them."""
    folder.mkdir()
    base = getattr(sys, "_base_executable", sys.executable)
    for name, call in {"python": base, "pip": f"{sys.executable} -m pip"}.items():
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec {call} "$@"\n')
        script.chmod(0o755)


@contextmanager
def running(image: Image) -> Iterator[tuple[subprocess.Popen[str], str, float]]:
    """The image's command on a free port of this machine: process, address, seconds to ready."""
    env = image.env | {"MMF_SERVE_HOST": "127.0.0.1", "MMF_SERVE_PORT": "0"}
    program = shutil.which(image.command[0], path=env["PATH"])
    if program is None:
        raise CheckError(f"{image.command[0]} is not in the image's PATH")
    began = time.perf_counter()
    with subprocess.Popen([program, *image.command[1:]], env=env, cwd=image.workdir,
                          stdout=subprocess.PIPE, text=True) as process:  # fmt: skip
        try:
            assert process.stdout is not None  # for the type checker
            line = process.stdout.readline()
            took_s = time.perf_counter() - began
            match = re.search(r"http://\S+", line)
            if match is None:
                raise CheckError(f"expected the line of a service that is ready, found {line!r}")
            yield process, match[0], took_s
        finally:
            process.kill()


def memory_mb(pid: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def files(image: Image) -> set[Path]:
    """Everything in the image but its /tmp."""
    return {p for p in image.root.rglob("*") if not p.is_relative_to(image.root / "tmp")}


def check(image: Image) -> None:
    """Everything that is promised of the image.

    Raises:
        CheckError: something does not hold.
    """
    python = str(image.root / "opt/venv/bin/python")
    code = "import importlib.util as u; print(u.find_spec('torch'), u.find_spec('pip'))"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    expect(found.stdout.split() == ["None", "None"], f"torch, pip: {found.stdout}")
    print("ok: neither torch nor pip")
    before = files(image)
    starts = []
    for _ in range(STARTS):
        with running(image) as (process, address, took_s):
            starts.append(took_s)
            resident = _use(image, process, address)
    load = f"the machine's load is {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    expect(min(starts) <= START_S, f"ready after {min(starts):.2f} s, expected {START_S}; {load}")
    print(f"ok: ready after {', '.join(f'{s:.2f}' for s in starts)} s; {load}")
    expect(resident <= RESIDENT_MB, f"{resident:.0f} MB resident, expected {RESIDENT_MB}")
    print(f"ok: {resident:.0f} MB resident after one image")
    new = files(image) - before
    expect(not new, f"a read-only root would refuse {sorted(map(str, new))[:3]}")
    print("ok: wrote nothing outside /tmp")


def _use(image: Image, process: subprocess.Popen[str], address: str) -> float:
    port = address.rpartition(":")[2]
    health = [str(image.root / "opt/venv/bin" / image.health[0]), *image.health[1:]]
    subprocess.run(health, env=image.env | {"MMF_SERVE_PORT": port}, check=True, timeout=10)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(
        f"{address}/v1/generate", data=b'{"seed": 7}', headers={"Accept": "image/png"}
    )
    with direct.open(request, timeout=10) as reply:
        expect(reply.read(8) == b"\x89PNG\r\n\x1a\n", "expected a PNG file")
    resident = memory_mb(process.pid)
    process.send_signal(signal.SIGTERM)
    code = process.wait(timeout=40)
    expect(code == 0, f"exit code {code} after SIGTERM, expected 0")
    return resident


def main() -> None:
    """Build below a temporary folder, then check."""
    parser = argparse.ArgumentParser(description="Check the image without a container engine.")
    parser.add_argument("--target", default="cpu", help="a stage that can run here")
    target = parser.parse_args().target
    stages = dockerfile.read(REPOSITORY / "Dockerfile")
    with tempfile.TemporaryDirectory(prefix="mmf-image-") as name:
        root = Path(name, "root")
        pythons(Path(name, "bin"))
        image = Image(root, {"PATH": f"{name}/bin:{os.defpath}"})
        for stage in dockerfile.needed(stages, target):
            image.build(stage)
        check(image)
    print(f"the {target} image holds what docs/deploying.md promises")


if __name__ == "__main__":
    try:
        main()
    except (CheckError, subprocess.SubprocessError) as e:
        sys.exit(f"error: {e}")

"""One comparison: who takes part, their processes, their samples."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path

import environments
import numpy as np
from comparison import EAGER, Contender, Runs
from contenders import Ours, Peer, ours
from mmf_deploy.serve.bench.worker import Setting, Subject, Worker
from numpy.typing import NDArray
from peer import inputs
from peer_process import Converted, PeerProcess, Task, convert

from mmf_deploy import bundle as bundles
from mmf_deploy.bundle import Bundle
from mmf_deploy.engines.base import EngineOptions, open_engine
from mmf_deploy.errors import DependencyError, EngineError
from mmf_deploy.progress import TaskProgress

BASELINE = Ours("pytorch", "eager fp32", "fp32", 0)


@dataclass
class Session:
    """One comparison.

    Attributes:
        seeds: whose samples are compared.
        left_out: why each peer that does not take part does not, by what it is called.
        running: what takes turns, by the name of the contender.
        samples: float32 [seeds, *shape], by the same.
        versions: of every package that took part.
    """

    bundle: Bundle
    task: Task
    seeds: list[int]
    left_out: dict[str, str] = field(default_factory=dict)
    contenders: dict[str, Contender] = field(default_factory=dict)
    running: dict[str, Runs] = field(default_factory=dict)
    samples: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def leave_out(self, peer: Peer, reason: object) -> None:
        """And say so at once."""
        self.left_out[f"{peer.tool} ({peer.name})"] = str(reason)
        print(f"left out: {peer.tool} ({peer.name}): {reason}", flush=True)

    def prepared(self, peers: Sequence[Peer]) -> dict[Peer, tuple[Path, Converted]]:
        """Environments and files of all that have them."""
        found = {}
        with TaskProgress("peers", len(peers)) as progress:
            for k, peer in enumerate(peers):
                progress.show(f"installing and converting: {peer.name}", k)
                root = environments.folder(peer.environment) / "converted"
                try:
                    python = environments.python_of(peer.environment)
                    found[peer] = python, convert(peer, python, self.task, root)
                except (DependencyError, EngineError) as e:
                    self.leave_out(peer, e)
            progress.show("installed and converted", len(peers))
        return found

    def open_ours(self, stack: contextlib.ExitStack) -> None:
        """PyTorch eager and every variant of the bundle; the samples of each first."""
        wanted = [BASELINE, *ours(self.bundle)]
        with TaskProgress("of ours", len(wanted)) as progress:
            for k, one in enumerate(wanted):
                progress.show(f"opening: {one.engine} {one.variant}", k)
                self._open_one(stack, one)
            progress.show("opened ours", len(wanted))

    def _open_one(self, stack: contextlib.ExitStack, one: Ours) -> None:
        eager = one is BASELINE
        path = self.task.checkpoint if eager else None
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            made = process.submit(samples_of, self.bundle.path, one, self.task, self.seeds).result()
        subject = Subject(one.engine, one.variant, self.task.threads)
        worker = stack.enter_context(Worker(Setting(self.bundle.path, path), subject))
        package = "torch" if eager else one.engine
        self.versions[package] = metadata.version(package)
        name = EAGER if eager else f"ours {one.variant}"
        self.running[name], self.samples[name] = worker, made
        self.contenders[name] = Contender(
            tool=EAGER if eager else f"mmf-deploy, {one.engine}",
            version=self.versions[package],
            precision=one.precision,
            engine=one.engine,
            ours=not eager,
            bytes=one.bytes,
            load_s=worker.facts().load_s,
        )

    def open_peers(
        self, stack: contextlib.ExitStack, ready: Mapping[Peer, tuple[Path, Converted]]
    ) -> None:
        """Everything that has its files; the samples of each as soon as it is open."""
        with TaskProgress("peers", len(ready)) as progress:
            for k, (peer, (python, made)) in enumerate(ready.items()):
                progress.show(f"opening: {peer.name}", k)
                try:
                    process = stack.enter_context(PeerProcess(peer, python, self.task, made))
                    self.samples[peer.name] = process.samples(self.seeds)
                except EngineError as e:
                    self.leave_out(peer, e)
                    continue
                self._take_in(peer, process, made)
            progress.show("opened peers", len(ready))

    def _take_in(self, peer: Peer, process: PeerProcess, made: Converted) -> None:
        versions = process.versions
        self.versions |= {f"{name} ({peer.environment})": v for name, v in versions.items()}
        self.running[peer.name] = process
        self.contenders[peer.name] = Contender(
            tool=peer.tool,
            version=versions[peer.package],
            precision=peer.precision or process.precision or "",
            engine=peer.engine,
            ours=False,
            bytes=made.bytes,
            load_s=process.load_s,
            convert_s=made.seconds,
        )


def samples_of(path: Path, one: Ours, task: Task, seeds: Sequence[int]) -> NDArray[np.float32]:
    """What one of ours makes of these seeds; for a process that ends with it."""
    bundle = bundles.load(path)
    eager = one.engine == BASELINE.engine
    options = EngineOptions(threads=task.threads, checkpoint=task.checkpoint if eager else None)
    names = [name for name, taken in (("label", bundle.spec.conditional),
                                      ("guidance", bundle.spec.guided)) if taken]  # fmt: skip
    parts = []
    with open_engine(one.engine, bundle, None if eager else one.variant, options) as engine:
        for k in range(0, len(seeds), task.batch):
            x1, _, _, *rest = inputs(bundle.spec, seeds[k : k + task.batch])
            given = dict(zip(names, rest, strict=True))
            parts.append(engine.run(x1, given.get("label"), given.get("guidance")).sample)
    return np.concatenate(parts)

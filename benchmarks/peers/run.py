"""Our bundle and what others make of the same network, taking turns in one run.

python benchmarks/peers/run.py --checkpoint runs/cifar10-random --bundle bundles/cifar10-random

Every peer has an environment of its own (environments.py), gets the same weights, noise, batch and
threads, and is a process of its own, as our engines are. Where a tool's options are said to be its
default they are, and only a number of threads that it would not take by itself is set. What it
makes is compared with PyTorch's fp32 samples, so that a fast wrong answer is seen. Its files are
made once and kept; a peer that does not install, convert or run is left out, with its own words
as the reason. LitServe is a peer of the service, not of the engine: benchmarks/litserve/compare.py.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from comparison import Row, as_content, rows, table, take_turns
from contenders import chosen
from peer_process import Task
from peer_session import Session

from mmf_deploy import __version__, checkpoint, machine, results
from mmf_deploy import bundle as bundles
from mmf_deploy.errors import ConfigError, MMFError
from mmf_deploy.progress import TaskProgress

CALIBRATION = 64
"""Samples that quantisers see."""
COMPARED = 8
"""Samples that are compared; of small images eight times as many."""


def start(given: argparse.Namespace) -> Session:
    """Check what was asked for.

    Raises:
        ConfigError: the bundle and the checkpoint do not belong together, or a number is too small.
    """
    if min(given.batch, given.threads) < 1 or not given.seconds > 0:
        raise ConfigError(
            f"--batch {given.batch}, --threads {given.threads}, --seconds {given.seconds:g}: "
            "expected 1 or more of the first two, and more than 0 seconds"
        )
    bundle = bundles.load(given.bundle)
    source, found = bundle.manifest.source, checkpoint.read(given.checkpoint)
    if found.weights_hash(source.weights) != source.weights_sha256 or found.spec != bundle.spec:
        raise ConfigError(
            f"--bundle {given.bundle}: not made from {found.path} as it is; expected a bundle of "
            f"it: mmf export {given.checkpoint} --target onnxruntime-cpu,openvino "
            "--precision fp32,bf16,int8 --out DIR"
        )
    if not bundle.spec.is_image:
        raise ConfigError(f"--bundle {given.bundle}: makes no images; expected one that does")
    compared = 8 * COMPARED if bundle.spec.elements <= 1024 else COMPARED
    samples, calibration = (-(-n // given.batch) * given.batch for n in (compared, CALIBRATION))
    task = Task(
        checkpoint=found.path.resolve(),
        weights=source.weights,
        digest=source.weights_sha256,
        batch=given.batch,
        threads=given.threads,
        calibration=calibration,
    )
    return Session(bundle, task, list(range(samples)))


def compare(given: argparse.Namespace) -> results.Result:
    """Everything: environments, files, turns, rows."""
    peers, session = chosen(given.only), start(given)
    ready = session.prepared(peers)
    with contextlib.ExitStack() as stack:
        session.open_ours(stack)
        session.open_peers(stack, ready)
        load = [round(x, 2) for x in os.getloadavg()]
        with TaskProgress("%", 100) as progress:
            turns, broken = take_turns(
                session.running,
                given.batch,
                given.seconds,
                lambda share: progress.show("taking turns", round(100 * share)),
            )
    for peer in peers:
        if peer.name in broken:
            session.leave_out(peer, broken.pop(peer.name))
    if broken:
        raise MMFError(f"ours broke down: {broken}")
    found = rows(session.contenders, turns, session.samples, given.batch)
    return report(given, session, found, load)


def report(
    given: argparse.Namespace, session: Session, found: Sequence[Row], load: list[float]
) -> results.Result:
    """In the common form."""
    manifest = session.bundle.manifest
    threads = f"{given.threads} thread{'s' if given.threads > 1 else ''}"
    title = f"{manifest.name}: ours and others, batch {given.batch}, {threads}"
    notes = [f"left out: {name}: {reason}" for name, reason in session.left_out.items()]
    ours = {"mmf-deploy": __version__, "python": platform.python_version()}
    return results.Result(
        kind="peers",
        title=title,
        command=command(sys.argv[1:]),
        machine=machine.describe(),
        versions={**ours, **session.versions},
        tables=[table(found, title, notes)],
        content={
            "bundle": manifest.name,
            "digest": session.bundle.digest,
            "parameters": manifest.source.parameters,
            "batch": given.batch,
            "threads": given.threads,
            "compared": len(session.seeds),
            "calibration": session.task.calibration,
            "load_average_before": load,
            "rows": as_content(found),
            "left_out": session.left_out,
        },
    )


def command(arguments: Sequence[str]) -> str:
    """What was typed, without where to write."""
    parts, skip = [], False
    for argument in arguments:
        if not skip and argument != "--out" and not argument.startswith("--out="):
            parts.append(argument)
        skip = argument == "--out"
    return shlex.join(["python", "benchmarks/peers/run.py", *parts])


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/cifar10-random"))
    parser.add_argument("--bundle", type=Path, default=Path("bundles/cifar10-random"))
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        default=[],
        help="peers, or environments with all their peers, separated by commas",
    )
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=machine.available_cores())
    parser.add_argument("--seconds", type=float, default=150.0, help="of all turns together")
    parser.add_argument("--out", type=Path, default=Path("runs/peers"), help="a directory")
    return parser.parse_args()


def main() -> None:
    """Compare, print, write."""
    given = parse()
    results.prepare(given.out, pictures=False)
    found = compare(given)
    found.tables[0].print()
    print(results.write(given.out, "peers", found))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
    except MMFError as e:
        sys.exit(f"error: {e}")
    except KeyboardInterrupt:
        sys.exit("stopped")

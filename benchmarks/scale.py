"""What an image costs against the batch, the width of the network and the size of the image.

python benchmarks/scale.py

Makes untrained networks of the recipe cifar10-random in other sizes (kept in runs/scale and
bundles/scale, so the next run goes straight to measuring), times them in PyTorch eager and, in
fp32 and int8, with ONNX Runtime, in turns; and fits: time of a call = a + b · batch, and
time ∝ FLOPs^p over widths and over sizes of the image. Writes scale.json, scale.md, scale.png.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import scale_plot
from mmf_deploy.serve.bench.measure import Plan, Report, measure
from scale_networks import VARIANTS, Made, Network, is_made, make
from scale_report import BASE, BATCHES, SIZES, WIDTHS, Points, report

from mmf_deploy import machine, results
from mmf_deploy.errors import ConfigError, MMFError
from mmf_deploy.progress import TaskProgress

OUT = Path(__file__).parent / "results" / "scale-cpu"
NETWORKS = tuple(dict.fromkeys([*WIDTHS, *SIZES]))
MIN_TURNS = 3
MAKING_S, MAKING_S_A_GFLOP, CALL_S_A_GFLOP = 12.0, 1.6, 0.006
"""Guesses, of no use but to tell the time left."""

Tick = Callable[[str, float], None]
"""Told what goes on, and the share of it that is over."""


def batches_of(network: Network) -> tuple[int, ...]:
    """The base in every batch size, the others one image at a time."""
    return BATCHES if network == BASE else (1,)


def times(made: Made, threads: int, seconds: float, tick: Tick) -> Report:
    """Measure one network."""
    batches = batches_of(made.network)
    plan = Plan(
        batches=batches,
        threads=(threads,),
        seconds=seconds,
        min_turns=MIN_TURNS,
        checkpoint=made.run,
        device="cpu",
        variants=VARIANTS,
        limit=False,
    )
    place = {f"batch {batch}": k for k, batch in enumerate(batches)}

    def on_progress(what: str, percent: int) -> None:
        over = place[what] + percent / 100 if what in place else 0.0
        tick(f"{made.network.name}, {what}", over / len(batches))

    return measure(made.bundle, plan, "", on_progress)


class Work:
    """What there is to do, in seconds by a guess, and how much of it is over."""

    def __init__(self, missing: Collection[Network], seconds: float, rounds: int) -> None:
        self._making = {n: (MAKING_S + MAKING_S_A_GFLOP * n.about_gflop) * (n in missing)
                        for n in NETWORKS}  # fmt: skip
        self._timing = {n: sum(self._batch_s(n, b, seconds) for b in batches_of(n))
                        for n in NETWORKS}  # fmt: skip
        self.total = math.ceil(sum(self._making.values()) + rounds * sum(self._timing.values()))
        self._done = 0.0

    @staticmethod
    def _batch_s(network: Network, batch: int, seconds: float) -> float:
        calls = 3 * 2 * (MIN_TURNS + 1)  # of three engines, one in two is not counted
        return max(seconds, calls * batch * network.about_gflop * CALL_S_A_GFLOP)

    def ticks(self, progress: TaskProgress, network: Network, making: bool) -> Tick:
        """What tells a part of it to a person; the part is over when it says 1."""
        part, before = (self._making if making else self._timing)[network], self._done
        self._done += part
        return lambda what, share: progress.show(what, min(self.total, int(before + share * part)))


def gather(
    networks: Sequence[Network], arguments: argparse.Namespace
) -> tuple[dict[Network, Made], Points, Report]:
    """Make every network, then measure each several times.

    Every second round goes backwards, so that a machine that gets slower all the while does not
    bend the curves.
    """
    places = arguments.runs, arguments.bundles
    missing = [n for n in networks if not is_made(n, *places)]
    work, points = Work(missing, arguments.seconds, arguments.rounds), Points()
    made: dict[Network, Made] = {}
    with TaskProgress("s of work", work.total) as progress:
        for network in networks:
            tick = work.ticks(progress, network, making=True)
            tick(f"making {network.name}", 0.0)
            made[network] = make(network, *places)
        for k in range(arguments.rounds):
            for network in networks if k % 2 == 0 else reversed(networks):
                tick = work.ticks(progress, network, making=False)
                found = times(made[network], arguments.threads, arguments.seconds, tick)
                points.add(network, found)
        progress.show("done", work.total)
    return made, points, found


def main() -> None:
    """Make, measure, fit, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--runs", type=Path, default=Path("runs/scale"))
    parser.add_argument("--bundles", type=Path, default=Path("bundles/scale"))
    parser.add_argument("--threads", type=int, default=machine.available_cores())
    parser.add_argument("--seconds", type=float, default=3.0, help="of a batch size in a round")
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    if given.rounds < 1 or given.threads < 1 or not given.seconds > 0:
        raise ConfigError(
            f"--rounds {given.rounds}, --threads {given.threads}, --seconds {given.seconds:g}: "
            "expected at least 1, at least 1, and more than 0"
        )
    results.prepare(given.out)
    widths, sides = (sorted({getattr(n, of) for n in NETWORKS}) for of in ("width", "side"))
    print(f"scale: {len(NETWORKS)} networks of {widths[0]} … {widths[-1]} channels, images of "
          f"{sides[0]} … {sides[-1]} pixels a side, {given.threads} threads",
          flush=True)  # fmt: skip
    made, points, measured = gather(NETWORKS, given)
    command = shlex.join(["python", "benchmarks/scale.py", *sys.argv[1:]])
    result, panels = report(made, points, measured, command, given.threads)
    for table in result.tables:
        table.print()
        print()
    threads = f"{given.threads} thread{'s' if given.threads > 1 else ''}"
    title = f"UNet of cifar10-random, untrained; {measured.machine['cpu']}, {threads}"
    draw = {"scale.png": lambda path: scale_plot.draw(panels, title, path)}
    print(results.write(given.out, "scale", result, draw))


if __name__ == "__main__":
    try:
        main()
    except MMFError as e:
        sys.exit(f"error: {e}")

"""Train digits with every objective, several seeds each, and compare the samples.

python benchmarks/objectives.py

Every run is one `mmf train` with the recipe's own settings, so all have the same network and
the same number of steps; the same command again goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmf_deploy.training.experiments.runs import Run, Sessions
from mmf_deploy.training.experiments.work import execute, training
from mmf_deploy.training.objective_config import OBJECTIVES
from mmf_deploy.training.state import versions

from mmf_deploy import files, machine
from mmf_deploy.errors import ConfigError, MMFError, TrainingError, nearest

RESULT = Path(__file__).parent / "results" / "objectives-digits-cpu.json"
COMPARED = (
    "mmf", "mmf-lambda0", "mmf-lambda1", "meanflow", "meanflow-full", "consistency",
    "paper-literal",
)  # fmt: skip


STEP_S = 0.06  # on one core


def runs(given: argparse.Namespace) -> list[Run]:
    """All runs: every objective, and `mmf` once more with each derivative that is asked for."""
    kinds = [(objective, "auto") for objective in given.objectives]
    kinds += [("mmf", derivative) for derivative in given.derivatives]
    return [
        Run("digits", sets(given, objective, derivative, seed), given.out / f"{label}-seed{seed}")
        for objective, derivative in kinds
        for label in [objective if derivative == "auto" else f"{objective}-{derivative}"]
        for seed in given.seeds
    ]


def sets(given: argparse.Namespace, objective: str, derivative: str, seed: int) -> tuple[str, ...]:
    """What a run sets on top of the recipe."""
    # objectives are compared as they are: guidance improves the velocities of any of them
    keys = [f"objective.name={objective}", f"seed={seed}",
            "objective.guidance={mode: off}", "loop.tensorboard=false"]  # fmt: skip
    if derivative != "auto":
        keys.append(f"objective.derivative={derivative}")
    if given.steps is not None:
        # λ rises over the first eighth of the run, as in the recipe
        keys += [f"loop.steps={given.steps}", f"objective.warmup_steps={given.steps // 8}"]
    return (*keys, *given.more)


def row(run: Run) -> dict[str, Any]:
    """What the result file says of a run."""
    record = run.outcome()
    quality = record.get("quality", {})
    objective = run.config["objective"]
    return {
        "objective": objective["name"],
        "derivative": objective["derivative"],
        "derivative_used": record.get("derivative"),
        "seed": run.config["seed"],
        "status": "failed" if "failed" in record else "finished",
        "message": record.get("failed"),
        "seconds": record.get("seconds"),
        **{
            key: quality.get(key)
            for key in ("step", "class_accuracy", "frechet", "frechet_real", "ratio")
        },
        "command": shlex.join(run.command),
    }


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _seeds(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def parse(args: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line.

    Raises:
        ConfigError: no such objective or derivative.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    option = parser.add_argument
    option("--objectives", type=_names, default=list(COMPARED), help="comma-separated")
    option("--derivatives", type=_names, default=["jvp"],
           help="train mmf with these, besides the one it chooses")  # fmt: skip
    option("--seeds", type=_seeds, default=[0, 1, 2], help="comma-separated")
    option("--steps", type=int, help="optimiser steps; the recipe's own if not given")
    option("--set", dest="more", action="append", default=[], help="a key, set in every run")
    option("--jobs", type=int, default=machine.available_cores(), help="runs at a time")
    option("--out", type=Path, default=Path("runs/objectives"), help="directory of the runs")
    option("--result", type=Path, default=RESULT, help="file for the comparison")
    given = parser.parse_args(args)
    for name in given.objectives:
        if name not in OBJECTIVES:
            raise ConfigError(
                f"--objectives {name!r}{nearest(name, OBJECTIVES)}; "
                f"there are {', '.join(OBJECTIVES)}"
            )
    if min(given.jobs, 1 if given.steps is None else given.steps) < 1:
        raise ConfigError("--jobs and --steps: expected at least 1")
    return given


def main() -> None:
    """Train, collect, write."""
    given = parse()
    every = runs(given)
    todo = [run for run in every if "quality" not in run.known()]
    print(
        f"{len(every)} runs, {len(every) - len(todo)} of them finished before; "
        f"{given.jobs} at a time, one thread each, in {given.out}",
        flush=True,
    )
    sessions = Sessions()
    tasks = [training(run, STEP_S * run.steps, sessions) for run in todo]
    execute("training", tasks, given.jobs, sessions.stop)
    if unfinished := [run.name for run in every if not run.outcome()]:
        raise TrainingError(
            f"stopped before the end: {', '.join(unfinished)}; the same command resumes"
        )
    report = {
        "command": shlex.join(["python", "benchmarks/objectives.py", *sys.argv[1:]]),
        "machine": machine.describe(),
        "versions": versions(),
        "recipe": "digits",
        "jobs": given.jobs,
        "rows": [row(run) for run in every],
    }
    files.write_atomic(given.result, (json.dumps(report, indent=1) + "\n").encode())
    print(f"written: {given.result}\nnext: python benchmarks/render.py")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
    except MMFError as e:
        sys.exit(f"error: {e}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from here")

"""Time of an optimiser step of each objective, taking turns in one run, against flow matching.

What is timed is what the trainer runs (learner.py): random draws, forward, backward, Adam and
the average, with the same network on the same batch. Beside it stands the naive step.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from mmf_deploy import machine
from mmf_deploy.errors import ConfigError
from mmf_deploy.spec import SampleSpec

from .bench_step_report import Report, Row
from .config import TrainConfig
from .learner import Learner
from .state import versions
from .step_variants import BASELINE, NAIVE, Variant, build_learner, select, variants


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        recipe: its ``network`` and ``optimizer`` are used, nothing else.
        spec: what one sample is; the data are noise.
        batch: samples a step.
        gap_fractions: shares of samples with r ≠ t.
        seconds: time to spend, warm-up included.
        min_rounds: rounds, whatever ``seconds`` says.
        device: "cpu" or "cuda".
        threads: CPU threads.
    """

    recipe: TrainConfig
    spec: SampleSpec
    batch: int
    gap_fractions: Sequence[float]
    seconds: float
    min_rounds: int = 3
    device: str = "cpu"
    threads: int = 1


def measure(
    plan: Plan, command: str, on_progress: Callable[[str, int], None] = lambda what, done: None
) -> Report:
    """Time every kind of step; they take turns, so that drift of the machine hits all alike.

    Args:
        on_progress: called with what goes on and the percentage of the time that is over.
    Raises:
        ConfigError: a batch size or a share that leaves nothing to measure, or a network that
            does not fit the samples.
    """
    _check(plan)
    torch.set_num_threads(plan.threads)
    learner = build_learner(plan.recipe, plan.spec, plan.batch, plan.device)
    seconds = _take_turns(learner, plan, on_progress)
    return Report(
        command=command,
        machine=_machine(plan.device),
        versions=versions(),
        config=_config(plan, learner),
        rounds=len(seconds[Variant(BASELINE, 0.0)]),
        rows=rows({variant: np.array(taken) for variant, taken in seconds.items()}),
    )


def _take_turns(
    learner: Learner, plan: Plan, on_progress: Callable[[str, int], None]
) -> dict[Variant, list[float]]:
    kinds = variants(plan.gap_fractions)
    seconds: dict[Variant, list[float]] = {variant: [] for variant in kinds}
    begin, steps = time.perf_counter(), 0
    shuffle = random.Random(0)
    at_least = (1 + plan.min_rounds) * len(kinds)
    over = 0.0
    while over < 1:
        warm = steps >= len(kinds)
        # another order each round, so that none always follows the same neighbour
        for variant in shuffle.sample(kinds, len(kinds)) if warm else kinds:
            on_progress("timing" if warm else "warm-up", int(100 * over))
            taken = time_step(learner, variant)
            if warm:
                seconds[variant].append(taken)
            steps += 1
            over = min(1.0, steps / at_least, (time.perf_counter() - begin) / plan.seconds)
    on_progress("timing", 100)
    return seconds


def _check(plan: Plan) -> None:
    if plan.batch < 1:
        raise ConfigError(f"batch {plan.batch}: expected at least 1")
    for share in plan.gap_fractions:
        if not 0 < share <= 1 or not round(share * plan.batch):
            raise ConfigError(
                f"share of r ≠ t {share:g}: expected more than 0, at most 1, and at least one "
                f"sample of a batch of {plan.batch}"
            )


def time_step(learner: Learner, variant: Variant) -> float:
    """Seconds of one optimiser step."""
    select(learner, variant)
    device = learner.processes.device
    _wait(device)
    begin = time.perf_counter()
    # step 0 each time, so the same batch, noise and times; a learning rate of zero, so the
    # same weights: all the arithmetic of a step, and none of them changes the next
    learner.gradients(0, 0)
    learner.update(0, lr_scale=0.0)
    _wait(device)
    return time.perf_counter() - begin


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rows(seconds: Mapping[Variant, np.ndarray]) -> list[Row]:
    """Medians and ratios of times, [rounds] for each kind of step."""
    flow = next(taken for variant, taken in seconds.items() if variant.objective == BASELINE)
    naive = {v.lam: taken for v, taken in seconds.items() if v.objective == NAIVE}
    found = []
    for variant, taken in seconds.items():
        low, median, high = np.percentile(taken / flow, [10, 50, 90])
        compared = variant.objective == "mmf" and variant.lam in naive
        speedup = float(np.median(naive[variant.lam] / taken)) if compared else None
        found.append(
            Row(
                **asdict(variant),
                median_ms=round(float(np.median(taken)) * 1e3, 3),
                ratio=round(float(median), 3),
                ratio_p10=round(float(low), 3),
                ratio_p90=round(float(high), 3),
                naive_speedup=None if speedup is None else round(speedup, 3),
            )
        )
    return found


def _machine(device: str) -> dict[str, str]:
    found = machine.describe()
    return {**found, "gpu": torch.cuda.get_device_name()} if device == "cuda" else found


def _config(plan: Plan, learner: Learner) -> dict[str, Any]:
    return {
        "recipe": plan.recipe.name,
        "network": learner.config.network.model_dump(mode="json"),
        "parameters": sum(p.numel() for p in learner.net.parameters()),
        "optimizer": learner.config.optimizer.model_dump(mode="json"),
        "shape": list(plan.spec.shape),
        "classes": plan.spec.classes,
        "batch": plan.batch,
        "gap_fractions": list(plan.gap_fractions),
        "device": plan.device,
        "threads": plan.threads,
        "seconds": plan.seconds,
    }

"""What takes part in a benchmark: variants and their engines, PyTorch, the machine's limit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mmf_deploy.bundle import Bundle, Variant
from mmf_deploy.engines.base import EngineOptions, engine_class
from mmf_deploy.errors import ConfigError, EngineError

BASELINE = "pytorch"
EAGER = "eager fp32"
"""What its eager mode is called in reports."""
LIMIT = "limit"
"""In the place of an engine: arithmetic in the dtype that the place of the variant names."""
MEMORY = "memory"
"""In the place of that dtype: reading memory."""


class Subject(NamedTuple):
    """What is measured against each other.

    Attributes:
        variant: of the bundle; for PyTorch, which reads none, a name for the mode; a dtype or
            "memory" of the limit.
        mode: of the engine, its first one if None; of the limit the library, the fastest if None.
        steps: network evaluations per sample.
    """

    engine: str
    variant: str
    threads: int
    mode: str | None = None
    steps: int = 1


@dataclass(frozen=True)
class Setting:
    """What a worker runs: one engine on one bundle.

    Attributes:
        checkpoint: of the PyTorch baseline.
        device: of the engine; the variant's own if None.
    """

    bundle: Path
    checkpoint: Path | None
    device: str | None = None


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        batches: batch sizes.
        threads: numbers of compute threads.
        every_thread: whether every engine is reported with each of them; else, at each batch
            size, with the most that pay in a short trial: 80% of what their number promises.
        seconds: at most so long for each batch size, all engines together, after warm-up.
        within: enough when every ratio (every time, without a baseline) is known so well, with
            95% confidence: 0.02 for ±2%.
        min_turns: turns of every engine, whatever ``seconds`` says.
        checkpoint: of the PyTorch baseline, or None.
        device: "cpu" or "cuda", of all; each variant's own if None.
        modes: ways of running the baseline; "eager" is always among them.
        variants: of the bundle, or "all"; if None, those of as many steps as its first one.
        engines: to run each variant with; each variant's own if None.
        limit: whether the machine's arithmetic and memory rates take turns with the engines.
    """

    batches: Sequence[int]
    threads: Sequence[int]
    every_thread: bool = True
    seconds: float = 10.0
    within: float = 0.02
    min_turns: int = 6
    checkpoint: Path | None = None
    device: str | None = None
    modes: Sequence[str] = ("eager",)
    variants: Sequence[str] | None = None
    engines: Sequence[str] | None = None
    limit: bool = True

    def check(self) -> None:
        """Raise ConfigError for what cannot be measured."""
        if min(*self.batches, *self.threads, 1) < 1 or not self.batches or not self.threads:
            raise ConfigError(
                f"batch sizes {list(self.batches)}, threads {list(self.threads)}: "
                "expected integers of at least 1"
            )
        if not 0 < self.seconds < math.inf or not 0 < self.within < 1:
            raise ConfigError(
                f"{self.seconds:g} seconds, ±{self.within:.1%}: expected seconds above 0 and a "
                "share between 0 and 1"
            )


def mode_name(mode: str, steps: int) -> str:
    """What a way of running PyTorch is called in reports."""
    name = EAGER if mode == "eager" else mode
    return name if steps == 1 else f"{name} {steps}step"


def shown_name(engine: str, variant: str) -> str:
    """Engine and variant as every table and picture names them, nothing said twice."""
    return f"{engine} {variant.removeprefix(f'{engine}-')}"


def dtype(subject: Subject, variant: Variant | None) -> str:
    """The dtype that arithmetic which is not quantised is done in."""
    if subject.engine == BASELINE:
        last = (subject.mode or "eager").rpartition("-")[2]
        return last if last in ("tf32", "bf16", "fp16") else "fp32"
    precision = variant.precision if variant is not None else "fp32"
    # what is not quantised in an int8 file stays fp32
    return "fp32" if precision == "int8" else precision


def subjects(bundle: Bundle, plan: Plan) -> tuple[list[Subject], list[str]]:
    """The engines to measure, and a line about each variant that does not run here.

    Raises:
        BundleError: no such variant.
        ConfigError: no such engine, or nothing of the bundle runs here.
    """
    wanted, left_out = _wanted(bundle, plan)
    modes, missing = _modes(plan)
    left_out += missing
    runs: list[tuple[str, Variant]] = []
    for v in wanted:
        for engine in _engines(v, plan.engines):
            reason = _why_not(v, engine, plan.device)
            if reason is None:
                runs.append((engine, v))
            else:
                left_out.append(f"{_label(engine, v)}: {reason}")
    found = []
    for threads in plan.threads:
        if plan.checkpoint is not None:
            found += [
                Subject(BASELINE, mode_name(m, steps), threads, m, steps)
                for steps in dict.fromkeys(v.steps for v in wanted)
                for m in modes
            ]
        found += [Subject(engine, v.name, threads, steps=v.steps) for engine, v in runs]
    if not found:
        raise ConfigError(f"{bundle.path}: nothing of it runs here: {'; '.join(left_out)}")
    return found, left_out


def _modes(plan: Plan) -> tuple[list[str], list[str]]:
    """The ways of running PyTorch that this machine has, and a line about each other one."""
    if plan.checkpoint is None:
        return [], []
    found, left_out = ["eager"], []
    for mode in dict.fromkeys(m for m in plan.modes if m != "eager"):
        options = EngineOptions(device=plan.device, checkpoint=plan.checkpoint, mode=mode)
        reason = engine_class(BASELINE).unavailable(options)
        if reason is None:
            found.append(mode)
        else:
            left_out.append(f"PyTorch {mode}: {reason}")
    return found, left_out


def _wanted(bundle: Bundle, plan: Plan) -> tuple[list[Variant], list[str]]:
    every = bundle.manifest.variants
    if plan.variants is None:
        alike = [v for v in every if v.steps == bundle.variant().steps]
        others = [v.name for v in every if v.steps != bundle.variant().steps]
        hint = f"{', '.join(others)}: other numbers of steps; --variants all measures them"
        return alike, [hint] if others else []
    if list(plan.variants) == ["all"]:
        return list(every), []
    names = [bundle.variant(name).name for name in plan.variants]  # or says which there are
    return [v for v in every if v.name in names], []


def _engines(variant: Variant, wanted: Sequence[str] | None) -> list[str]:
    if wanted is None:
        return [variant.engine]
    return [e for e in wanted if e != BASELINE]  # which reads no variant: it is a baseline


def _label(engine: str, variant: Variant) -> str:
    return variant.name if engine == variant.engine else f"{variant.name} with {engine}"


def _why_not(variant: Variant, engine: str, device: str | None) -> str | None:
    """Why a variant is not measured here; None if it is."""
    if variant.target == "web":
        return "runs in a browser"
    try:
        found = engine_class(engine)
    except ModuleNotFoundError as e:
        return f"the package {e.name!r} is not installed"
    except EngineError as e:
        raise ConfigError(f"--engines: {e}") from None
    if found.formats and not variant.file.endswith(found.formats):
        return f"{engine} does not run {variant.file}"
    try:
        return found.unavailable(EngineOptions(device=device or variant.device))
    except ModuleNotFoundError as e:
        return f"the package {e.name!r} is not installed"

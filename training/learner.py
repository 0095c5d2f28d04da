"""Network, averages and optimiser of a run, and one step of them."""

from __future__ import annotations

import functools
import math
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mmf_deploy.errors import TrainingError
from mmf_deploy.nn.build import build_network
from mmf_deploy.spec import SampleSpec

from .config import LoopConfig, TrainConfig
from .data.base import Source
from .draws import Draws, draw_step
from .ema import EMA
from .gradient_check import choose_derivative, compile_step
from .init_from import initialise
from .objective import Net, Number
from .order import batch_indices, derive
from .processes import Processes
from .schedules import learning_rate
from .training_step import Inputs, TrainingStep, prepare

LARGEST_NORM = 1e15
"""Beyond, the squares that Adam keeps overflow, and a weight would never move again."""


@dataclass(frozen=True)
class Gradients:
    """What a step computed before the weights move.

    Attributes:
        loss: weighted mean loss of this process' samples.
        norm: Euclidean norm of the gradient over all processes, before clipping.
        squared_error, t: unweighted loss and time of this process' samples, [B].
    """

    loss: float
    norm: float
    squared_error: Tensor
    t: Tensor

    @property
    def finite(self) -> bool:
        """Whether the step may be taken; the same in every process, for the norm is."""
        return self.norm < LARGEST_NORM  # not a number is not


class Learner:
    """Everything of a run that computes.

    Args:
        config: the recipe.
        source: its data.
        processes: this process among the others.
    """

    def __init__(self, config: TrainConfig, source: Source, processes: Processes) -> None:
        self.config, self.source, self.processes = config, source, processes
        self.notes: list[str] = []
        self.compiled = False
        self.spec = config.fit(source.spec)
        _set_precision(config.loop.precision)
        torch.manual_seed(derive(config.seed, "init"))
        network = build_network(self.spec, config.network.model_dump())
        self.net: nn.Module = network.to(processes.device).to(memory_format=_layout(self.spec))
        self.emas = [EMA(self.net, decay) for decay in config.loop.ema]
        family = torch.optim.AdamW if config.optimizer.weight_decay else torch.optim.Adam
        self.optimizer = family(
            self.net.parameters(),
            lr=config.optimizer.lr,
            betas=(config.optimizer.beta1, config.optimizer.beta2),
            weight_decay=config.optimizer.weight_decay,
            fused=True,
        )

    def start_from(self, source: str) -> None:
        """Begin with the weights of another run, instead of random ones.

        Raises:
            CheckpointError: it is not a checkpoint, or its network is another one.
        """
        self.notes.append(initialise(self.net, source))
        for ema in self.emas:
            ema.restart()

    def assemble(self, derivative: str | None) -> str:
        """Put the step together, once the weights are those it starts with.

        Args:
            derivative: what the run has used so far; None chooses.
        Returns:
            the derivative that is used.
        """
        objective = self.config.objective
        if objective.derivative == "auto":
            if derivative is None:
                derivative, why = choose_derivative(self.net, self.spec, objective)
                if self.processes.any(derivative == "jvp"):
                    derivative = "jvp"  # in all of them, if it has to be in one
                if objective.differentiates:
                    self.notes.append(f"derivative: {derivative} ({why})")
            objective = objective.model_copy(update={"derivative": derivative})
        step = TrainingStep(
            self.net, objective, self._averaged(), bf16=self.config.loop.precision == "bf16"
        )
        if self.config.loop.compile:
            parts = self.processes.count * self.config.loop.accumulate
            inputs = self.inputs(0, self.draw(0), 0, parts)
            done, note = compile_step(step, inputs, *self._schedule(objective.warmup_steps))
            self.compiled = not self.processes.any(not done)
            self.notes.append(note)
        self.step = self.processes.wrap(step)
        self.parameters = list(self.net.parameters())
        return objective.derivative

    def _averaged(self) -> Net | None:
        if self.config.objective.tangent != "ema":
            return None
        slowest = max(self.emas, key=lambda e: e.decay)
        return functools.partial(_call_with, self.net, slowest)

    def gradients(self, step: int, attempt: int) -> Gradients:
        """Compute the gradient of a step over all its parts and processes.

        Args:
            step: 0, 1, …
            attempt: how often the run went back before; other random numbers each time.
        """
        loop, rank = self.config.loop, self.processes.rank
        count = self.processes.count * loop.accumulate
        lam, levels = self._schedule(step)
        self.optimizer.zero_grad(set_to_none=True)
        losses, errors, times = [], [], []
        draws = self.draw(step, attempt)
        for k in range(loop.accumulate):
            part = rank * loop.accumulate + k
            inputs = self.inputs(step, draws, part, count)
            torch.manual_seed(self._seed(step, attempt, "part", part))  # dropout's own
            last = k == loop.accumulate - 1
            with nullcontext() if last else self.processes.without_sync(self.step):
                try:
                    loss, error = self.step(inputs, lam, levels)
                    (loss / loop.accumulate).backward()
                except torch.OutOfMemoryError as e:
                    raise _out_of_memory(loop, e) from None
            losses.append(loss.detach())
            errors.append(error)
            times.append(inputs.times.t)
        limit = self.config.optimizer.clip_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, limit)
        # one wait for the device, not two
        loss, norm = torch.stack([torch.stack(losses).mean(), norm]).tolist()
        return Gradients(loss, norm, torch.cat(errors), torch.cat(times))

    def _schedule(self, step: int) -> tuple[Number, Number]:
        """λ and the time levels; as tensors where they change and a number would recompile."""
        objective, device = self.config.objective, self.processes.device
        lam: Number = objective.lam_at(step)
        levels: Number = objective.levels_at(step)
        if self.config.loop.compile and objective.lam == "curriculum":
            lam = torch.tensor(lam, device=device)
        if self.config.loop.compile and levels:
            levels = torch.tensor(float(levels), device=device)
        return lam, levels

    def draw(self, step: int, attempt: int = 0) -> Draws:
        """The random numbers of a whole step."""
        config = self.config
        torch.manual_seed(self._seed(step, attempt))
        shape = (config.loop.batch_size, *self.spec.shape)
        return draw_step(config.objective, config.augment, shape, step, self.processes.device)

    def inputs(self, step: int, draws: Draws, part: int = 0, count: int = 1) -> Inputs:
        """Data and random numbers of every ``count``-th sample of a step from ``part`` on."""
        size, seed = self.config.loop.batch_size, self.config.seed
        rows, following = (
            batch_indices(seed, k, size, len(self.source))[part::count] for k in (step, step + 1)
        )
        batch = self.source.batch(rows)
        self.source.prefetch(following)
        device = self.processes.device
        found = prepare(batch, draws.part(part, count), self.spec, self.config.network, device)
        return found.laid_out(_layout(self.spec))

    def _seed(self, step: int, attempt: int, *part: int | str) -> int:
        what = ("step", step, "attempt", attempt) if attempt else ("step", step)
        return derive(self.config.seed, *what, *part)

    def update(self, step: int, lr_scale: float) -> float:
        """Move weights and averages; returns the learning rate."""
        config = self.config
        lr = lr_scale * learning_rate(
            step,
            peak=config.optimizer.lr,
            steps=config.loop.steps,
            warmup_steps=config.optimizer.warmup_steps,
            decay=config.optimizer.decay,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        for ema in self.emas:
            ema.update(step)
        return lr

    def finite(self) -> bool:
        """Whether every weight, average and number of the optimiser is finite."""
        kept = [
            *self.parameters,
            *(mean for ema in self.emas for mean in ema.state_dict().values()),
        ]
        for state in self.optimizer.state.values():
            kept += [value for value in state.values() if isinstance(value, Tensor)]
        return all(bool(torch.isfinite(value).all()) for value in kept)


def _call_with(net: nn.Module, average: EMA, *args: Tensor, **condition: Tensor) -> Tensor:
    found: Tensor = functional_call(net, average.state_dict(), args, condition)
    return found


def _out_of_memory(loop: LoopConfig, error: Exception) -> TrainingError:
    return TrainingError(
        f"the device has no memory left for a batch of {loop.batch_size} in {loop.accumulate} "
        f"parts ({' '.join(str(error).split())[:100]}); "
        f"--set loop.accumulate={2 * loop.accumulate} needs half of it for the same gradient"
    )


def _layout(spec: SampleSpec) -> torch.memory_format:
    """Channels last: a step is a tenth faster on a CPU, and tensor cores want it on a GPU."""
    return torch.channels_last if spec.is_image else torch.contiguous_format


def _set_precision(precision: str) -> None:
    """Factors of products on GPUs: rounded to TF32 or not. Without effect on a CPU."""
    tf32 = precision != "fp32"
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32

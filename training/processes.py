"""One process or many: what the loop needs to know of the others.

Several processes, on one machine or more, are started by a launcher:

    torchrun --nproc-per-node 2 --no-python mmf-train digits
    accelerate launch --num_processes 2 -m mmf_deploy.cli train cifar10

They hold the same weights, each takes its rows of every batch, and gradients are averaged.
The first one alone writes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from mmf_deploy.errors import TrainingError

T = TypeVar("T")
_LOST = ("gloo", "nccl", "connection", "socket", "peer", "timed out", "tcpstore")


class Processes(Protocol):
    """All processes of a run, seen from one of them.

    Attributes:
        rank: number of this one, 0 … count − 1; 0 writes.
        count: how many there are.
        local: how many of them share this machine.
        device: where this one computes.
    """

    rank: int
    count: int
    local: int
    device: torch.device

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module, with its gradients averaged over all processes."""
        ...

    def without_sync(self, module: nn.Module) -> AbstractContextManager[Any]:
        """Within, gradients add up here only: all but the last part of a batch."""
        ...

    def any(self, flag: bool) -> bool:
        """True if the flag is set in any process."""
        ...

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over all processes."""
        ...

    def one_after_the_other(self, load: Callable[[], T]) -> T:
        """What ``load`` gives, on each machine first in one process: it may download."""
        ...

    def wait(self) -> None:
        """Until every process is here."""
        ...

    def close(self) -> None:
        """Part from the others."""
        ...


class OneProcess:
    """Alone: nothing to agree upon."""

    rank, count, local = 0, 1, 1

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module itself."""
        return module

    def without_sync(self, module: nn.Module) -> AbstractContextManager[Any]:
        """Nothing to leave out."""
        return nullcontext()

    def any(self, flag: bool) -> bool:
        """The flag."""
        return flag

    def mean(self, value: Tensor) -> Tensor:
        """The value."""
        return value

    def one_after_the_other(self, load: Callable[[], T]) -> T:
        """Just that."""
        return load()

    def wait(self) -> None:
        """Nobody to wait for."""

    def close(self) -> None:
        """Nobody to part from."""


class Accelerated:
    """Through accelerate, which reads what the launcher put into the environment."""

    def __init__(self, device: str) -> None:
        from accelerate import Accelerator

        self._accelerator = Accelerator(cpu=device == "cpu")
        self.rank: int = self._accelerator.process_index
        self.count: int = self._accelerator.num_processes
        self.local = int(os.environ.get("LOCAL_WORLD_SIZE", self.count))
        self.device: torch.device = self._accelerator.device

    def wrap(self, module: nn.Module) -> nn.Module:
        """Distributed data parallel."""
        wrapped: nn.Module = self._accelerator.prepare_model(module)
        return wrapped

    def without_sync(self, module: nn.Module) -> AbstractContextManager[Any]:
        """Distributed data parallel's own ``no_sync``."""
        context: AbstractContextManager[Any] = self._accelerator.no_sync(module)
        return context

    def any(self, flag: bool) -> bool:
        """One small all-reduce."""
        flags = torch.tensor([float(flag)], device=self.device)
        return bool(self._accelerator.reduce(flags, "sum") > 0)

    def mean(self, value: Tensor) -> Tensor:
        """One all-reduce."""
        mean: Tensor = self._accelerator.reduce(value, "mean")
        return mean

    def one_after_the_other(self, load: Callable[[], T]) -> T:
        """The first process of a machine, then the others, without a word."""
        if self._accelerator.is_local_main_process:
            found = load()
            self.wait()
            return found
        self.wait()
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            return load()

    def wait(self) -> None:
        """A barrier."""
        self._accelerator.wait_for_everyone()

    def close(self) -> None:
        """End the process group."""
        self._accelerator.end_training()


def launched_rank() -> int:
    """The rank that a launcher gave this process; 0 without one."""
    return int(os.environ.get("RANK", "0"))


def open_processes(device: str) -> Processes:
    """This process among those of its launcher, or alone.

    Args:
        device: "cpu" or "cuda"; with several processes each takes its own GPU.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return Accelerated(device)
    return OneProcess(device)


@contextmanager
def peers_may_vanish(processes: Processes) -> Iterator[None]:
    """A peer that ended shows as an error of the transport: say what it means.

    Raises:
        TrainingError: another process of this run is gone.
    """
    try:
        yield
    except RuntimeError as e:
        if processes.count == 1 or not any(word in str(e).lower() for word in _LOST):
            raise
        raise TrainingError(
            f"process {processes.rank} of {processes.count}: another process of this run ended "
            f"({' '.join(str(e).split())[:120]}). Its own message says why; start all of them "
            "again to go on from the last checkpoint"
        ) from None

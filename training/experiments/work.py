"""Many tasks, several at a time, with the time that is left for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass

from mmf_deploy.progress import TaskProgress

from .runs import Run, Sessions

POLL_S = 2.0


@dataclass(frozen=True)
class Task:
    """Something that takes a while.

    Attributes:
        seconds: guess of what it takes; what matters is its ratio to that of other tasks.
        do: does it, in a thread of its own; a line that says how it went.
        done: share that is done, while it goes on.
    """

    name: str
    seconds: float
    do: Callable[[], str]
    done: Callable[[], float] = lambda: 0.0


def training(run: Run, seconds: float, sessions: Sessions) -> Task:
    """The task of training a run to its end."""
    return Task(
        run.name,
        seconds,
        lambda: _summary(sessions.train(run)),
        lambda: min(1.0, run.steps_done() / max(1, run.steps)),
    )


def execute(
    what: str, tasks: Sequence[Task], jobs: int, stop: Callable[[], None] = lambda: None
) -> None:
    """Do all tasks, ``jobs`` at a time, the first ones first.

    Args:
        stop: ends what goes on, should anything end this early, an interrupt too.
    Raises:
        Exception: what the first task that fails raised, once those that go on have ended.
    """
    if not tasks:
        return
    total = max(1, round(sum(task.seconds for task in tasks)))
    start = round(sum(task.seconds * task.done() for task in tasks))
    with (
        TaskProgress("s of work", total, min(start, total - 1)) as progress,
        ThreadPoolExecutor(jobs) as pool,
    ):
        going = {pool.submit(task.do): task for task in tasks}
        progress.show(what, min(start, total - 1))
        try:
            while going:
                finished, _ = wait(going, timeout=POLL_S, return_when=FIRST_COMPLETED)
                for future in finished:
                    print(f"{going.pop(future).name}: {future.result()}", flush=True)
                left = sum(task.seconds * (1 - task.done()) for task in going.values())
                progress.show(what, total - round(left), f"{len(going)} to go")
        except BaseException:
            for future in going:
                future.cancel()
            stop()
            raise


def _summary(record: dict[str, object]) -> str:
    if not record:
        return "stopped; the same command resumes it"
    took = "" if record["seconds"] is None else f" in {record['seconds']} s"
    return f"failed: {record['failed']}{took}" if "failed" in record else f"trained{took}"

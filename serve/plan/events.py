"""One replica, simulated: requests through the front and the batcher's policy.

Two stations, with one thread each. The front serves in the order of arrival and sees each request
twice: to take it in, and to send its reply. The engine follows the batcher: it runs at once when
idle, and while it is busy everything that arrives waits and goes together into the next batch, up
to the largest. What else happens to a request (the network, the client's own work) takes time and
occupies nobody. Nothing is refused and nobody leaves.

Three effects of a real process are part of it:

- Threads sleep and have to be woken: the front by a request and by a batch that is done, the
  engine by images that wait, and after its run.
- Both share one interpreter. The engine needs it to begin a batch, to make the noise and to hand
  over the images; it gets it when the front has nothing to do, and at the latest when it has waited
  for the interpreter's switch interval. The network itself runs beside the front.
- A replica that has been idle is slow until caches, clocks and cores are awake again. Its coldness
  goes to 1 while nothing runs and to 0 while something does, and work takes
  1 + ``cold`` × coldness times as long.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import numpy as np

from .replica import Replica, Trace

NEVER = math.inf
SWITCH_S = 5e-3
"""After so long Python takes the interpreter from a thread that another one waits for."""

IDLE, WAKING, NOISE, NETWORK, DONE = range(5)
"""What the engine does; all but the network needs the interpreter."""


def _draw(ratios: Sequence[float], count: int, random: np.random.Generator) -> list[float]:
    found: list[float] = random.choice(np.asarray(ratios, np.float64), count).tolist()
    return found


class Run:
    """One simulation, event by event.

    Within a busy period the clock counts warm work: at coldness c it is 1 + cold · c times slower
    than real time. That makes it the same for both stations, and both conversions exact.

    Args:
        due: times of arrival; grows in a closed loop.
        total: requests to answer.
    """

    def __init__(
        self, replica: Replica, due: list[float], total: int, images: int, seed: int,
        closed: bool = False,
    ) -> None:  # fmt: skip
        random = np.random.default_rng([seed, 2])
        self.due, self.total, self.images, self.closed = due, total, images, closed
        self.done = [0.0] * total
        self.beside = [replica.beside_s] * total
        noise_s = replica.noise_s or (0.0,) * replica.largest
        self.batch_s, self.noise_s = (0.0, *replica.batch_s), (0.0, *noise_s)
        self.largest, self.wake_s = replica.largest, replica.wake_s
        self.take_s = replica.before * replica.front_s
        self.send_s = replica.front_s - self.take_s
        self.cold, self.settle_s = replica.cold, replica.settle_s
        self.front_ratio = _draw(replica.front_ratios, total, random)
        self.batch_ratio = _draw(replica.batch_ratios, total * images, random)
        self.tasks: deque[int] = deque()  # of the front: k is to be taken in, ~k to be sent
        self.task = 0
        self.waiting: deque[int] = deque()  # requests with images that are in no batch yet
        self.left = [images] * total
        self.batch: list[int] = []  # requests that are ready when the batch is
        self.phase = IDLE
        self.held: float | None = None  # work of the engine that waits for the interpreter
        self.network_s = 0.0  # of the batch that is formed
        self.arrived = self.answered = self.batches = 0
        self.arrival = self.front_end = self.engine_end = NEVER
        self.engine_s = self.engine_began = 0.0
        # the busy period: when it began, how cold that was, and what that costs
        self.began = self.ended = 0.0
        self.coldness, self.extra = 1.0, 0.0

    def trace(self) -> Trace:
        """Run until everything is answered."""
        while self.answered < self.total:
            front, engine = self.front_end, self.engine_end
            if self.arrival <= front and self.arrival <= engine:
                if self.arrival == NEVER:
                    self._begin()
                self._arrive()
            elif front <= engine:
                self._front_done()
            else:
                self._engine_done()
        return Trace(
            np.array(self.due[: self.total]),
            np.array(self.done),
            self.batches,
            self.images * self.total,
            self.engine_s,
        )

    # The clock

    def _real(self, work: float) -> float:
        """The time when so much warm work of this busy period is done."""
        if self.extra:
            gone = self.extra * (1.0 - math.exp(-work / self.settle_s))
            return self.began + work + self.settle_s * math.log1p(gone)
        return self.began + work

    def _warm(self, time: float) -> float:
        """The inverse."""
        x = time - self.began
        if self.extra:
            left = (1.0 + self.extra * math.exp(-x / self.settle_s)) / (1.0 + self.extra)
            return x + self.settle_s * math.log(left)
        return x

    def _begin(self) -> None:
        """Nothing runs: the next request begins a busy period."""
        self.began = self.due[self.arrived]
        idle = (self.began - self.ended) / self.settle_s
        # squared: the first moments of an idle time cost next to nothing
        self.coldness = 1.0 - (1.0 - self.coldness) * math.exp(-idle * idle)
        self.extra = self.cold * self.coldness
        self.arrival = 0.0

    def _end(self, now: float) -> None:
        self.ended = self._real(now)
        self.coldness *= math.exp((self.began - self.ended) / self.settle_s)
        self.arrival = NEVER

    # Requests

    def _next_arrival(self) -> float:
        known = self.arrived < len(self.due) and self.arrived < self.total
        return self._warm(self.due[self.arrived]) if known else NEVER

    def _arrive(self) -> None:
        now, k = self.arrival, self.arrived
        if self.extra:
            since = (self.due[k] - self.began) / self.settle_s
            self.beside[k] *= 1.0 + self.extra * math.exp(-since)
        self.tasks.append(k)
        self.arrived += 1
        self.arrival = self._next_arrival()
        if self.front_end == NEVER:
            self._front_wakes(now)

    def _answer(self, k: int, now: float) -> None:
        self.done[k] = time = self._real(now) + self.beside[k]
        self.answered += 1
        if self.closed:
            self.due.append(time)
            if self.arrival == NEVER:
                self.arrival = self._next_arrival()

    # The front

    def _front_wakes(self, now: float) -> None:
        if self.engine_end != NEVER and self.phase != NETWORK:  # it loses the interpreter
            self._wait(self.engine_end - now, now)
        self._front_next(now + self.wake_s)

    def _front_next(self, now: float) -> None:
        self.task = task = self.tasks.popleft()
        if task >= 0:
            self.front_end = now + self.take_s * self.front_ratio[task]
        else:
            self.front_end = now + self.send_s * self.front_ratio[~task]

    def _front_done(self) -> None:
        now, task = self.front_end, self.task
        if task >= 0:
            self.waiting.append(task)
            if self.phase == IDLE:
                self._engine(WAKING, self.wake_s, now)
        else:
            self._answer(~task, now)
        if self.tasks:
            self._front_next(now)
            return
        self.front_end = NEVER
        if self.phase == IDLE:
            self._end(now)
        elif self.held is not None:
            self.engine_end, self.held = now + self.held, None

    # The engine

    def _engine(self, phase: int, work: float, now: float) -> None:
        """It goes on with work for which it needs the interpreter."""
        self.phase, self.engine_end = phase, now + work
        if self.front_end != NEVER:
            self._wait(work, now)

    def _wait(self, work: float, now: float) -> None:
        self.held, self.engine_end = work, now + SWITCH_S

    def _engine_done(self) -> None:
        """What it did is over, or its wait."""
        now = self.engine_end
        if self.held is not None:  # the front has to stand back
            self.front_end += self.held
            self.engine_end, self.held = now + self.held, None
        elif self.phase == WAKING:
            self._run_batch(now)
        elif self.phase == NOISE:
            self.phase, self.engine_end = NETWORK, now + self.network_s
        elif self.phase == NETWORK:
            self._engine(DONE, self.wake_s, now)
        else:
            self._hand_over(now)

    def _hand_over(self, now: float) -> None:
        """The batch goes to the front, and the next one begins."""
        self.engine_s += self._real(now) - self.engine_began
        self.tasks.extend([~k for k in self.batch])
        self.phase, self.engine_end = IDLE, NEVER
        if self.waiting:
            self._run_batch(now)
        if self.front_end == NEVER and self.tasks:
            self._front_wakes(now)

    def _run_batch(self, now: float) -> None:
        """Run what waits, as far as it goes into one batch."""
        size = self._form()
        work = self.batch_s[size] * self.batch_ratio[self.batches]
        self.batches += 1
        self.engine_began = self._real(now)
        noise_s = min(work, self.noise_s[size])
        self.network_s = work - noise_s
        self._engine(NOISE, noise_s, now)

    def _form(self) -> int:
        """Take images into the next batch; how many."""
        room, waiting, left = self.largest, self.waiting, self.left
        self.batch = []
        while waiting and room:
            k = waiting[0]
            count = min(room, left[k])
            left[k] -= count
            room -= count
            if not left[k]:
                self.batch.append(waiting.popleft())
        return self.largest - room

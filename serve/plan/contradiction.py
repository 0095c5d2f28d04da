"""Where the check breaks a bound that the simulation keeps, and what to plan for then."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .check import Checked
from .planner import Plan
from .words import short


@dataclass(frozen=True)
class Contradiction:
    """The simulation keeps the target where the measurement does not.

    Attributes:
        kept_per_s: the highest rate checked below that at which it was kept; None if at none.
        broken: the lowest rate at which the two disagree.
    """

    kept_per_s: float | None
    broken: Checked

    def replicas(self, plan: Plan) -> int | None:
        """How many it takes if none is asked for more than was kept; None if that is not known."""
        if self.kept_per_s is None:
            return None
        return max(plan.replicas, math.ceil(plan.rate / self.kept_per_s))


def contradiction(checked: Sequence[Checked], target_ms: float) -> Contradiction | None:
    """The first one as rates rise, or None."""
    broken = [c for c in checked if disagrees(c, target_ms)]
    if not broken:
        return None
    first = min(broken, key=lambda c: c.per_s)
    kept = [c.per_s for c in checked
            if c.per_s < first.per_s and c.measured_ms["p99"] <= target_ms]  # fmt: skip
    return Contradiction(max(kept, default=None), first)


def disagrees(one: Checked, target_ms: float) -> bool:
    """Whether the p99 that was measured breaks the target, and the simulated one keeps it."""
    return one.measured_ms["p99"] > target_ms >= one.simulated_ms["p99"]


def warning(checked: Sequence[Checked], plan: Plan) -> str | None:
    """One line on what was really kept, and what to plan for; None where the check agrees."""
    found = contradiction(checked, plan.target_ms)
    if found is None:
        return None
    at, target = found.broken, f"{plan.target_ms:g} ms"
    measured = (
        f"at {short(at.per_s)} it measured {short(at.measured_ms['p99'])} ms, where the "
        f"simulation says {short(at.simulated_ms['p99'])} ms (the load generator shared the cores)"
    )
    replicas = found.replicas(plan)
    if found.kept_per_s is None or replicas is None:
        return (
            f"the check kept a p99 under {target} at no rate below {short(at.per_s)} requests/s a "
            f"replica: {measured}; plan with less, or check with the load on another machine"
        )
    many = "1 replica" if replicas == 1 else f"{replicas} replicas"
    return (
        f"the check kept a p99 under {target} only up to {short(found.kept_per_s)} requests/s a "
        f"replica: {measured}; plan for no more than that a replica, so {many} for "
        f"{short(plan.rate)} requests/s, or check with the load on another machine"
    )

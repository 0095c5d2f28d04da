"""The tangent of the derivative, with λ = 0, rising and 1 (docs/objective.md)."""

from __future__ import annotations

from mmf_deploy.results import Table

from .cells import mean_sd
from .lab import Found, Lab, Measurement, Report
from .runs import Run

MODES = ("model", "conditional", "average")
LAMBDAS = ("0", "curriculum", "1")
_NAMED = {
    ("model", "0"): "mmf-lambda0",
    ("model", "curriculum"): "mmf",
    ("model", "1"): "mmf-lambda1",
    ("conditional", "0"): "meanflow",
    ("conditional", "1"): "meanflow-full",
}


def plan(lab: Lab) -> list[Measurement]:
    """Every tangent with every λ and every seed; what has a name is another experiment's too."""
    return [
        Measurement(run, "quality")
        for tangent in MODES
        for lam in LAMBDAS
        for run in _runs(lab, tangent, lam)
    ]


def _runs(lab: Lab, tangent: str, lam: str) -> list[Run]:
    if (tangent, lam) in _NAMED:
        return lab.images(_NAMED[tangent, lam])
    more = (f"objective.tangent={tangent}", f"objective.lam={lam}")
    return lab.images("mmf", f"-{tangent}-lambda-{lam}", more)


def report(found: Found) -> Report:
    """A row a tangent, a column a λ."""
    name = found.lab.scale.frechet
    notes = (
        "conditional: x1 − x0, MeanFlow's; average: u(x, r, t), as Eq. 9 prints it; model: "
        "u(x, t, t)",
        *found.lost(
            {f"{t}, λ {lam}": _runs(found.lab, t, lam) for t in MODES for lam in LAMBDAS}, "quality"
        ),
    )

    def table(title: str, key: str) -> Table:
        rows = [
            [tangent, *(mean_sd(found.values(_runs(found.lab, tangent, lam), "quality", key))
                        for lam in LAMBDAS)]
            for tangent in MODES
        ]  # fmt: skip
        return Table(title, ["tangent", "λ = 0", "λ rising", "λ = 1"], rows, notes)

    tables = [table(name, "frechet"), table("Coverage of the real data", "coverage")]
    return Report("Ablation of the tangent", tables)

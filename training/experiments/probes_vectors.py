"""Measurements of runs in the plane: a field, and two kinds of motion."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmf_deploy.errors import ConfigError

from ..data import control, ode
from ..metrics import trajectories
from ..metrics.motions import end_error, jerk, path_error
from ..metrics.sets import energy_distance
from ..metrics.trajectories import POINTS, jump, walk
from .subject import HELD_OUT_SEEDS, Subject

SAMPLES, SHOWN = 4_000, 800
REACH, ARROWS = 2.2, 15
MOTIONS, SKETCHED = 1_000, 6


def plane(subject: Subject) -> dict[str, Any]:
    """The one-step field u(x, 0, 1) on a grid, and how far one-step samples are from the data."""
    u = subject.field(None)
    line = torch.linspace(-REACH, REACH, ARROWS)
    points = torch.cartesian_prod(line, line)
    arrows = u(points, torch.zeros(1), torch.ones(1))
    x1 = subject.noise(range(SAMPLES))
    made = jump(u, x1)
    data = subject.config.load_data()
    real = data.batch(torch.arange(min(SAMPLES, len(data)))).x0
    # the modes come in turn: halves one after the other have all of them
    halves = energy_distance(*real.chunk(2))
    walked, reference = walk(u, x1[:500]), trajectories.reference_path(u, x1[:500])
    return {
        "grid": _rounded(points),
        "arrows": _rounded(arrows),
        "samples": _rounded(made[:SHOWN]),
        "data": _rounded(real[:SHOWN]),
        "energy_distance": energy_distance(made, real),
        "energy_distance_real": halves,
        "path_deviation": float(trajectories.path_deviation(walked, reference).mean()),
    }


def motion(subject: Subject) -> dict[str, Any]:
    """Motions from fresh starts: K steps with u against the true ones and against the chord.

    Time of the motion runs from the start, t = 1, to the end, t = 0; a duration of one.
    """
    starts = subject.noise(range(HELD_OUT_SEEDS, HELD_OUT_SEEDS + MOTIONS))
    reference = _reference(subject, starts)
    u = subject.field(None)
    walked = torch.stack(walk(u, starts), dim=1)
    share = torch.linspace(0, 1, POINTS + 1)[:, None]
    chord = torch.lerp(reference[:, :1], reference[:, -1:], share)
    return {
        "path_error": path_error(walked, reference),
        "chord_error": path_error(walked, chord),
        "chord_to_path": path_error(chord, reference),
        "end_error": end_error(walked, reference),
        "one_step_end_error": end_error(jump(u, starts)[:, None], reference),
        "jerk": jerk(walked),
        "jerk_reference": jerk(reference),
        "walked": _rounded(walked[:SKETCHED]),
        "reference": _rounded(reference[:SKETCHED]),
        "profile": _rounded(_progress(walked, reference)[:, None]),
        "profile_reference": _rounded(_progress(reference, reference)[:, None]),
    }


def _reference(subject: Subject, starts: Tensor) -> Tensor:
    """The true motions without noise, [B, K + 1, 2]."""
    data = dict(subject.config.data)
    source = data.pop("source")
    if source == "ode":
        settings = ode.Config.model_validate(data)
        return ode.solve(starts.double(), settings.horizon, POINTS + 1).float()
    if source == "control":
        target = torch.tensor(control.Config.model_validate(data).target)
        share = control.minimum_jerk(torch.linspace(0, 1, POINTS + 1))[:, None]
        return torch.lerp(starts[:, None], target.expand(len(starts), 1, 2), share)
    raise ConfigError(f"data.source {source!r}: a motion is 'ode' or 'control'")


def _progress(path: Tensor, reference: Tensor) -> Tensor:
    """Mean share of the way from start to end that is done, along the chord, [T]."""
    start, way = reference[:, :1], reference[:, -1:] - reference[:, :1]
    done = ((path - start) * way).sum(-1) / way.square().sum(-1).clamp(min=1e-6)
    return done.median(0).values


def _rounded(x: Tensor) -> Any:
    return [[round(v, 4) for v in row] for row in x.tolist()] if x.ndim == 2 else [
        _rounded(row) for row in x
    ]  # fmt: skip

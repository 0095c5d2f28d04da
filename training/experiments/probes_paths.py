"""Measurements along the path between noise and data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mmf_deploy import checkpoint
from mmf_deploy.errors import MMFError
from mmf_deploy.nn.sampler import quantise, time_grid

from ..data.base import Source
from ..metrics import trajectories
from ..metrics.corruptions import CORRUPTIONS, SEVERITIES
from ..metrics.trajectories import Field, jump, walk
from ..paths import per_sample
from .subject import HELD_OUT_SEEDS, Subject, spread

SHIFTED = 100  # images a kind and severity
HISTORIC = 100  # paths of every checkpoint


def paths(subject: Subject) -> dict[str, Any]:
    """All metrics of paths: means over held-out images, and over as many seeds."""
    x0, label = _held_out(subject, subject.scale.encoded)
    x1 = subject.noise(range(HELD_OUT_SEEDS, HELD_OUT_SEEDS + len(x0)))
    columns = subject.in_chunks(_of_noise, x1, label)
    found = dict(zip(("path_deviation", "one_step_gap", "smoothness"), columns.mean(0).tolist(),
                     strict=True))  # fmt: skip
    return {
        "one_step_error": float(subject.in_chunks(trajectories.one_step_error, x0, label).mean()),
        **found,
        "residual": float(_residual(subject, x0, x1, label).mean()),
        **_along(subject, x1, label),
        "images": len(x0),
    }


def _of_noise(u: Field, x1: Tensor) -> Tensor:
    """D_path, one step against the solver, smoothness: [B, 3]."""
    walked = walk(u, x1)
    reference = trajectories.reference_path(u, x1)
    return torch.stack([
        trajectories.path_deviation(walked, reference),
        trajectories.one_step_gap(u, x1, reference[-1]),
        trajectories.smoothness(walked),
    ], dim=1)  # fmt: skip


def _residual(subject: Subject, x0: Tensor, x1: Tensor, label: Tensor | None) -> Tensor:
    """Eq. 6 at random times r <= s <= t, on the linear path."""
    generator = torch.Generator().manual_seed(0)
    times = torch.rand(len(x0), 3, generator=generator).sort(dim=1).values
    x = torch.lerp(x0, x1, per_sample(times[:, 2], x0))
    joined = torch.cat([x.flatten(1), times], dim=1)

    def of(u: Field, rows: Tensor) -> Tensor:
        x_t = rows[:, :-3].reshape(-1, *x.shape[1:])
        return trajectories.consistency_residual(u, x_t, *rows[:, -3:].unbind(1))

    return subject.in_chunks(of, joined, label)


def _along(subject: Subject, x1: Tensor, label: Tensor | None) -> dict[str, Any]:
    """Mean distance between what neighbouring points of the path would become in one step."""
    try:
        distance = subject.distance
    except MMFError as e:  # no weights to judge by: the other metrics need none
        return {"along_path": None, "lacks": str(e)}

    def guesses(u: Field, x: Tensor) -> Tensor:
        # without the end of the path, which is its own guess
        points, times = walk(u, x)[:-1], time_grid(trajectories.POINTS)[:-1]
        guessed = [quantise(jump(u, p, t)) for p, t in zip(points, times, strict=True)]
        return torch.stack(guessed, dim=1)

    images = subject.in_chunks(guesses, x1, label).numpy()
    apart = [distance(images[:, k], images[:, k + 1]) for k in range(images.shape[1] - 1)]
    mean = float(sum(a.mean() for a in apart) / len(apart))
    return {"along_path": mean, "distance": distance.name}


def shifts(subject: Subject) -> dict[str, Any]:
    """One-step error of images unlike the training data, by kind and severity."""
    x0, label = _held_out(subject, min(SHIFTED, subject.scale.encoded))
    kinds: dict[str, Any] = {"clean": [_error(subject, x0, label)]}
    for name, corrupt in CORRUPTIONS.items():
        kinds[name] = [_error(subject, corrupt(x0, severity), label) for severity in SEVERITIES]
    lacks = {}
    for name, data in subject.scale.shifts.items():
        try:
            other = subject.config.model_copy(update={"data": dict(data)}).load_data()
        except MMFError as e:
            lacks[name] = str(e)
            continue
        # their classes are others: every class of ours in turn
        kinds[name] = [_error(subject, _some(other, len(x0))[0], label)]
    return {"kinds": kinds, "images": len(x0), **({"lacks": lacks} if lacks else {})}


def _error(subject: Subject, x0: Tensor, label: Tensor | None) -> float:
    return float(subject.in_chunks(trajectories.one_step_error, x0, label).mean())


def history(subject: Subject) -> dict[str, Any]:
    """D_path of every checkpoint that the run kept."""
    found = []
    for path in checkpoint.find_all(subject.run):
        at = checkpoint.read(path)
        if at.step == 0:
            continue
        then = replace(subject, checkpoint=at)
        count = min(HISTORIC, subject.scale.encoded)
        x1 = then.noise(range(HELD_OUT_SEEDS, HELD_OUT_SEEDS + count))
        label = _held_out(then, count)[1]
        deviation = then.in_chunks(
            lambda u, x: trajectories.path_deviation(walk(u, x), trajectories.reference_path(u, x)),
            x1,
            label,
        )
        found.append({"step": at.step, "path_deviation": float(deviation.mean())})
    return {"checkpoints": found}


def _held_out(subject: Subject, count: int) -> tuple[Tensor, Tensor | None]:
    return _some(subject.held_out, count)


def _some(source: Source, count: int) -> tuple[Tensor, Tensor | None]:
    batch = source.batch(spread(min(count, len(source)), len(source)))
    return batch.x0, batch.label

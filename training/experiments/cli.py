"""`mmf reproduce`: the tables and figures of the paper."""

from __future__ import annotations

import fcntl
import shlex
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from mmf_deploy.command_line import again, words
from mmf_deploy.errors import ConfigError, TrainingError, nearest, require
from mmf_deploy.machine import available_cores

from .. import devices
from . import EXPERIMENTS
from .scales import SCALES, Scale

if TYPE_CHECKING:
    from .reproduce import Reproduction

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
ALL = "all"


@app.command()
def reproduce(
    ctx: typer.Context,
    names: Annotated[
        str,
        typer.Argument(help=f"{ALL}, or some of {', '.join(EXPERIMENTS)}, separated by commas."),
    ],
    scale: Annotated[
        str, typer.Option(help=f"One of {', '.join(SCALES)}: data, network and budget.")
    ] = "digits",
    out: Annotated[
        Path, typer.Option(help="Directory; runs and results are in its sub-folder of the scale.")
    ] = Path("runs/reproduce"),
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimiser steps a run; the scale's own if not given.")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Seeds, comma-separated; the scale's own if not given.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=16, help="Generated images in a comparison of sets.")
    ] = None,
    encoded: Annotated[
        int | None, typer.Option(min=1, help="Held-out images in metrics of paths.")
    ] = None,
    pairs: Annotated[int | None, typer.Option(min=1, help="Pairs of seeds a class.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="Set a key of the recipe in every run with images. Repeatable."),
    ] = None,
    vector_sets: Annotated[
        list[str] | None,
        typer.Option("--set-vectors", help="The same for the runs in the plane."),
    ] = None,
    test: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE of data: for held-out images, e.g. path=val. Repeatable."),
    ] = None,
    inception_weights: Annotated[
        Path | None, typer.Option(help="File of Inception's weights; downloaded if not given.")
    ] = None,
    alexnet_weights: Annotated[
        Path | None, typer.Option(help="File of AlexNet's weights; downloaded if not given.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time; one a core, one on a GPU.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete what earlier calls made of this scale.")
    ] = False,
) -> None:
    """Train, measure and draw tables and figures of the paper. The same command resumes."""
    require("torch", "train")
    require("matplotlib", "bench")
    from .lab import Lab
    from .reproduce import Reproduction
    from .subject import Weights

    chosen = _experiments(names)
    size = _scale(scale, steps, seeds, samples, encoded, pairs, test, vector_sets)
    where = devices.chosen(device)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: is a file; expected a directory")
    root = out / scale
    if fresh and root.is_dir():
        for part in ("runs", "measured", "results", "judge"):
            shutil.rmtree(root / part, ignore_errors=True)
    parallel = jobs or (1 if where == "cuda" else available_cores())
    threads = max(1, available_cores() // parallel)
    lab = Lab(size, root, where, threads, tuple(overrides or ()))
    weights = Weights(inception_weights, alexnet_weights)
    _run(Reproduction(chosen, lab, parallel, weights, _options(ctx, scale)))


def _run(work: Reproduction) -> None:
    lab, runs = work.lab, work.runs
    left = sum(not run.known() for run in runs)
    typer.echo(
        f"{len(work.names)} experiments at scale {lab.scale.name}: {len(runs)} runs, "
        f"{len(runs) - left} of them trained before, {len(work.measurements)} measurements; "
        f"{work.jobs} at a time on {lab.device}, in {lab.root}"
    )
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with _alone(lab.root):
            work.train()
            for line in work.write(work.measure()):
                typer.echo(line)
    except KeyboardInterrupt:
        typer.echo("stopped; the same command goes on from here")
        raise typer.Exit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)
    typer.echo(f"results: {lab.root / 'results'}")
    typer.echo(f"next: mmf report {lab.root / 'results'} --out {lab.root / 'report.html'}")


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Hold the directory.

    Raises:
        TrainingError: another process works there.
    """
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrainingError(
                f"{root}: another mmf reproduce works there; wait for it, or give another --out"
            ) from None
        yield


def _options(ctx: typer.Context, scale: str) -> str:
    """What was typed behind the names, as far as it changes a result."""
    elsewhere = ("names", "scale", "out", "fresh", "jobs", "overrides", "vector_sets", "test")
    given = [f"--scale {scale}", *again(ctx, "", elsewhere).split()]
    for name, option in (("overrides", "--set"), ("vector_sets", "--set-vectors"),
                         ("test", "--test")):  # fmt: skip
        for value in ctx.params.get(name) or ():
            given += [option, shlex.quote(value)]
    return " ".join(given)


def _experiments(names: str) -> tuple[str, ...]:
    given = words(names)
    if given == (ALL,):
        return tuple(EXPERIMENTS)
    for name in given:
        if name not in EXPERIMENTS:
            raise ConfigError(
                f"no experiment {name!r}{nearest(name, EXPERIMENTS)}; "
                f"there are {', '.join(EXPERIMENTS)}, and {ALL}"
            )
    if not given:
        raise ConfigError(f"no experiment named; there are {', '.join(EXPERIMENTS)}, and {ALL}")
    return given


def _scale(
    name: str, steps: int | None, seeds: str | None, samples: int | None, encoded: int | None,
    pairs: int | None, test: list[str] | None, vector_sets: list[str] | None,
) -> Scale:  # fmt: skip
    if name not in SCALES:
        raise ConfigError(f"--scale {name!r}{nearest(name, SCALES)}: there are {', '.join(SCALES)}")
    given: dict[str, Any] = {"steps": steps, "samples": samples, "encoded": encoded, "pairs": pairs}
    if seeds is not None:
        given["seeds"] = _seeds(seeds)
    if test:
        given["test"] = dict(_pair(text) for text in test)
    if vector_sets:
        given["vectors"] = tuple(vector_sets)
    return replace(SCALES[name], **{k: v for k, v in given.items() if v is not None})


def _seeds(text: str) -> tuple[int, ...]:
    try:
        found = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        found = (-1,)
    if min(found) < 0:
        raise ConfigError(f"--seeds {text!r}: expected whole numbers of at least 0, such as 0,1,2")
    return found


def _pair(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"--test {text!r}: expected KEY=VALUE, such as path=imagenet/val")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as e:
        raise ConfigError(f"--test {text!r}: the value is not valid YAML") from e

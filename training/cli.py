"""`mmf-train`: train a recipe."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmf_deploy.errors import require

from . import devices
from .recipe_files import recipe_names

if TYPE_CHECKING:
    from .loop import Result, Trainer
    from .run_directory import RunDirectory

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def train(
    recipe: Annotated[
        str,
        typer.Argument(help=f"One of {', '.join(recipe_names())}, or the path of a YAML file."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Directory of the run; runs/NAME if not given.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="Set a key of the recipe, e.g. objective.lam=1. Repeatable."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="CPU threads; all cores, or what a resumed run had."),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete what the run's directory holds, start over.")
    ] = False,
    init_from: Annotated[
        Path | None,
        typer.Option(help="Start with the weights of a checkpoint or run (fine-tuning)."),
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Show the whole configuration and stop.")
    ] = False,
) -> None:
    """Train a one-step generator. The same command again resumes a run that was stopped.

    Several processes: torchrun --nproc-per-node 2 --no-python mmf-train RECIPE.
    """
    require("torch", "train")
    from .read_recipe import load_config

    sets = list(overrides or ())
    if init_from is not None:
        sets.append(f"init_from={json.dumps(str(init_from.resolve()))}")
    config = load_config(recipe, sets)
    if print_config:
        import yaml

        typer.echo(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), nl=False)
        return
    directory = out or Path("runs") / config.name
    command = shlex.join(["mmf-train", recipe, *(p for s in sets for p in ("--set", s))])
    from .loop import Trainer

    _run(Trainer(config, directory, devices.chosen(device), threads, command), directory, fresh)


def _run(trainer: Trainer, directory: Path, fresh: bool) -> None:
    from .processes import launched_rank

    config = trainer.config
    main = launched_rank() == 0
    if main:
        typer.echo(
            f"training {config.name}: objective {config.objective.name}, {config.loop.steps} steps "
            f"of {config.loop.batch_size} on {trainer.device}, run directory {directory}"
        )
    result = trainer.run(fresh)
    if not main:
        raise typer.Exit(0 if result.finished else 130)
    if not result.finished:
        typer.echo(f"stopped at step {result.step}, saved {result.checkpoint}")
        typer.echo("the same command resumes it")
        raise typer.Exit(130)
    if config.evaluate:
        _evaluate(trainer.directory, result)
    typer.echo(f"checkpoint: {result.checkpoint}")
    typer.echo(f"next: mmf-export {directory} --out bundles/{config.name}")


def _evaluate(directory: RunDirectory, result: Result) -> None:
    from mmf_deploy import checkpoint, files

    from .evaluate import checkpoint_generator, evaluate_digits

    path = directory.evaluation
    known = _read_json(path)
    if known.get("step") != result.step or not directory.judge.is_dir():
        found = checkpoint.read(result.checkpoint)
        # export judges by it whether a reduced precision still gives the same images
        quality = evaluate_digits(
            checkpoint_generator(found), lambda judge: judge.save(directory.judge)
        )
        known = {"step": result.step, **quality.as_dict()}
        files.write_atomic(path, (json.dumps(known, indent=1) + "\n").encode())
    typer.echo(
        f"quality of {known['samples']} one-step samples: class accuracy "
        f"{known['class_accuracy']:.1%} (judge: {known['classifier_accuracy']:.1%} on held-out "
        f"real digits), Fréchet distance {known['frechet']:.2f}, {known['ratio']:.2f}× the "
        f"{known['frechet_real']:.2f} between two halves of the real data"
    )


def _read_json(path: Path) -> dict[str, Any]:
    """What an earlier evaluation found; nothing if it was interrupted or never was."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

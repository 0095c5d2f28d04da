"""`mmf import`: weights from elsewhere become a run, ready to be sampled, exported, fine-tuned."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmf_deploy.errors import ConfigError, require

if TYPE_CHECKING:
    from mmf_deploy.spec import SampleSpec

    from .safetensors_map import Plan
    from .write_run import Imported

app = typer.Typer(
    help="Turn weights from elsewhere into a run, ready to be sampled, exported, fine-tuned.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Out = Annotated[Path | None, typer.Option(help="Directory of the run; runs/NAME if not given.")]
Force = Annotated[bool, typer.Option("--force", help="Replace a run that mmf import wrote.")]


@app.command("py-meanflow")
def py_meanflow(
    file: Annotated[Path, typer.Argument(help="A checkpoint of py-meanflow (.pth).")],
    ema: Annotated[
        str, typer.Option(help="Decay of the one average to take, such as 0.99995, or all.")
    ] = "all",
    image_size: Annotated[
        int | None, typer.Option(help="Refuse a network for images of another side.")
    ] = None,
    classes: Annotated[
        int | None, typer.Option(help="Refuse a network of other classes; 0: unconditional.")
    ] = None,
    out: Out = None,
    force: Force = False,
) -> None:
    """A checkpoint of the public MeanFlow code; the network is read off its weights."""
    require("torch", "export")
    from .py_meanflow import Wanted, read_py_meanflow
    from .write_run import refuse_to_overwrite

    out = out or Path("runs") / file.stem
    refuse_to_overwrite(out, force)
    typer.echo(f"reading {file}: nothing pickled in it is run")
    found = read_py_meanflow(file, Wanted(ema, image_size, classes))
    _write(found, out)


@app.command("safetensors")
def safetensors(
    file: Annotated[Path, typer.Argument(help="Weights: .safetensors, or of torch.save (.pth).")],
    map_file: Annotated[
        Path | None, typer.Option("--map", help="YAML file that renames entries.")
    ] = None,
    network: Annotated[
        Path | None, typer.Option(help="YAML file with network: and spec:, or a meta.json.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Take the network of this recipe instead.")
    ] = None,
    shape: Annotated[
        str | None, typer.Option(help="Of a sample, such as 3,32,32, if no file says it.")
    ] = None,
    classes: Annotated[int, typer.Option(help="With --shape; 0: unconditional.")] = 0,
    guidance_range: Annotated[
        str | None, typer.Option(help="With --shape: lowest and highest scale, such as 1,4.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would become of every entry, and stop.")
    ] = False,
    out: Out = None,
    force: Force = False,
) -> None:
    """Weights under any names, for a network of this package."""
    require("torch", "export")
    from .key_map import read_map
    from .safetensors_map import imported, plan
    from .write_run import refuse_to_overwrite

    out = out or Path("runs") / file.stem
    if not dry_run:
        refuse_to_overwrite(out, force)
    config, spec = _network(network, recipe, shape, classes, guidance_range)
    rules = read_map(map_file) if map_file else []
    typer.echo(f"reading {file}")
    found = plan(file, rules, config, spec)
    if dry_run:
        _show(found)
        found.check()
        typer.echo("every entry fits; the same command without --dry-run imports it")
        return
    _write(imported(found, _command(file, map_file, network, recipe)), out)


def _network(
    network: Path | None, recipe: str | None, shape: str | None, classes: int, guidance: str | None
) -> tuple[dict[str, Any], SampleSpec]:
    from .network_file import read_network, recipe_file
    from .spec_flags import spec_from_flags

    if (network is None) == (recipe is None):
        raise ConfigError("what are the weights for? expected --network FILE or --recipe NAME")
    path = network if network is not None else recipe_file(str(recipe))
    config, spec = read_network(path)
    if shape is not None:
        return config, spec_from_flags(shape, classes, guidance)
    if classes or guidance is not None:
        raise ConfigError("--classes, --guidance-range: expected --shape with them")
    if spec is None:
        raise ConfigError(
            f"{path}: does not say what a sample is; give --shape 3,32,32 (and --classes), or "
            "write spec: {shape: [3, 32, 32]} into it"
        )
    return config, spec


def _command(file: Path, map_file: Path | None, network: Path | None, recipe: str | None) -> str:
    given = {"--map": map_file, "--network": network, "--recipe": recipe}
    options = [part for k, v in given.items() if v is not None for part in (k, str(v))]
    return shlex.join(["mmf", "import", "safetensors", file.name, *options])


def _show(plan: Plan) -> None:
    rows = plan.table()
    old, size, new = (max((len(row[k]) for row in rows), default=0) for k in range(3))
    for row in rows:
        line = f"{row[0]:<{old}}  {row[1]:<{size}}  -> {row[2]:<{new}}  {row[3]}"
        typer.echo(line.rstrip())
    for pattern in plan.renaming.idle:
        typer.echo(f'note: no entry fits "{pattern}"')


def _write(found: Imported, out: Path) -> None:
    from .write_run import write_run

    path = write_run(out, found)
    size = "×".join(str(n) for n in found.spec.shape)
    classes = f"{found.spec.classes} classes" if found.spec.conditional else "unconditional"
    typer.echo(f"{size}, {classes}; weights {', '.join(found.weights)}")
    typer.echo(f"checkpoint: {path}")
    typer.echo(f"next: mmf sample {out}")
    typer.echo(f"      mmf export {out} --out bundles/{out.name}")

"""`mmf sample`: images, guidance sweeps and denoising strips, in process."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from mmf_deploy import files, images
from mmf_deploy.embedded import digits_bundle
from mmf_deploy.errors import ConfigError
from mmf_deploy.sampling import BundleSource, CheckpointSource, Source, find_source, generate
from mmf_deploy.spec import SampleSpec

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
MAX_SEEDS = 4096
MAX_STEPS = 1000
MAX_SIDE = 64  # rows or columns of a strip or a sweep that an eye can follow
MAX_ARRAY_BYTES = 2**30
NULL = "null"


@app.command()
def sample(
    source: Annotated[
        Path | None,
        typer.Argument(help="A bundle, a checkpoint or a run; embedded digits if none."),
    ] = None,
    seeds: Annotated[str, typer.Option(help="For example 0-99, or 3,1,4.")] = "0-99",
    label: Annotated[
        str | None,
        typer.Option(help="A class by number or name, or null; classes in turn if not given."),
    ] = None,
    guidance: Annotated[
        str | None,
        typer.Option(help="A scale, or one grid row each of 1,2,4; the lowest if not given."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(help="Network evaluations per sample; 1 (a bundle's own) if not given."),
    ] = None,
    trajectory: Annotated[
        bool, typer.Option("--trajectory", help="A row per seed: every point from noise to image.")
    ] = False,
    weights: Annotated[
        str | None, typer.Option(help="model, or an average such as ema-0.995; the slowest one.")
    ] = None,
    out: Annotated[Path, typer.Option(help="A .png grid, or .npy for the array.")] = Path(
        "samples.png"
    ),
) -> None:
    """Generate one image per seed; the same seed gives the same image everywhere."""
    path = source or digits_bundle()
    numbers = parse_seeds(seeds)
    if out.suffix not in (".png", ".npy"):
        raise ConfigError(f"--out {out}: expected a name that ends in .png or .npy")
    if steps is not None and not 1 <= steps <= MAX_STEPS:
        raise ConfigError(f"--steps {steps}: expected 1 … {MAX_STEPS}")
    scales = None if guidance is None else parse_guidance(guidance)
    found = find_source(path, steps, weights, trajectory)
    labels = labels_for(found, numbers, label)
    unlabelled = labels is not None and labels[0] == found.spec.classes
    scales = guidance_for(found.spec, scales, unlabelled)
    _check_size(found, len(numbers), len(scales), trajectory, out)
    if isinstance(found, CheckpointSource) and found.warning:
        typer.echo(f"warning: {found.warning}", err=True)

    _write(_samples(found, numbers, labels, scales), trajectory or len(scales) > 1, out)
    count = len(numbers) * max(1, len(scales))
    made = ("path" if trajectory else "sample") + ("s" if count > 1 else "")
    typer.echo(f"{count} {made} from {path}: {out}")
    typer.echo(_description(found, seeds, label, scales))
    if trajectory:
        typer.echo("a row is a seed, its columns the path from noise (t = 1) to sample (t = 0)")
    elif len(scales) > 1:
        typer.echo("a row is a guidance scale, a column a seed")
    if follow := _next(found, path, weights):
        typer.echo(f"next: {follow}")


def _samples(
    source: Source, seeds: list[int], labels: NDArray[np.int64] | None, scales: list[float]
) -> NDArray[Any]:
    """Samples [N, …]; with several guidance scales [scales, N, …], the same seeds for each."""
    rows = max(1, len(scales))
    samples = generate(
        source,
        seeds * rows,
        None if labels is None else np.tile(labels, rows),
        np.repeat(np.array(scales, np.float32), len(seeds)) if scales else None,
    )
    return samples.reshape(rows, len(seeds), *samples.shape[1:]) if rows > 1 else samples


def _next(source: Source, path: Path, weights: str | None) -> str | None:
    """The command that goes on from here; an export freezes one step."""
    if isinstance(source, BundleSource):
        return f"mmf-serve {path}"
    chosen = f" --weights {weights}" if weights else ""
    return f"mmf-export {path}{chosen}" if source.steps == 1 else None


def parse_seeds(text: str) -> list[int]:
    """Seeds of "0-99", "3,1,4" or a mixture.

    Raises:
        ConfigError: not such a list, or more than 4096 seeds.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        digits = max(len(first), len(last))
        if not first.isdecimal() or (dash and not last.isdecimal()) or digits > 19:
            raise ConfigError(f"--seeds {text!r}: expected integers such as 0-99 or 3,1,4")
        low, high = int(first), int(last) if dash else int(first)
        if high < low or len(seeds) + high - low + 1 > MAX_SEEDS:
            raise ConfigError(f"--seeds {text!r}: expected 1 … {MAX_SEEDS} seeds, rising ranges")
        seeds.extend(range(low, high + 1))
    return seeds


def parse_guidance(text: str) -> list[float]:
    """Guidance scales of "2" or "1,2,4".

    Raises:
        ConfigError: not such a list.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"--guidance {text!r}: expected a number, or several such as 1,2,4"
        ) from None


def labels_for(source: Source, seeds: list[int], label: str | None) -> NDArray[np.int64] | None:
    """Labels int64 [N] for a class by number or name, the null label, or the seeds' own.

    Raises:
        ConfigError: no such class, or a null label that was not trained.
    """
    spec = source.spec
    if not spec.conditional:
        if label is not None:
            raise ConfigError(f"--label {label}: this generator has no classes; leave it out")
        return None
    if label is None:
        return np.array([spec.default_label(s) for s in seeds], np.int64)
    if label in spec.class_names:
        number = spec.class_names.index(label)
    elif label == NULL and isinstance(source, CheckpointSource):
        source.require_null_label()
        number = spec.classes
    elif label.isdecimal() and len(label) < 19 and int(label) < spec.classes:
        number = int(label)
    else:
        names = f" or a name ({', '.join(spec.class_names[:10])})" if spec.class_names else ""
        raise ConfigError(f"--label {label!r}: expected 0 … {spec.classes - 1}{names}")
    return np.full(len(seeds), number, np.int64)


def guidance_for(spec: SampleSpec, scales: list[float] | None, unlabelled: bool) -> list[float]:
    """The guidance scales to sample with, one a row; none if the generator takes none.

    Args:
        unlabelled: the samples have the null label, which is trained with guidance 1 alone.
    Raises:
        ConfigError: a scale that the generator does not take.
    """
    if spec.guidance is None:
        if scales is not None:
            raise ConfigError(
                "--guidance: this generator has no guidance input; train one with "
                "--set objective.guidance.mode=input"
            )
        return []
    if unlabelled:
        if scales not in (None, [1.0]):
            raise ConfigError("--guidance: there is no class to guide to with --label null")
        return [1.0]
    low, high = spec.guidance
    for scale in scales or []:
        if not low <= scale <= high:
            raise ConfigError(f"--guidance {scale:g}: expected {low:g} … {high:g}")
    return scales or [low]


def _check_size(source: Source, seeds: int, scales: int, trajectory: bool, out: Path) -> None:
    spec, steps, table = source.spec, source.steps, trajectory or scales > 1
    if out.suffix == ".png" and not spec.is_image:
        raise ConfigError(f"--out {out}: these samples are vectors; write them with --out x.npy")
    if trajectory and scales > 1:
        raise ConfigError("--trajectory: expected one --guidance, not several")
    if scales > 1 and seeds * scales > MAX_SEEDS:
        raise ConfigError(f"{scales} --guidance for {seeds} seeds: expected {MAX_SEEDS} in all")
    other = f"{steps} steps" if trajectory else f"{scales} --guidance"
    if out.suffix == ".png" and table and max(seeds, steps if trajectory else scales) > MAX_SIDE:
        raise ConfigError(
            f"{seeds} seeds and {other}: such a picture holds at most {MAX_SIDE} of each; "
            "ask for fewer, or write the array with --out x.npy"
        )
    size = 4 * seeds * (steps + 1) * spec.elements
    if trajectory and size > MAX_ARRAY_BYTES:
        raise ConfigError(
            f"--trajectory: {seeds} seeds and {other} are {size / 2**30:.1f} GiB; "
            f"expected at most {MAX_ARRAY_BYTES / 2**30:g}, ask for fewer"
        )


def _write(samples: NDArray[Any], table: bool, out: Path) -> None:
    if out.suffix == ".npy":
        buffer = io.BytesIO()
        np.save(buffer, samples)
        files.write_atomic(out, buffer.getvalue())
        return
    pictures = samples.reshape(-1, *samples.shape[-3:])
    if pictures.dtype != np.uint8:
        pictures = images.to_uint8(pictures)
    images.save_grid(out, pictures, columns=samples.shape[1] if table else None)


def _description(source: Source, seeds: str, label: str | None, scales: list[float]) -> str:
    steps = f"{source.steps} step{'s' if source.steps > 1 else ''}"
    parts = [f"seeds {seeds}", steps, source.about]
    if scales:
        parts.insert(1, f"guidance {', '.join(f'{scale:g}' for scale in scales)}")
    if source.spec.conditional:
        parts.insert(1, "classes in turn" if label is None else f"label {label}")
    return "; ".join(parts)

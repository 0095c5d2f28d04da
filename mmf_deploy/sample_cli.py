"""`mmf sample`: images from a bundle or a checkpoint, in process."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from mmf_deploy import bundle as bundles
from mmf_deploy import checkpoint as checkpoints
from mmf_deploy import files, images, noise
from mmf_deploy.embedded import digits_bundle
from mmf_deploy.engines.base import EngineOptions, open_engine
from mmf_deploy.errors import ConfigError, require
from mmf_deploy.spec import SampleSpec

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
MAX_SEEDS = 4096


@app.command()
def sample(
    source: Annotated[
        Path | None,
        typer.Argument(help="A bundle, a checkpoint or a run; embedded digits if none."),
    ] = None,
    seeds: Annotated[str, typer.Option(help="For example 0-99, or 3,1,4.")] = "0-99",
    label: Annotated[
        str | None, typer.Option(help="A class by number or name; classes in turn if not given.")
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
    if (path / bundles.MANIFEST).is_file():
        samples = _from_bundle(path, numbers, label)
    else:
        samples = _from_checkpoint(path, numbers, label)
    _write(samples, out)
    typer.echo(f"{len(samples)} samples from {path}: {out}")


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


def labels_for(spec: SampleSpec, seeds: list[int], label: str | None) -> np.ndarray | None:
    """Labels int64 [B] for a class by number or name, or the seeds' own.

    Raises:
        ConfigError: no such class.
    """
    if not spec.conditional:
        if label is not None:
            raise ConfigError(f"--label {label}: this generator has no classes; leave it out")
        return None
    if label is None:
        return np.array([spec.default_label(s) for s in seeds], np.int64)
    if label in spec.class_names:
        number = spec.class_names.index(label)
    elif label.isdecimal() and len(label) < 19 and int(label) < spec.classes:
        number = int(label)
    else:
        names = f" or a name ({', '.join(spec.class_names[:10])})" if spec.class_names else ""
        raise ConfigError(f"--label {label!r}: expected 0 … {spec.classes - 1}{names}")
    return np.full(len(seeds), number, np.int64)


def _from_bundle(path: Path, seeds: list[int], label: str | None) -> np.ndarray:
    bundle = bundles.load(path)
    labels = labels_for(bundle.spec, seeds, label)
    guidance = _guidance(bundle.spec, len(seeds))
    with open_engine("onnxruntime", bundle, options=EngineOptions()) as engine:
        return engine.generate(noise.gaussian_batch(seeds, bundle.spec.shape), labels, guidance)


def _from_checkpoint(path: Path, seeds: list[int], label: str | None) -> np.ndarray:
    found = checkpoints.read(path)
    labels = labels_for(found.spec, seeds, label)
    torch = require("torch", "train")
    from mmf_deploy.nn.build import network_from
    from mmf_deploy.nn.sampler import Sampler

    sampler = Sampler(network_from(found), is_image=found.spec.is_image)
    guidance = _guidance(found.spec, len(seeds))
    inputs = (noise.gaussian_batch(seeds, found.spec.shape), labels, guidance)
    with torch.inference_mode():
        outputs = sampler(*(None if a is None else torch.from_numpy(a) for a in inputs))
    return np.asarray(outputs[-1].numpy())


def _guidance(spec: SampleSpec, count: int) -> np.ndarray | None:
    return None if spec.guidance is None else np.full(count, spec.guidance[0], np.float32)


def _write(samples: np.ndarray, out: Path) -> None:
    if out.suffix == ".npy":
        import io

        buffer = io.BytesIO()
        np.save(buffer, samples)
        files.write_atomic(out, buffer.getvalue())
    elif samples.dtype != np.uint8:
        raise ConfigError(f"--out {out}: these samples are vectors; write them with --out x.npy")
    else:
        images.save_grid(out, samples)

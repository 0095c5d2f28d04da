"""`mmf-export`: freeze a checkpoint into a verified bundle."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmf_deploy.errors import ConfigError, require

if TYPE_CHECKING:
    from mmf_deploy.bundle import Bundle

    from .origin import Origin
    from .plan import Planned, Request

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def export(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(help="A checkpoint, or a run (its newest checkpoint is taken)."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The bundle; bundles/NAME if not given.")] = None,
    target: Annotated[
        str,
        typer.Option(
            help="onnxruntime-cpu, onnxruntime-cuda, openvino, tensorrt, web, aoti, triton, plain; "
            "comma-separated."
        ),
    ] = "onnxruntime-cpu",
    precision: Annotated[
        str, typer.Option(help="fp32, fp16, bf16, int8; comma-separated.")
    ] = "fp32",
    steps: Annotated[
        str, typer.Option(help="Network evaluations per sample; comma-separated.")
    ] = "1",
    weights: Annotated[
        str | None,
        typer.Option(help="model, or an average such as ema-0.995; the slowest one. With --module "
                     "the file of the weights."),
    ] = None,
    label: Annotated[
        int | None, typer.Option(help="Freeze this label; it is no input any more.")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Freeze this guidance scale; it is no input any more.")
    ] = None,
    min_psnr: Annotated[
        float | None,
        typer.Option(help="Quality floor of reduced precisions, in dB; int8 leaves as many layers "
                     "in fp32 as it needs."),
    ] = None,
    curve: Annotated[
        bool, typer.Option("--curve", help="Measure int8's whole trade-off, layer by layer.")
    ] = False,
    allow: Annotated[
        str | None,
        typer.Option(help="Gates that may fail, recorded in the manifest: max-error, rms, "
                     "psnr, worst-image, frechet, classes."),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(help="Seeds to compare; 2,000 for small images, 256 for large ones."),
    ] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Measure the forms of graph here, take the fastest.")
    ] = False,
    module: Annotated[
        str | None,
        typer.Option(help="package.module:factory of your own network u(x, r, t, label)."),
    ] = None,
    shape: Annotated[
        str | None, typer.Option(help="With --module: shape of a sample, e.g. 3,32,32.")
    ] = None,
    classes: Annotated[int, typer.Option(help="With --module: number of classes.")] = 0,
    guidance_range: Annotated[
        str | None, typer.Option(help="With --module: range of guidance, e.g. 1,4.")
    ] = None,
    triton: Annotated[
        Path, typer.Option(help="With --target triton: the model repository.")
    ] = Path("models"),
    ort_web: Annotated[
        Path | None,
        typer.Option(help="With --target web: the onnxruntime-web package, a folder or its .tgz; "
                     "npm fetches it if not given."),
    ] = None,
    sign: Annotated[
        Path | None, typer.Option(help="Private key to sign the bundle with (mmf keygen).")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that exists.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done, and stop.")
    ] = False,
) -> None:  # fmt: skip
    """Freeze the sampler of a network, compare it image by image, and only then write it."""
    require("torch", "export")
    require("onnx", "export")
    require("onnxscript", "export")
    from .plan import Request, make_plan, refuse_to_overwrite, with_triton

    if sign is not None:
        from mmf_deploy.signing import private_key

        private_key(sign)
    origin, source = _origin(checkpoint, weights, module, shape, classes, guidance_range)
    names, to_triton = with_triton(_words("--target", target))
    request = Request(
        source=source,
        out=out or Path("bundles") / origin.default_name,
        weights=weights,
        force=force,
        targets=names,
        precisions=_words("--precision", precision),
        steps=tuple(_number("--steps", word) for word in _words("--steps", steps)),
        label=label,
        guidance=guidance,
        min_psnr=min_psnr,
        curve=curve,
        allow=_words("--allow", allow) if allow else (),
        samples=samples,
        tune=tune,
        sign_key=sign,
        ort_web=ort_web,
    )
    if ort_web is not None and "web" not in names:
        raise ConfigError("--ort-web goes with --target web only")
    refuse_to_overwrite(request.out, force)
    planned, left_out = make_plan(request, origin.spec)
    _announce(origin, request, planned, left_out)
    if dry_run:
        return
    bundle = _run(origin, request, planned)
    _report(bundle, checkpoint)
    if to_triton:
        from .to_triton import write_triton_repository

        for variant in bundle.manifest.variants:
            if variant.engine == "onnxruntime":
                typer.echo(f"Triton model: {write_triton_repository(bundle, variant, triton)}")


def _origin(
    checkpoint: Path | None,
    weights: str | None,
    module: str | None,
    shape: str | None,
    classes: int,
    guidance_range: str | None,
) -> tuple[Origin, Path]:
    """What to export, and the path it came from."""
    if (checkpoint is None) == (module is None):
        raise ConfigError(
            "give a checkpoint or a run (mmf-export runs/digits), or your own network "
            "(mmf-export --module package:factory --shape 3,32,32)"
        )
    if module is None:
        if shape is not None or classes or guidance_range is not None:
            raise ConfigError("--shape, --classes and --guidance-range go with --module only")
        from .origin import from_checkpoint

        assert checkpoint is not None  # one of the two was given
        return from_checkpoint(checkpoint, weights), checkpoint
    if shape is None:
        raise ConfigError("--module needs --shape, for example --shape 3,32,32")
    from .importers.module import from_module, spec_from_flags

    spec = spec_from_flags(shape, classes, guidance_range)
    return from_module(module, Path(weights) if weights else None, spec), Path()


def _words(option: str, text: str) -> tuple[str, ...]:
    words = tuple(word.strip() for word in text.split(","))
    if not all(words):
        raise ConfigError(f"{option} {text!r}: expected names with commas between")
    return words


def _number(option: str, word: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise ConfigError(f"{option} {word!r}: expected integers such as 1,2") from None


def _announce(
    origin: Origin, request: Request, planned: list[Planned], left_out: list[str]
) -> None:
    from .plan import describe
    from .reference import samples_to_compare

    source = origin.source
    count = samples_to_compare(origin.spec, request.samples)
    typer.echo(
        f"exporting {source.run}, step {source.step}, weights {source.weights} to {request.out}: "
        f"{len(planned)} variant{'s' if len(planned) > 1 else ''}, each compared with PyTorch over "
        f"{count:,} seeds"
    )
    for line in describe(planned):
        typer.echo(f"  {line}")
    for line in left_out:
        typer.echo(f"  left out: {line}")
    if origin.judge is None:
        typer.echo("  no judge beside the checkpoint: Fréchet distance and classes are not gated")


def _run(origin: Origin, request: Request, planned: list[Planned]) -> Bundle:
    import time

    from mmf_deploy.progress import TaskProgress, duration

    from .assemble import export_origin
    from .build import images_to_make
    from .reference import samples_to_compare

    total = images_to_make(planned, samples_to_compare(origin.spec, request.samples), origin)
    images, began = 0, 0.0

    def on_images(stage: str, done: int) -> None:
        nonlocal images
        images = done
        progress.show(stage, done)

    def on_layers(what: str, done: int, count: int) -> None:
        nonlocal began
        now = time.monotonic()
        began = now if done == 0 else began
        left = duration((now - began) / done * (count - done)) if done else "…"
        progress.show(f"{what} {done}/{count}, {left} left", images)

    with TaskProgress("images", total) as progress:
        return export_origin(origin, request, on_images, on_layers)


def _report(bundle: Bundle, checkpoint: Path | None) -> None:
    from rich.console import Console

    from mmf_deploy.bundle_tables import tradeoff_table, variants_table

    from .to_web import page_of

    console = Console(width=110)
    console.print(variants_table(bundle))
    for table in tradeoff_table(bundle):
        console.print(table)
    typer.echo(f"bundle: {bundle.path} (digest {bundle.digest[:12]})")
    if page := page_of(bundle):
        typer.echo(page)
    path = shlex.quote(str(bundle.path))
    typer.echo(f"next: mmf-serve {path}")
    baseline = f" --baseline {shlex.quote(str(checkpoint))}" if checkpoint else ""
    if bundle.spec.is_image:
        typer.echo(f"      mmf-demo {path}")
    typer.echo(f"      mmf-bench {path}{baseline}")

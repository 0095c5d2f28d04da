"""`mmf-export`: freeze a checkpoint into a verified bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmf_deploy.errors import require

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def export(
    checkpoint: Annotated[
        Path, typer.Argument(help="A checkpoint, or a run (its newest checkpoint is taken).")
    ],
    out: Annotated[Path | None, typer.Option(help="The bundle; bundles/NAME if not given.")] = None,
    weights: Annotated[
        str | None, typer.Option(help="model, or an average such as ema-0.995; the slowest one.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that exists.")] = False,
) -> None:
    """Freeze the one-step sampler of a checkpoint into ONNX, compare every image, write."""
    require("torch", "export")
    require("onnx", "export")
    require("onnxscript", "export")
    from mmf_deploy import checkpoint as checkpoints
    from mmf_deploy.progress import TaskProgress

    from .assemble import Request, export_bundle, images_to_make, refuse_to_overwrite
    from .parity import BATCHES

    source = checkpoints.resolve(checkpoint).resolve()
    # runs/NAME/checkpoints/step-…
    name = source.parent.parent.name if source.parent.name == "checkpoints" else source.name
    request = Request(source, out or Path("bundles") / name, weights, force)
    refuse_to_overwrite(request)
    typer.echo(
        f"exporting {source.name} of {checkpoint} to {request.out}: "
        "fp32 ONNX, one step, dynamic batch"
    )
    with TaskProgress("images", images_to_make(checkpoints.read(source).spec)) as progress:
        bundle, facts = export_bundle(request, progress.show)
    variant = bundle.variant()
    parity = variant.parity
    typer.echo(
        f"compared with PyTorch over {parity['samples']:.0f} seeds at batch "
        f"{', '.join(map(str, BATCHES))}: largest difference {parity['max_abs']:.1e}, "
        f"{parity['max_levels']:.0f} of 255 levels"
    )
    typer.echo(
        f"{variant.file}: {facts.bytes / 1e6:.2f} MB, {facts.nodes} nodes, opset {variant.opset}"
    )
    typer.echo(f"bundle: {bundle.path} (digest {bundle.digest[:12]})")
    typer.echo(f"next: mmf-serve {bundle.path}")
    typer.echo(f"      mmf-bench {bundle.path} --baseline {checkpoint}")

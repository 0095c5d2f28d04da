"""`mmf inspect`: what a bundle or a checkpoint holds, after verifying every hash."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from mmf_deploy import bundle as bundles
from mmf_deploy import checkpoint as checkpoints
from mmf_deploy.embedded import digits_bundle
from mmf_deploy.spec import SampleSpec

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def inspect(
    path: Annotated[
        Path | None,
        typer.Argument(help="A bundle, a checkpoint or a run; embedded digits if none."),
    ] = None,
) -> None:
    """Verify and show a bundle or a checkpoint."""
    where = path or digits_bundle()
    facts = _bundle(where) if (where / bundles.MANIFEST).is_file() else _checkpoint(where)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(name, value)
    Console(width=100).print(table, highlight=False)


def _sample(spec: SampleSpec) -> str:
    parts = ["×".join(str(n) for n in spec.shape) + (" image" if spec.is_image else " vector")]
    if spec.conditional:
        names = f" ({', '.join(spec.class_names[:12])})" if spec.class_names else ""
        parts.append(f"{spec.classes} classes{names}")
    if spec.guidance is not None:
        parts.append(f"guidance {spec.guidance[0]:g} … {spec.guidance[1]:g}")
    return ", ".join(parts)


def _bundle(path: Path) -> list[tuple[str, str]]:
    bundle = bundles.load(path)
    m = bundle.manifest
    facts = [
        ("bundle", str(path)),
        ("name", m.name),
        ("digest", bundle.digest),
        ("sample", _sample(m.spec)),
        ("source", f"run {m.source.run}, step {m.source.step}, weights {m.source.weights}"),
        ("parameters", f"{m.source.parameters:,}"),
    ]
    for v in m.variants:
        parity = ", ".join(f"{k} {value:g}" for k, value in v.parity.items())
        size = bundle.file(v).stat().st_size / 1e6
        facts.append(
            (
                f"variant {v.name}",
                f"{v.file}, {size:.2f} MB, {v.steps} step{'s' if v.steps > 1 else ''}, "
                f"opset {v.opset}; against PyTorch: {parity}",
            )
        )
    facts += [("quality", ", ".join(f"{k} {v}" for k, v in m.quality.items()))] if m.quality else []
    facts.append(("made with", ", ".join(f"{k} {v}" for k, v in m.versions.items())))
    facts.append(("files", "\n".join(f"{h[:16]}…  {name}" for name, h in m.files.items())))
    facts.append(("", "every hash verified"))
    return facts


def _checkpoint(path: Path) -> list[tuple[str, str]]:
    found = checkpoints.read(path)
    network = ", ".join(f"{k} {v}" for k, v in found.network.items())
    return [
        ("checkpoint", str(found.path)),
        ("name", str(found.meta.get("name"))),
        ("step", f"{found.step:,}"),
        ("sample", _sample(found.spec)),
        ("network", network),
        ("objective", str(found.config.get("objective", {}).get("name"))),
        (
            "weights",
            ", ".join(["model", *found.emas]) + f"; sampled with {found.default_weights()}",
        ),
        ("made with", ", ".join(f"{k} {v}" for k, v in found.meta.get("versions", {}).items())),
        ("files", "\n".join(f"{h[:16]}…  {name}" for name, h in found.file_hashes.items())),
        ("", "every hash verified"),
    ]

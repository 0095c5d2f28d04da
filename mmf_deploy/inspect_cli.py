"""`mmf inspect`: what a bundle or a checkpoint holds, after verifying every hash."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from mmf_deploy import bundle as bundles
from mmf_deploy import checkpoint as checkpoints
from mmf_deploy.bundle_tables import (
    forms_table,
    operators_table,
    sensitivity_table,
    tradeoff_table,
    variants_table,
)
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
    tables: list[Table] = []
    if (where / bundles.MANIFEST).is_file():
        bundle = bundles.load(where)
        facts = _bundle(bundle)
        tables = [
            variants_table(bundle),
            operators_table(bundle),
            *forms_table(bundle),
            *tradeoff_table(bundle),
            *sensitivity_table(bundle),
        ]
    else:
        facts = _checkpoint(where)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(name, value)
    console = Console(width=110)
    console.print(table, highlight=False)
    for more in tables:
        console.print()
        console.print(more, highlight=False)


def _sample(spec: SampleSpec) -> str:
    parts = ["×".join(str(n) for n in spec.shape) + (" image" if spec.is_image else " vector")]
    if spec.conditional:
        names = f" ({', '.join(spec.class_names[:12])})" if spec.class_names else ""
        parts.append(f"{spec.classes} classes{names}")
    if spec.guidance is not None:
        parts.append(f"guidance {spec.guidance[0]:g} … {spec.guidance[1]:g}")
    return ", ".join(parts)


def _bundle(bundle: bundles.Bundle) -> list[tuple[str, str]]:
    m = bundle.manifest
    facts = [
        ("bundle", str(bundle.path)),
        ("name", m.name),
        ("digest", bundle.digest),
        ("sample", _sample(m.spec)),
        ("source", f"run {m.source.run}, step {m.source.step}, weights {m.source.weights}"),
        ("parameters", f"{m.source.parameters:,}"),
    ]
    facts += _frozen(m.source)
    for v in m.variants:
        facts.append((f"variant {v.name}", _variant(v)))
        facts += [(f"  allowed for {v.name}", text) for text in v.exceptions]
    facts += [("quality", ", ".join(f"{k} {v}" for k, v in m.quality.items()))] if m.quality else []
    facts.append(("made with", ", ".join(f"{k} {v}" for k, v in m.versions.items())))
    facts.append(("files", "\n".join(f"{h[:16]}…  {name}" for name, h in m.files.items())))
    facts.append(("", "every hash verified"))
    return facts


def _variant(v: bundles.Variant) -> str:
    form = ", ".join(f"{k} {value}" for k, value in v.form.items())
    compared = v.parity.get("samples", 0)
    return (
        f"{v.file}, for {v.target}"
        + (f", opset {v.opset}" if v.opset else "")
        + (f"; {form}" if form else "")
        + f"; {compared:,.0f} samples compared by {v.verified}"
    )


def _frozen(source: bundles.Source) -> list[tuple[str, str]]:
    values = [("label", source.label), ("guidance", source.guidance)]
    found = [f"{name} {value:g}" for name, value in values if value is not None]
    return [("frozen", ", ".join(found))] if found else []


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

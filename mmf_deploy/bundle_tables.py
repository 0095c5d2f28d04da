"""What a bundle holds, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table

from mmf_deploy.bundle import Bundle, Variant

MOST_LAYERS = 12


def variants_table(bundle: Bundle) -> Table:
    """One row a variant: how large and fast it is, how far from PyTorch."""
    latency = bundle.measured().get("latency", {})
    judged = any("frechet_shift" in v.parity for v in bundle.manifest.variants)
    table = Table(
        title="variants, against PyTorch: largest difference, its root mean square, PSNR in dB"
        + (", shift of the Fréchet distance, same classes" if judged else "")
        + "; milliseconds at batch 1",
        title_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
    )
    for column, justify in (
        ("variant", "left"), ("steps", "right"), ("MB", "right"), ("nodes", "right"),
        ("max |Δ|", "right"), ("RMS", "right"), ("PSNR", "right"),
        *((("Fréchet", "right"), ("classes", "right")) if judged else ()),
        ("ms", "right"),
    ):  # fmt: skip
        table.add_column(column, justify=justify, no_wrap=True)
    for v in bundle.manifest.variants:
        table.add_row(*_cells(bundle, v, latency.get(v.name, {}), judged))
    baseline = bundle.measured().get("pytorch", {})
    if baseline:
        times = ", ".join(f"{ms:.3g} ms with {n} step{'s' if n != '1' else ''}"
                          for n, ms in baseline.items())  # fmt: skip
        table.caption = f"PyTorch eager on the CPU there: {times}"
        table.caption_justify = "left"
    return table


def _cells(bundle: Bundle, variant: Variant, latency: Mapping[str, Any], judged: bool) -> list[str]:
    parity = variant.parity
    file = bundle.file(variant)
    milliseconds = latency.get("batch1_ms")
    here = variant.verified == f"{variant.engine} on {variant.device}" and variant.target != "web"
    return [
        variant.name,
        str(variant.steps),
        f"{file.stat().st_size / 1e6:.2f}",
        str(variant.graph.get("nodes", "")),
        *(f"{parity[key]:.1e}" if key in parity else "" for key in ("max_abs", "rms")),
        _psnr(parity),
        *((_percent(parity, "frechet_shift"), _percent(parity, "same_class")) if judged else ()),
        # a time of the stand-in that compared it says nothing of its target
        "" if milliseconds is None or not here else f"{milliseconds:.3g}",
    ]


def _psnr(parity: Mapping[str, float]) -> str:
    if "psnr" not in parity:
        return ""
    return "equal" if parity["psnr"] >= 999 else f"{parity['psnr']:.1f}"


def _percent(parity: Mapping[str, float], key: str) -> str:
    return f"{parity[key]:.2%}" if key in parity else ""


def operators_table(bundle: Bundle) -> Table:
    """Operators by variant, and weights by dtype; variants that share a file share a column."""
    columns: dict[str, Variant] = {}
    for v in bundle.manifest.variants:
        if v.graph:
            columns.setdefault(v.file, v)
    table = Table(title="operators, and weights by dtype", title_justify="left")
    table.add_column("")
    for file in columns:
        names = [v.name for v in bundle.manifest.variants if v.file == file]
        table.add_column("\n".join(names), justify="right")
    for kind in ("operators", "weights"):
        for name in _names(v.graph.get(kind, {}) for v in columns.values()):
            cells = [v.graph.get(kind, {}).get(name) for v in columns.values()]
            table.add_row(
                name if kind == "operators" else f"weights {name}",
                *("" if c is None else f"{c:,}" for c in cells),
            )
        table.add_section()
    return table


def _names(counts: Iterable[Mapping[str, int]]) -> list[str]:
    total: dict[str, int] = {}
    for one in counts:
        for name, n in one.items():
            total[name] = max(total.get(name, 0), n)
    return sorted(total, key=lambda name: (-total[name], name))


def tradeoff_table(bundle: Bundle) -> list[Table]:
    """For each int8 variant that gave something up: quality against what is quantised."""
    tables = []
    for name, found in bundle.measured().get("int8", {}).items():
        if len(found.get("curve", ())) < 2:
            continue
        table = Table(
            title=f"{name}: quality against speed (floor {found['min_psnr']:g} dB)",
            title_justify="left",
        )
        for column in ("layers in int8", "of the multiplications", "PSNR, dB", "ms, batch 1"):
            table.add_column(column, justify="right")
        for point in found["curve"]:
            chosen = " ←" if point["layers"] == found["quantised"] else ""
            milliseconds = point.get("latency_ms")
            table.add_row(
                f"{point['layers']}{chosen}",
                f"{point['share']:.0%}",
                "equal" if point["psnr"] >= 999 else f"{point['psnr']:.1f}",
                "" if milliseconds is None else f"{milliseconds:.3g}",
            )
        tables.append(table)
    return tables


def sensitivity_table(bundle: Bundle) -> list[Table]:
    """For each int8 variant that measured them: the layers that hurt most when quantised alone."""
    tables = []
    for name, found in bundle.measured().get("int8", {}).items():
        worst = sorted(found.get("psnr_alone", {}).items(), key=lambda item: item[1])[:MOST_LAYERS]
        if not worst:
            continue
        table = Table(title=f"{name}: the most sensitive layers", title_justify="left")
        for column in ("layer", "PSNR alone, dB", "kept in fp32"):
            table.add_column(column, justify="left" if column == "layer" else "right")
        for layer, quality in worst:
            table.add_row(layer, f"{quality:.1f}", "yes" if layer in found["kept_in_fp32"] else "")
        tables.append(table)
    return tables


def forms_table(bundle: Bundle) -> list[Table]:
    """For each target that was tuned: the forms tried and their times."""
    tables = []
    for target, tried in bundle.measured().get("forms", {}).items():
        table = Table(title=f"{target}: forms tried", title_justify="left")
        for column in ("opset", "normalisation", "upsampling", "ms, batch 1"):
            table.add_column(column, justify="right")
        best = min(form["latency_ms"] for form in tried)
        for form in tried:
            mark = " ←" if form["latency_ms"] == best else ""
            table.add_row(str(form["opset"]), form["normalisation"], form["upsampling"],
                          f"{form['latency_ms']:.3g}{mark}")  # fmt: skip
        tables.append(table)
    return tables

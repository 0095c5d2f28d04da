"""What the export study and the folded time cost and save."""

from __future__ import annotations

from typing import Any


def frozen_time(found: dict[str, Any], link: str) -> str:
    """What folding the embedding saves."""
    machine = found["machine"]
    alone = [row for row in found["rows"] if row["batch"] == row["threads"] == 1]
    rows = {row["variant"]: row for row in alone if row["engine"] == "onnxruntime"}
    lines = [
        f"The {found['parameters'] / 1e6:.2f}M digits network, labels as an input, batch 1, one "
        f"thread ({machine['cpu']}), ONNX Runtime, by\n`{found['command']}` "
        f"([results]({link})):\n",
        "| time | nodes | file | median | folded is faster |",
        "|---|---|---|---|---|",
    ]
    for name, variant in (("r and t as tensors of the graph", "plain-fp32"), ("folded", "fp32")):
        row, graph = rows[variant], found["graphs"][variant]
        ratio = rows["fp32"]["versus"]["plain-fp32"]
        lines.append(
            f"| {name} (`{variant}`) | {graph['nodes']:,} | {graph['bytes'] / 1e6:.2f} MB | "
            f"{row['median_ms']:.3f} ms | {'' if variant != 'fp32' else f'{ratio:.2f}×'} |"
        )
    return "\n".join(lines)


def forms(found: dict[str, Any], link: str) -> str:
    """The candidate forms of graph and their times."""
    targets = list(found["forms"])
    lines = [
        _of_export(found, link),
        f"| normalisation | upsampling | opset | {' | '.join(f'`{t}`' for t in targets)} |",
        "|---" * (3 + len(targets)) + "|",
    ]
    for tried in zip(*found["forms"].values(), strict=True):
        cells = [
            f"**{form['latency_ms']:.1f} ms**"
            if form["latency_ms"] == min(f["latency_ms"] for f in found["forms"][target])
            else f"{form['latency_ms']:.1f} ms"
            for target, form in zip(targets, tried, strict=True)
        ]
        first = tried[0]
        upsampling = first.get("upsampling", "transposed")
        form = [first["normalisation"], upsampling, first["opset"], *cells]
        lines.append(f"| {' | '.join(map(str, form))} |")
    return "\n".join(lines)


def int8_curve(found: dict[str, Any], link: str) -> str:
    """Quality against speed of int8."""
    curves = {name: c["curve"] for name, c in found["int8"].items() if c["curve"]}
    lines = [_of_export(found, link)]
    head = ["layers in int8", "of the multiplications", "PSNR", *(f"`{n}`" for n in curves)]
    lines += [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    timed = {
        name: {p["layers"]: p for p in curve if p["latency_ms"] is not None}
        for name, curve in curves.items()
    }
    for layers, point in next(iter(timed.values())).items():
        psnr = "equal" if point["psnr"] >= 999 else f"{point['psnr']:.1f} dB"
        times = [f"{t[layers]['latency_ms']:.1f} ms" if layers in t else "" for t in timed.values()]
        lines.append(f"| {layers} | {point['share']:.0%} | {psnr} | {' | '.join(times)} |")
    return "\n".join(lines)


def _of_export(found: dict[str, Any], link: str) -> str:
    machine = found["machine"]
    return (
        f"{found['parameters'] / 1e6:.1f}M CIFAR-10 network, batch 1, {machine['cores']} cores "
        f"({machine['cpu']}), by\n`{found['command']}`\n"
        f"([results]({link})):\n"
    )

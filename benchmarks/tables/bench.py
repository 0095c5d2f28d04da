"""Latency per image of the engines, from the rows of `mmf bench`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmf_deploy.serve.bench.subjects import shown_name


def speed(found: dict[str, Any], link: str) -> str:
    """The CIFAR-10 network at the first batch and number of threads that were measured."""
    machine, first = found["machine"], found["rows"][0]
    rows = [r for r in found["rows"] if all(r[k] == first[k] for k in ("batch", "threads"))]
    return (
        f"The 55.9M network of the public CIFAR-10 MeanFlow model, random weights, batch "
        f"{first['batch']}, {first['threads']} threads\n({machine['cpu']}), "
        "every engine in its own process, taking turns, by `make bench-cifar10`\n"
        f"([results]({link})):\n\n{_table(rows, ())}"
    )


def latency(found: dict[str, Any], link: str) -> str:
    """Every row."""
    machine = found["machine"]
    return (
        f"The {found['parameters'] / 1e6:.1f}M network of `{found['bundle']}` on "
        f"{machine['cores']} cores ({machine['cpu']}), by\n`{found['command']}`\n"
        f"([results]({link})):\n\n{_table(found['rows'], ('batch', 'threads'))}"
    )


def _table(rows: Sequence[dict[str, Any]], settings: Sequence[str]) -> str:
    others = list(dict.fromkeys(name for row in rows for name in row["versus"]))
    head = ["engine", *settings, "median", "p90", "images/s", "memory", "against PyTorch eager"]
    head += [f"against `{name}`" for name in others]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        memory = row["memory_mb"] if "memory_mb" in row else row["peak_memory_mb"]
        cells = [
            shown_name(row["engine"], row["variant"]),
            *(str(row[setting]) for setting in settings),
            _ms(row["median_ms"]),
            _ms(row["p90_ms"]),
            f"{row['images_per_s']:.1f}",
            "" if memory is None else f"{memory:,.0f} MB",
            _times(row["speedup"]),
            *(_times(row["versus"].get(other)) for other in others),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _ms(value: float) -> str:
    return f"{value:.0f} ms" if value >= 10 else f"{value:.3f} ms"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}×"

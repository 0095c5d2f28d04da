"""What the objectives learn, and what a step of each costs."""

from __future__ import annotations

from collections import defaultdict
from statistics import mean, stdev
from typing import Any


def objectives(found: dict[str, Any], link: str) -> str:
    """What each objective learns from digits with the same number of steps."""
    machine, groups = found["machine"], defaultdict(list)
    for row in found["rows"]:
        groups[row["objective"], row["derivative"]].append(row)
    floor = [row["frechet_real"] for row in found["rows"] if row["status"] == "finished"]
    steps = {row["step"] for row in found["rows"] if row["status"] == "finished"}
    lines = [
        f"Digits, {' or '.join(map(str, sorted(steps)))} steps each, one thread each on "
        f"{machine['cores']} cores ({machine['cpu']}), mean ± standard deviation over seeds, by\n"
        f"`{found['command']}` ([results]({link})). The "
        f"floor, two\nhalves of the real data, is {mean(floor):.2f}.\n",
        "| objective | Fréchet distance | class accuracy |",
        "|---|---|---|",
    ]
    for (objective, derivative), runs in groups.items():
        name = f"`{objective}`" + ("" if derivative == "auto" else f" with `{derivative}`")
        good = [row for row in runs if row["status"] == "finished"]
        failed = (
            [] if len(good) == len(runs) else [f"{len(runs) - len(good)} of {len(runs)} failed"]
        )
        cells = [
            ", ".join([*([_spread([row[key] for row in good], form)] if good else []), *extra])
            for key, form, extra in (
                ("frechet", "{:.2f}", failed),
                ("class_accuracy", "{:.1%}", []),
            )
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _spread(values: list[float], form: str) -> str:
    middle = form.format(mean(values))
    return middle if len(values) < 2 else f"{middle} ± {form.format(stdev(values))}"


def bench_step(found: dict[str, Any], link: str) -> str:
    """What an optimiser step costs."""
    machine, config = found["machine"], found["config"]
    lines = [
        f"One optimiser step of the {config['parameters'] / 1e6:.1f}M network of "
        f"`{config['recipe']}`, batch {config['batch']}, {config['threads']} threads "
        f"({machine['cpu']}),\nmedian over {found['rounds']} rounds in which all take turns, by "
        f"`{found['command']}`\n([results]({link})):\n",
        "| step | share r ≠ t | λ | derivative | time | × flow matching | × faster than naive |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        share, speedup = row["gap_fraction"], row["naive_speedup"]
        cells = [
            row["objective"],
            "" if share is None else f"{share:.0%}",
            f"{row['lam']:g}" if row["derivative"] else "",
            f"`{row['derivative']}`" if row["derivative"] else "",
            f"{row['median_ms']:.0f} ms",
            f"{row['ratio']:.2f}",
            "" if speedup is None else f"{speedup:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)

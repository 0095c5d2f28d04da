"""Write the tables of README.md from the committed result files; tests check that they agree.

python benchmarks/render.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def quickstart() -> str:
    """What `make quickstart` ended with."""
    found = json.loads((RESULTS / "quickstart-cpu.json").read_text())
    quality, machine = found["quality"], found["machine"]
    rows = [
        ("samples that show the class asked for", f"{quality['class_accuracy']:.1%}"),
        (
            "accuracy of the judging classifier, real held-out",
            f"{quality['classifier_accuracy']:.1%}",
        ),
        (
            "Fréchet distance to real digits / of two halves of them",
            f"{quality['frechet']:.2f} / {quality['frechet_real']:.2f} = {quality['ratio']:.2f}",
        ),
        *(
            (
                f"{row['engine']} {row['variant']}, batch {row['batch']}, "
                f"{row['threads']} threads".replace("1 threads", "1 thread"),
                f"{row['median_ms']:.3f} ms/image"
                + ("" if row["engine"] == "pytorch" else f", {row['speedup']:.2f}× PyTorch eager"),
            )
            for row in found["latency"]
        ),
        (
            "service: start to ready, one image by HTTP",
            f"{found['ready_s']} s, {found['http_ms']} ms",
        ),
        ("largest difference, service to PyTorch", f"{found['levels']} of 255 levels"),
        ("everything, after installation", f"{found['seconds']:.0f} s"),
    ]
    body = "\n".join(f"| {name} | {value} |" for name, value in rows)
    where = f"`make quickstart` on {machine['cores']} cores ({machine['cpu']}) ends with this "
    where += "([results](benchmarks/results/quickstart-cpu.json)):"
    return f"{where}\n\n| | |\n|---|---|\n{body}"


def speed() -> str:
    """Latency of the CIFAR-10 network."""
    found = json.loads((RESULTS / "cifar10-random-cpu" / "bench.json").read_text())
    machine = found["machine"]
    lines = [
        f"The 55.9M network of the public CIFAR-10 MeanFlow model, random weights, "
        f"{machine['cores']} cores ({machine['cpu']}), by `make bench-cifar10`\n"
        "([results](benchmarks/results/cifar10-random-cpu/bench.json)):\n",
        "| engine | threads | batch | median | p90 | images/s | against PyTorch eager |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        cells = [
            f"{row['engine']} {row['variant']}",
            row["threads"],
            row["batch"],
            f"{row['median_ms']:.0f} ms",
            f"{row['p90_ms']:.0f} ms",
            f"{row['images_per_s']:.1f}",
            f"{row['speedup']:.2f}×",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


SECTIONS = {"quickstart": quickstart, "speed": speed}


def render(text: str) -> str:
    """README.md with every section between its markers written anew."""
    for name, section in SECTIONS.items():
        pattern = re.compile(f"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        text, count = pattern.subn(lambda m, s=section: f"{m[1]}{s()}\n{m[2]}", text)
        if count != 1:
            raise SystemExit(f"README.md: expected the markers of {name!r} once, found {count}")
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(render(readme.read_text()))

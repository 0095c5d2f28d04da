"""What `make quickstart` ended with."""

from __future__ import annotations

from typing import Any


def quickstart(found: dict[str, Any], link: str) -> str:
    """What `make quickstart` ended with."""
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
    where += f"([results]({link})):"
    return f"{where}\n\n| | |\n|---|---|\n{body}"

"""Write the tables of the pages from the committed result files; tests check that they agree.

python benchmarks/render.py
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def quickstart(found: dict[str, Any]) -> str:
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
    where += "([results](benchmarks/results/quickstart-cpu.json)):"
    return f"{where}\n\n| | |\n|---|---|\n{body}"


def speed(found: dict[str, Any]) -> str:
    """Latency of the CIFAR-10 network."""
    machine = found["machine"]
    others = list(dict.fromkeys(name for row in found["rows"] for name in row["versus"]))
    head = ["engine", "median", "p90", "images/s", "memory", "against PyTorch eager"]
    head += [f"against `{name}`" for name in others]
    lines = [
        f"The 55.9M network of the public CIFAR-10 MeanFlow model, random weights, batch "
        f"{found['rows'][0]['batch']}, {found['rows'][0]['threads']} threads\n({machine['cpu']}), "
        "every engine in its own process, taking turns, by `make bench-cifar10`\n"
        "([results](benchmarks/results/cifar10-random-cpu/bench.json)):\n",
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
    ]
    for row in found["rows"]:
        name = row["variant"]
        cells = [
            name if name.startswith(row["engine"]) else f"{row['engine']} {name}",
            f"{row['median_ms']:.0f} ms",
            f"{row['p90_ms']:.0f} ms",
            f"{row['images_per_s']:.1f}",
            f"{row['memory_mb']:,.0f} MB",
            f"{row['speedup']:.2f}×",
            *(f"{row['versus'][other]:.2f}×" for other in others),
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _of_export(found: dict[str, Any], result: str) -> str:
    machine = found["machine"]
    return (
        f"{found['parameters'] / 1e6:.1f}M CIFAR-10 network, batch 1, {machine['cores']} cores "
        f"({machine['cpu']}), by\n`{found['command']}`\n"
        f"([results](../benchmarks/results/{result})):\n"
    )


def frozen_time(found: dict[str, Any]) -> str:
    """What folding the embedding saves."""
    machine = found["machine"]
    rows = {row["variant"]: row for row in found["rows"]}
    lines = [
        f"The {found['parameters'] / 1e6:.2f}M digits network, labels as an input, batch 1, one "
        f"thread ({machine['cpu']}), ONNX Runtime, by\n`{found['command']}` "
        "([results](../benchmarks/results/digits-cpu/bench.json)):\n",
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


def forms(found: dict[str, Any]) -> str:
    """The candidate forms of graph and their times."""
    targets = list(found["forms"])
    lines = [
        _of_export(found, "export-forms-cpu.json"),
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


def int8_curve(found: dict[str, Any]) -> str:
    """Quality against speed of int8."""
    curves = {name: c["curve"] for name, c in found["int8"].items() if c["curve"]}
    lines = [_of_export(found, "export-int8-cpu.json")]
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


def objectives(found: dict[str, Any]) -> str:
    """What each objective learns from digits with the same number of steps."""
    machine, groups = found["machine"], defaultdict(list)
    for row in found["rows"]:
        groups[row["objective"], row["derivative"]].append(row)
    floor = [row["frechet_real"] for row in found["rows"] if row["status"] == "finished"]
    steps = {row["step"] for row in found["rows"] if row["status"] == "finished"}
    lines = [
        f"Digits, {' or '.join(map(str, sorted(steps)))} steps each, one thread each on "
        f"{machine['cores']} cores ({machine['cpu']}), mean ± standard deviation over seeds, by\n"
        f"`{found['command']}` ([results](../benchmarks/results/objectives-digits-cpu.json)). The "
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


def bench_step(found: dict[str, Any]) -> str:
    """What an optimiser step costs."""
    machine, config = found["machine"], found["config"]
    lines = [
        f"One optimiser step of the {config['parameters'] / 1e6:.1f}M network of "
        f"`{config['recipe']}`, batch {config['batch']}, {config['threads']} threads "
        f"({machine['cpu']}),\nmedian over {found['rounds']} rounds in which all take turns, by "
        f"`{found['command']}`\n([results](../benchmarks/results/bench-step-cpu.json)):\n",
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


def service(found: dict[str, Any]) -> str:
    """What the service costs on top of its engine."""
    machine, over = found["machine"], found["overload"]
    level, start = over["level"], found["start"]
    rows = [
        (
            f"one client, reply as {row['format']}: p50 over the bare engine's "
            f"{row['engine_p50_ms']:.2f} ms",
            f"{row['overhead_ms']:.2f} ms",
        )
        for row in found["overhead"]
    ]
    for name, what in (("digits", "digits"), ("cifar", "the 55.9M CIFAR-10 network")):
        if row := found.get(name):
            each = "one image" if row["images"] == 1 else f"{row['images']} images"
            rows.append(
                (
                    f"saturation, {what}, {each} a request: share of the engine's "
                    f"{row['engine_images_per_s']:,.1f} images/s at its best batch",
                    f"{row['service_images_per_s']:,.1f} images/s, {row['share']:.0%}",
                )
            )
    after = level["recovery"]["first_ms"]
    rows += [
        (
            f"{level['offered_per_s'] / over['capacity_per_s']:.0f}× overload for "
            f"{level['seconds']:.0f} s ({level['images']} images a request, deadline "
            f"{level['deadline_ms']:.0f} ms): accepted in time",
            f"{level['deadline_met']:.2%} ({level['shed']:.0%} refused with a time to come back)",
        ),
        ("the same: first images after it", f"{after:.0f} ms"),
        (
            "start to ready, resident memory",
            f"{start['ready_s']:.2f} s, {start['memory_mb']:.0f} MB",
        ),
        (
            "wrong images among everything that was returned, failures",
            f"{found['accounts']['wrong_images']} and {found['accounts']['failed']} of "
            f"{found['accounts']['replies']:,} replies",
        ),
    ]
    body = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return (
        f"On {machine['cores']} cores ({machine['cpu']}), which the load generator shares, by\n"
        f"`make bench-serve` ([results](benchmarks/results/serve-cpu.json)):\n\n"
        f"| | |\n|---|---|\n{body}"
    )


def litserve(found: dict[str, Any]) -> str:
    """mmf-serve and LitServe under the same load."""
    machine, middle, ratio = found["machine"], found["median"], found["ratio"]
    rows = [
        (
            "requests/s at saturation",
            f"{middle['mmf_requests_per_s']:,.0f}",
            f"{middle['litserve_requests_per_s']:,.0f}",
            f"{ratio['requests_per_s']:.2f}×",
        ),
        (
            "p50 with one client",
            f"{middle['mmf_p50_ms']:.2f} ms",
            f"{middle['litserve_p50_ms']:.2f} ms",
            f"{ratio['p50']:.2f}×",
        ),
    ]
    body = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return (
        f"On {machine['cores']} cores ({machine['cpu']}), {len(found['rounds'])} rounds in turns, "
        f"LitServe {found['versions']['litserve']} with the best of\n"
        f"{len(found['settings_tried'])} settings for each line, by "
        f"`{found['command']}`\n"
        "([results](../benchmarks/results/litserve-cpu.json)):\n\n"
        f"| digits, one PNG a request | mmf-serve | LitServe | ratio |\n|---|---|---|---|\n{body}"
    )


def web_page(found: dict[str, Any]) -> str:
    """The browser page: load, bytes, images."""
    machine, versions = found["machine"], found["versions"]
    head = (
        f"{machine['cores']} cores ({machine['cpu']}), Chromium {versions['chromium']} without a "
        f"GPU, empty cache, by\n`{found['command']}`\n"
        f"([results](../benchmarks/results/web-page-cpu.json)): first image after "
        f"{found['first_image_ms']} ms (median of {len(found['loads_ms'])}\nloads, the slowest "
        f"{found['first_image_ms_slowest']} ms) and {found['first_image_bytes'] / 1e6:.1f} MB; "
        f"the folder is {found['folder_bytes'] / 1e6:.1f} MB.\n\n"
        "| variant | file | one image in the browser | ONNX Runtime | PyTorch eager "
        f"| levels of 255, {found['images']} seeds |\n|---|---|---|---|---|---|\n"
    )
    return head + "\n".join(
        f"| `{r['variant']}` | {r['bytes'] / 1e6:.2f} MB | {r['browser_ms']:.2f} ms | "
        f"{r['onnxruntime_ms']:.2f} ms | {r['pytorch_ms']:.2f} ms | {r['levels']} |"
        for r in found["variants"]
    )


def demo(found: dict[str, Any]) -> str:
    """Clicks in the demo, and ten users at once."""
    machine, versions, many = found["machine"], found["versions"], found["many_users"]
    head = (
        f"{machine['cores']} cores ({machine['cpu']}), which Chromium {versions['chromium']} "
        f"without a GPU shares, by\n`{found['command']}`\n"
        "([results](../benchmarks/results/demo-cpu.json)): from the click on *New seed* until the "
        "images are painted.\n\n"
        "| | click, median | engine | beyond it, median | p90 |\n|---|---|---|---|---|\n"
    )
    rows = [
        f"| {row['images']} image{'s' if row['images'] > 1 else ''}, {row['clicks']} clicks "
        f"| {row['click_ms']['p50']:.0f} ms | {row['engine_ms']['p50']:.1f} ms "
        f"| {row['beyond_engine_ms']['p50']:.0f} ms | {row['beyond_engine_ms']['p90']:.0f} ms |"
        for row in found["one_user"]
    ]
    end = (
        f"\n\n{many['users']} pages of this one browser that click all the time, 16 images each: "
        f"{many['clicks']} clicks,\n{many['errors']} errors, median "
        f"{many['click_ms']['p50']:.0f} ms, p90 {many['click_ms']['p90']:.0f} ms. "
        f"From the command to the page: {found['ready_s']:.1f} s."
    )
    return head + "\n".join(rows) + end


@dataclass(frozen=True)
class Section:
    """A table between two markers of a page.

    Attributes:
        page: relative to the repository.
        result: file in ``benchmarks/results``.
        table: writes the section from the content of that file.
    """

    page: str
    result: str
    table: Callable[[dict[str, Any]], str]


SECTIONS = {
    "quickstart": Section("README.md", "quickstart-cpu.json", quickstart),
    "speed": Section("README.md", "cifar10-random-cpu/bench.json", speed),
    "objectives": Section("docs/objective.md", "objectives-digits-cpu.json", objectives),
    "frozen-time": Section("docs/export.md", "digits-cpu/bench.json", frozen_time),
    "forms": Section("docs/export.md", "export-forms-cpu.json", forms),
    "int8-curve": Section("docs/export.md", "export-int8-cpu.json", int8_curve),
    "bench-step": Section("docs/objective.md", "bench-step-cpu.json", bench_step),
    "service": Section("README.md", "serve-cpu.json", service),
    "litserve": Section("docs/benchmark-serve.md", "litserve-cpu.json", litserve),
    "demo": Section("docs/demo.md", "demo-cpu.json", demo),
    "web-page": Section("docs/web.md", "web-page-cpu.json", web_page),
}
PAGES = tuple(dict.fromkeys(section.page for section in SECTIONS.values()))


def render(page: str, text: str) -> str:
    """The text of a page with every section between its markers written anew.

    A section that was never measured may be absent; then its markers must be, too.
    """
    for name in sorted({*re.findall(r"<!-- (?:begin|end) (\S+) -->", text)} - _of(page)):
        raise SystemExit(f"{page}: there is no section {name!r} for this page")
    for name in _of(page):
        section = SECTIONS[name]
        result = RESULTS / section.result
        pattern = re.compile(f"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        markers = len(re.findall(f"<!-- (?:begin|end) {name} -->", text))
        if not markers and not result.exists():
            continue
        if not result.exists():
            raise SystemExit(
                f"{page}: {name!r} needs benchmarks/results/{section.result}, which is not there"
            )
        if markers != 2 or not pattern.search(text):
            raise SystemExit(
                f"{page}: expected '<!-- begin {name} -->' and '<!-- end {name} -->' once each"
            )
        written = section.table(json.loads(result.read_text()))
        text = pattern.sub(lambda m, written=written: f"{m[1]}{written}\n{m[2]}", text)
    return text


def _of(page: str) -> set[str]:
    return {name for name, section in SECTIONS.items() if section.page == page}


if __name__ == "__main__":
    for page in PAGES:
        path = ROOT / page
        path.write_text(render(page, path.read_text()))

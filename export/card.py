"""The model card (README.md) of a bundle."""

from __future__ import annotations

import shlex

from mmf_deploy.bundle import Manifest, Variant


def render(manifest: Manifest) -> str:
    """The card as Markdown."""
    spec, source = manifest.spec, manifest.source
    what = "×".join(str(n) for n in spec.shape)
    classes = f", {spec.classes} classes" if spec.conditional else ""
    label = ", its label" if spec.conditional else ""
    guidance = ", its guidance scale" if spec.guided else ""
    accept, file = ("image/png", "samples.png") if spec.is_image else ("application/x-npy", "x.npy")
    image = "\n![samples](samples.png)\n" if spec.is_image else ""
    return f"""# {manifest.name}

{_evaluations(manifest)} into a sample of shape {what}{classes}.
{image}
| | |
|---|---|
| Parameters | {source.parameters:,} |
| Trained from | run `{source.run}`, step {source.step}, weights `{source.weights}` |
| Objective | `{manifest.recipe.get("objective", {}).get("name", "unknown")}` |
{_frozen(manifest)}
## Reproduce

```
{reproduce(manifest)}
```

## Variants

Differences are to the PyTorch sampler of the same weights in float32, over
{manifest.variants[0].parity.get("samples", 0):,.0f} seeds in batches of 1, 2, 7 and 64.

{_table(manifest)}
{_unjudged(manifest)}{_exceptions(manifest)}{_quality(manifest)}
{_page(manifest)}## Use

```
mmf-serve PATH_OF_THIS_FOLDER
curl -s localhost:8000/v1/generate -H 'accept: {accept}' -d '{{"n": 16, "seed": 0}}' -o {file}
```

A sample depends on this bundle, its variant, its seed{label}{guidance} and nothing else.
"""


def _evaluations(manifest: Manifest) -> str:
    steps = sorted({v.steps for v in manifest.variants})
    if steps == [1]:
        return "A one-step generator: one network evaluation turns noise"
    counts = ", ".join(map(str, steps[:-1])) + (" or " if len(steps) > 1 else "") + str(steps[-1])
    return f"A few-step generator: {counts} network evaluations turn noise"


def _page(manifest: Manifest) -> str:
    if "onnxruntime-web" not in manifest.versions:
        return ""
    return """## In a browser

This folder is a page that generates in the browser. Any static file server shows it:

```
python -m http.server -d PATH_OF_THIS_FOLDER
```

"""


def _frozen(manifest: Manifest) -> str:
    source = manifest.source
    rows = []
    if source.label is not None:
        rows.append(f"| Label | {source.label}, frozen |")
    if source.guidance is not None:
        rows.append(f"| Guidance scale | {source.guidance:g}, frozen |")
    return "".join(f"{row}\n" for row in rows)


def _table(manifest: Manifest) -> str:
    judged = any("frechet_shift" in v.parity for v in manifest.variants)
    head = ["variant", "target", "precision", "steps", "largest difference", "levels of 255",
            "PSNR, dB", "compared on"]  # fmt: skip
    head += ["Fréchet shift", "same class"] if judged else []
    lines = [head, ["---"] * len(head)]
    lines += [_row(v, judged) for v in manifest.variants]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _row(variant: Variant, judged: bool) -> list[str]:
    parity = variant.parity
    psnr = parity["psnr"]
    row = [
        variant.name,
        variant.target,
        variant.precision,
        str(variant.steps),
        f"{parity['max_abs']:.1e}",
        f"{parity['max_levels']:.0f}",
        "equal" if psnr >= 999 else f"{psnr:.1f}",
        variant.verified,
    ]
    if judged:
        shift, same = parity.get("frechet_shift"), parity.get("same_class")
        row.append("" if shift is None else f"{shift:.2%}")
        row.append("" if same is None else f"{same:.2%}")
    return row


def _unjudged(manifest: Manifest) -> str:
    if any("frechet_shift" in v.parity for v in manifest.variants) or not manifest.spec.is_image:
        return ""
    return "No classifier judged them: Fréchet distance and classes were not compared.\n\n"


def _exceptions(manifest: Manifest) -> str:
    lines = [f"- {v.name}: {text}" for v in manifest.variants for text in v.exceptions]
    return "Allowed although a gate failed:\n\n" + "\n".join(lines) + "\n\n" if lines else ""


def reproduce(manifest: Manifest) -> str:
    """The commands that make this bundle again."""
    source = manifest.source
    end = shlex.join([*source.options, "--out", manifest.name])
    if source.command.startswith("mmf-export"):
        return f"{source.command} {end}"
    weights = shlex.join(["--weights", source.weights])
    if not source.command:
        return f"mmf-export RUN {weights} {end}"
    run = shlex.quote(f"runs/{source.run}")
    return f"{source.command} --out {run}\nmmf-export {run} {weights} {end}"


def _quality(manifest: Manifest) -> str:
    q = manifest.quality
    if not q:
        return ""
    return f"""## Quality

{q["samples"]} one-step samples of the checkpoint, judged by a classifier that reaches
{q["classifier_accuracy"]:.1%} on held-out real data:

| | |
|---|---|
| Samples of the class they were asked for | {q["class_accuracy"]:.1%} |
| Fréchet distance to the real data, in the classifier's features | {q["frechet"]:.3f} |
| The same between two halves of the real data (the floor) | {q["frechet_real"]:.3f} |
| Ratio | {q["ratio"]:.2f}× |

"""

"""The model card (README.md) of a bundle."""

from __future__ import annotations

from mmf_deploy.bundle import Manifest

from .to_onnx import GraphFacts


def render(manifest: Manifest, facts: dict[str, GraphFacts]) -> str:
    """The card as Markdown."""
    spec, source = manifest.spec, manifest.source
    what = "×".join(str(n) for n in spec.shape)
    classes = f", {spec.classes} classes" if spec.conditional else ""
    rows = "\n".join(
        f"| {v.name} | {v.steps} | {facts[v.name].bytes / 1e6:.2f} MB | {facts[v.name].nodes} | "
        f"{v.opset} | {v.parity['max_abs']:.1e} | {v.parity['max_levels']:.0f} |"
        for v in manifest.variants
    )
    label = ", its label" if spec.conditional else ""
    accept, file = ("image/png", "samples.png") if spec.is_image else ("application/x-npy", "x.npy")
    image = "\n![samples](samples.png)\n" if spec.is_image else ""
    return f"""# {manifest.name}

A one-step generator: one network evaluation turns noise into a sample of shape {what}{classes}.
{image}
| | |
|---|---|
| Parameters | {source.parameters:,} |
| Trained from | run `{source.run}`, step {source.step}, weights `{source.weights}` |
| Objective | `{manifest.recipe.get("objective", {}).get("name", "unknown")}` |

## Reproduce

```
{reproduce(manifest)}
```

## Variants

Differences are to the PyTorch sampler of the checkpoint, on the CPU with ONNX Runtime, over
{manifest.variants[0].parity.get("samples", 0):.0f} seeds in batches of 1, 2, 7 and 64.

| variant | steps | size | nodes | opset | largest difference | levels of 255 |
|---|---|---|---|---|---|---|
{rows}

{_quality(manifest)}
## Use

```
mmf-serve PATH_OF_THIS_FOLDER
curl -s localhost:8000/v1/generate -H 'accept: {accept}' -d '{{"n": 16, "seed": 0}}' -o {file}
```

A sample depends on this bundle, its seed{label} and nothing else.
"""


def reproduce(manifest: Manifest) -> str:
    """The commands that make this bundle again."""
    source = manifest.source
    if not source.command:
        return f"mmf-export RUN --out {manifest.name}"
    run = f"runs/{source.run}"
    return f"{source.command} --out {run}\nmmf-export {run} --out {manifest.name}"


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

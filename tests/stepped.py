"""A tiny bundle with variants of one, two and four steps; the last two give trajectories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from mmf_deploy import bundle, images

STEPS = (1, 2, 4)


def way(noise: NDArray[np.float32], sample: NDArray[np.float32], steps: int) -> NDArray[np.float32]:
    """What the graphs compute: the straight line from noise to sample, [B, steps + 1, ...]."""
    parts = [np.float32(k / steps) for k in range(steps + 1)]
    return np.stack([noise * (np.float32(1) - part) + sample * part for part in parts], 1)


def as_images(points: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Points [B, K + 1, C, H, W] as uint8 [B, K + 1, H, W, C]."""
    return np.stack([images.to_uint8(each) for each in points])


def with_trajectory(model: onnx.ModelProto, steps: int) -> onnx.ModelProto:
    """A tiny model with a third output, the straight line from its noise to its sample."""
    graph, names = model.graph, []
    shape = [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim][1:]
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "axis"))
    for k in range(steps + 1):
        part = np.float32(k / steps)
        for name, value in (("left", np.float32(1) - part), ("part", part)):
            graph.initializer.append(
                onnx.numpy_helper.from_array(np.asarray(value, np.float32), f"{name}{k}")
            )
        graph.node.extend(
            [
                helper.make_node("Mul", ["noise", f"left{k}"], [f"from{k}"]),
                helper.make_node("Mul", ["sample", f"part{k}"], [f"to{k}"]),
                helper.make_node("Add", [f"from{k}", f"to{k}"], [f"at{k}"]),
                helper.make_node("Unsqueeze", [f"at{k}", "axis"], [f"point{k}"]),
            ]
        )
        names.append(f"point{k}")
    graph.node.append(helper.make_node("Concat", names, ["trajectory"], axis=1))
    outputs = ["B", steps + 1, *shape]
    graph.output.append(helper.make_tensor_value_info("trajectory", TensorProto.FLOAT, outputs))
    onnx.checker.check_model(model, full_check=True)
    return model


def write_stepped_bundle(tiny: Path, path: Path, **changes: Any) -> Path:
    """Write a tiny bundle anew with ``STEPS``; every variant makes the same images.

    Args:
        changes: of the manifest.
    """
    found = bundle.load(tiny)
    [one] = found.manifest.variants
    golden = found.golden()
    variants = [one] + [
        one.model_copy(
            update={
                "name": f"fp32-{steps}step",
                "file": f"model.{steps}step.onnx",
                "steps": steps,
                "trajectory": True,
            }
        )
        for steps in STEPS[1:]
    ]

    def fill(directory: Path) -> None:
        for variant in variants:
            model = onnx.load(found.file(one))
            if variant.trajectory:
                model = with_trajectory(model, variant.steps)
                golden.tolerance[variant.name] = 1.0
                golden.other_steps[str(variant.steps)] = golden.outputs
            onnx.save(model, directory / variant.file)
        golden.save(directory / bundle.GOLDEN)

    update = {"variants": variants, "files": {}, **changes}
    bundle.write(path, found.manifest.model_copy(update=update), fill)
    return path

"""What can be exported for which target, and the form of graph that measures best there.

Adding a target is one entry of ``TARGETS``. The forms are the winners of
``mmf-export --tune`` (benchmarks/results/export-forms-cpu.json, docs/export.md); `--tune`
measures them again on the machine at hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mmf_deploy.errors import ConfigError, nearest

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
FORMATS = {"onnx": ".onnx", "package": ".pt2"}


@dataclass(frozen=True)
class Form:
    """How one and the same network is written as a graph.

    Attributes:
        opset: ONNX opset.
        normalisation: "instance": Reshape and InstanceNormalization; "group": the operator
            GroupNormalization (opset 21 on); "reduce": means and a square root written out.
        upsampling: "nearest": repeated pixels and a depthwise convolution; "transposed": a
            depthwise transposed convolution. Both compute the same.
        folded: the embedding of r = 0, t = 1 folded away (fold.py).
    """

    opset: int = 20
    normalisation: Literal["instance", "group", "reduce"] = "instance"
    upsampling: Literal["nearest", "transposed"] = "nearest"
    folded: bool = True

    def as_dict(self) -> dict[str, str]:
        """For the manifest."""
        return {
            "normalisation": self.normalisation,
            "upsampling": self.upsampling,
            "time": "folded" if self.folded else "input",
        }


FORMS = (
    Form(),
    Form(opset=21, normalisation="group"),
    Form(normalisation="reduce"),
    Form(upsampling="transposed"),
)
"""The forms that ``--tune`` tries."""


@dataclass(frozen=True)
class Target:
    """Where an artefact shall run.

    Attributes:
        about: one line for a person.
        engine, device: what runs it there.
        precisions: what it offers, and how each is represented: "graph": in the file's dtypes;
            "hint": the fp32 file, computed in this precision by the engine; "storage": weights
            stored so, computed in fp32; "qdq-u8s8": QuantizeLinear/DequantizeLinear with unsigned
            activations; "qdq-s8s8": the same, symmetric.
        form: the graph form that measures best.
        refused: why a precision is not offered, where people ask for it.
        trajectories: graphs of several steps also give the points on the way, for people to see;
            not those whose own arithmetic is of less precision than fp32.
    """

    about: str
    engine: str
    device: str
    precisions: Mapping[str, str]
    form: Form = field(default_factory=Form)
    file_format: Literal["onnx", "package"] = "onnx"
    refused: Mapping[str, str] = field(default_factory=dict)
    trajectories: bool = False


_NO_CPU_HALF = "ONNX Runtime has no {} convolution on the CPU; use --target openvino"
TARGETS: dict[str, Target] = {
    "onnxruntime-cpu": Target(
        "ONNX Runtime on the CPU",
        "onnxruntime",
        "cpu",
        {"fp32": "graph", "int8": "qdq-u8s8"},
        refused={"bf16": _NO_CPU_HALF.format("bf16"), "fp16": _NO_CPU_HALF.format("fp16")},
        trajectories=True,
    ),
    "onnxruntime-cuda": Target(
        "ONNX Runtime on an NVIDIA GPU",
        "onnxruntime",
        "cuda",
        {"fp32": "graph", "fp16": "graph"},
        refused={
            "int8": "ONNX Runtime's CUDA provider has no int8 convolution; use --target tensorrt",
            "bf16": "ONNX Runtime's CUDA provider has no bf16 convolution; use fp16",
        },
        trajectories=True,
    ),
    "openvino": Target(
        "OpenVINO on the CPU",
        "openvino",
        "cpu",
        {"fp32": "hint", "bf16": "hint", "int8": "qdq-u8s8"},
        refused={"fp16": "OpenVINO computes fp16 files in fp32 on the CPU; use bf16"},
        trajectories=True,
    ),
    "tensorrt": Target(
        "TensorRT 11 on an NVIDIA GPU (API-checked, not executed)",
        "tensorrt",
        "cuda",
        {"fp32": "graph", "fp16": "graph", "bf16": "graph", "int8": "qdq-s8s8"},
        # bf16 convolutions exist from opset 22 on, and TensorRT has a layer for group norm
        Form(opset=22, normalisation="group"),
    ),
    "web": Target(
        "ONNX Runtime in a browser (WebAssembly, WebGPU)",
        "onnxruntime",
        "cpu",
        {"fp32": "graph", "fp16": "storage"},
        refused={
            "int8": "quantised convolutions are slower than fp32 ones in a browser; use fp16",
            "bf16": "browsers have no bf16; use fp16",
        },
        trajectories=True,
    ),
    "aoti": Target(
        "AOTInductor package: compiled code for this machine, run by PyTorch",
        "aoti",
        "cpu",
        {"fp32": "graph", "bf16": "graph"},
        file_format="package",
    ),
    "plain": Target(
        "what torch.onnx.export gives without this package's work: for comparison only",
        "onnxruntime",
        "cpu",
        {"fp32": "graph"},
        Form(upsampling="transposed", folded=False),
    ),
}


def candidates(target: Target) -> tuple[Form, ...]:
    """The forms to try for a target: its own first, and none of an older opset than it needs."""
    others = [form for form in FORMS if form.opset >= target.form.opset and form != target.form]
    return (target.form, *others)


def check_names(targets: Sequence[str], precisions: Sequence[str]) -> None:
    """Refuse names that do not exist.

    Raises:
        ConfigError: with the nearest one.
    """
    for option, given, known in (
        ("--target", targets, [*TARGETS, "triton"]),
        ("--precision", precisions, PRECISIONS),
    ):
        for name in given:
            if name not in known:
                raise ConfigError(
                    f"{option} {name!r}{nearest(name, known)}: expected some of {', '.join(known)}"
                )


def refusal(target: str, precision: str) -> str | None:
    """Why a target does not offer a precision; None if it does."""
    found = TARGETS[target]
    if precision in found.precisions:
        return None
    reason = found.refused.get(precision, "it is not offered there")
    return (
        f"--target {target} --precision {precision}: {reason}. "
        f"{target} offers {', '.join(found.precisions)}"
    )


def variant_name(target: str, precision: str, steps: int) -> str:
    """For example fp32, int8-2step, openvino-bf16."""
    parts = [] if target == "onnxruntime-cpu" else [target]
    parts.append(precision)
    if steps > 1:
        parts.append(f"{steps}step")
    return "-".join(parts)

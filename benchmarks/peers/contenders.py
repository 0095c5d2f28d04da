"""Who takes part: our engines, PyTorch eager, and every peer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmf_deploy.bundle import Bundle
from mmf_deploy.engines.base import EngineOptions, engine_class
from mmf_deploy.errors import ConfigError, EngineError, nearest


@dataclass(frozen=True)
class Peer:
    """A contender that is not ours.

    Attributes:
        name: of the contender in its worker script.
        tool: what it is called in reports.
        environment: its requirements and its packages.
        script: its worker.
        precision: it computes in; "" where that is the tool's own choice.
        engine: of ours that it is compared with; our fastest of its precision if "".
        package: whose version stands for it.
        files: contender whose files it runs, if not its own.
    """

    name: str
    tool: str
    environment: str
    script: str
    precision: str
    engine: str
    package: str
    files: str = ""


PEERS = (
    Peer("plain", "torch.onnx.export", "plain", "peer_plain.py", "fp32", "onnxruntime",
         "onnxruntime"),
    Peer("optimum-optimizer", "optimum ORTOptimizer", "optimum", "peer_optimum.py", "fp32",
         "onnxruntime", "optimum-onnx"),
    Peer("optimum-int8", "optimum ORTQuantizer", "optimum", "peer_optimum.py", "int8",
         "onnxruntime", "optimum-onnx"),
    Peer("optimum-conv", "optimum ORTQuantizer, Conv", "optimum", "peer_optimum.py", "int8",
         "onnxruntime", "optimum-onnx"),
    Peer("openvino-default", "openvino convert_model", "openvino", "peer_openvino.py", "",
         "openvino", "openvino"),
    Peer("openvino-bf16", "convert_model, static bf16", "openvino", "peer_openvino.py", "bf16",
         "openvino", "openvino", files="openvino-default"),
    Peer("openvino-f32", "convert_model, static f32", "openvino", "peer_openvino.py", "fp32",
         "openvino", "openvino"),
    Peer("nncf-default", "nncf.quantize", "openvino", "peer_openvino.py", "int8", "openvino",
         "nncf"),
    Peer("nncf-f32", "nncf.quantize, the rest f32", "openvino", "peer_openvino.py", "int8",
         "openvino", "nncf", files="nncf-default"),
    Peer("compile", "torch.compile", "pytorch", "peer_pytorch.py", "fp32", "", "torch"),
    Peer("compile-bf16", "torch.compile, autocast", "pytorch", "peer_pytorch.py", "bf16",
         "", "torch"),
    Peer("torchao-int8", "torchao PT2E", "pytorch", "peer_pytorch.py", "int8", "", "torchao"),
)  # fmt: skip


def chosen(only: Sequence[str]) -> list[Peer]:
    """The peers of these names or environments; all if none is given.

    Raises:
        ConfigError: there is no such peer.
    """
    known = {p.name for p in PEERS} | {p.environment for p in PEERS}
    for name in only:
        if name not in known:
            raise ConfigError(
                f"--only {name!r}{nearest(name, known)}: expected some of "
                f"{', '.join(p.name for p in PEERS)}"
            )
    return [p for p in PEERS if not only or {p.name, p.environment} & set(only)]


@dataclass(frozen=True)
class Ours:
    """A variant of the bundle with its engine, or PyTorch eager."""

    engine: str
    variant: str
    precision: str
    bytes: int


def ours(bundle: Bundle) -> list[Ours]:
    """Every one-step variant for a CPU that runs here.

    Raises:
        ConfigError: there is none.
    """
    found = []
    for v in bundle.manifest.variants:
        if v.steps == 1 and v.engine in ("onnxruntime", "openvino") and v.target not in (
            "plain", "web"
        ) and _runs(v.engine, v.device):  # fmt: skip
            size = bundle.file(v).stat().st_size
            found.append(Ours(v.engine, v.name, v.precision, size))
    if not found:
        raise ConfigError(
            f"{bundle.path}: no variant of one step for this CPU; export some: mmf export RUN "
            "--target onnxruntime-cpu,openvino --precision fp32,bf16,int8"
        )
    return found


def _runs(engine: str, device: str) -> bool:
    try:
        return engine_class(engine).unavailable(EngineOptions(device=device)) is None
    except (ModuleNotFoundError, EngineError):
        return False

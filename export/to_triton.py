"""One variant of a bundle as a model of a Triton Inference Server repository (docs/triton.md).

    OUT/<bundle>-<variant>/config.pbtxt
                           1/model.onnx     the variant's file, byte for byte
                           warmup/          one golden input, run before the model turns ready
                           labels.txt       a class name a line, if the bundle has names

Triton puts the batch dimension in front of ``dims`` itself, and ``dims`` may not be empty. So
an input that is int64 [B] in the graph has dims [1], which clients send as [B, 1], and an
empty ``reshape``, which makes it [B] again.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from mmf_deploy import noise
from mmf_deploy.bundle import Bundle, Variant
from mmf_deploy.engines.base import BUCKETS
from mmf_deploy.engines.ort import SMALL_GRAPH_BYTES
from mmf_deploy.errors import ConfigError, ParityError, nearest
from mmf_deploy.files import atomic_directory

CONFIG = "config.pbtxt"
KINDS = ("auto", "cpu", "gpu")
_TYPES = {
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.INT64: "TYPE_INT64",
    onnx.TensorProto.UINT8: "TYPE_UINT8",
}


@dataclass(frozen=True)
class Tensor:
    """An input or output of the graph.

    Attributes:
        name: its name.
        type: Triton's name of its data type.
        shape: its shape without the batch; () for one number a sample.
    """

    name: str
    type: str
    shape: tuple[int, ...]

    @property
    def dims(self) -> str:
        """What Triton calls ``dims``: never empty."""
        return f"dims: [ {', '.join(map(str, self.shape or (1,)))} ]"


def model_name(bundle: Bundle, variant: Variant) -> str:
    """``<bundle>-<variant>``, in letters that a URL and a folder take."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{bundle.manifest.name}-{variant.name}")


def write_triton_repository(
    bundle: Bundle,
    variant: Variant,
    out: Path,
    *,
    instances: int = 1,
    max_queue_delay_us: int = 0,
    kind: str = "auto",
    force: bool = False,
) -> Path:
    """Add one variant to a model repository, atomically.

    Args:
        out: the repository; other models in it are left alone.
        instances: copies of the model, per GPU or on the CPU.
        max_queue_delay_us: how long a request may wait for others to share a batch with.
        kind: "cpu" or "gpu"; "auto" is what the variant was made for.
        force: replace the model if it exists.
    Returns:
        the model's directory, ``out``/``model_name``.
    Raises:
        ConfigError: the model exists, a setting is out of range, or Triton's ONNX Runtime
            backend does not run such a variant.
        ParityError: the graph has not the shapes that Triton can batch.
    """
    _check(variant, instances, max_queue_delay_us, kind)
    name = model_name(bundle, variant)
    path = out / name
    _refuse_to_overwrite(path, force)
    source = bundle.file(variant)
    inputs, outputs = _tensors(source)
    gpu = variant.device == "cuda" if kind == "auto" else kind == "gpu"
    config = [
        f"# bundle {bundle.digest}",
        f'name: "{name}"',
        'backend: "onnxruntime"',
        'platform: "onnxruntime_onnx"',
        f"max_batch_size: {BUCKETS[-1]}",
        *(_tensor("input", t) for t in inputs),
        *(_tensor("output", t) for t in outputs),
        "version_policy { latest { num_versions: 1 } }",
        _batching(max_queue_delay_us),
        f"instance_group [ {{ kind: KIND_{'GPU' if gpu else 'CPU'} count: {instances} }} ]",
        *_parameters(source.stat().st_size),
        # on a GPU kernels are chosen at the first run of each batch size
        *(_warmup(batch, inputs) for batch in (BUCKETS if gpu else BUCKETS[:1])),
    ]
    with atomic_directory(path) as temporary:
        (temporary / "1").mkdir()
        shutil.copyfile(source, temporary / "1" / "model.onnx")
        _write_warmup(bundle, inputs, temporary / "warmup")
        if bundle.spec.class_names:
            (temporary / "labels.txt").write_text(
                "".join(f"{label}\n" for label in bundle.spec.class_names), encoding="utf-8"
            )
        (temporary / CONFIG).write_text("".join(f"{line}\n" for line in config))
    return path


def _check(variant: Variant, instances: int, max_queue_delay_us: int, kind: str) -> None:
    if kind not in KINDS:
        raise ConfigError(
            f"kind {kind!r}{nearest(kind, KINDS)}: expected one of {', '.join(KINDS)}"
        )
    if instances < 1:
        raise ConfigError(f"{instances} instances: expected 1 or more")
    if max_queue_delay_us < 0:
        raise ConfigError(f"a queue delay of {max_queue_delay_us} µs: expected 0 or more")
    if variant.engine != "onnxruntime" or Path(variant.file).suffix != ".onnx":
        raise ConfigError(
            f"variant {variant.name!r} is {variant.file} for engine {variant.engine!r}; the "
            "Triton repository takes an ONNX graph for 'onnxruntime': choose such a variant"
        )


def _refuse_to_overwrite(path: Path, force: bool) -> None:
    if not path.exists():
        return
    if not force:
        raise ConfigError(f"{path} exists; choose another --out, or replace it with --force")
    if not path.is_dir() or (not (path / CONFIG).is_file() and any(path.iterdir())):
        raise ConfigError(f"{path} is not a Triton model; --force replaces only such")


def _tensors(path: Path) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs and outputs of a graph, as Triton checks them when it loads the model."""
    graph = onnx.load(path, load_external_data=False).graph
    # whoever names no outputs gets all that are listed; nobody generates for the way there
    outputs = [v for v in graph.output if v.name != "trajectory"]
    return [_of(v, path) for v in graph.input], [_of(v, path) for v in outputs]


def _of(value: onnx.ValueInfoProto, path: Path) -> Tensor:
    kind = value.type.tensor_type
    batch, *shape = [d.dim_value for d in kind.shape.dim] or [-1]  # 0: not fixed
    if batch != 0 or 0 in shape or kind.elem_type not in _TYPES:
        found = [d.dim_value or d.dim_param or "?" for d in kind.shape.dim]
        raise ParityError(
            f"{path}: {value.name} {onnx.TensorProto.DataType.Name(kind.elem_type)} {found}; "
            "Triton batches float32, int64 and uint8 with a free first dimension and fixed "
            "others: export it again with a dynamic batch"
        )
    return Tensor(value.name, _TYPES[kind.elem_type], tuple(shape))


def _tensor(field: str, tensor: Tensor) -> str:
    reshape = "" if tensor.shape else " reshape { shape: [ ] }"
    head = f'{field} [ {{ name: "{tensor.name}" data_type: {tensor.type}'
    return f"{head} {tensor.dims}{reshape} }} ]"


def _batching(max_queue_delay_us: int) -> str:
    # A batch of a preferred size goes at once. Without a delay, that fills the largest bucket
    # there is work for; with one, only the largest may end the wait.
    preferred = BUCKETS if max_queue_delay_us == 0 else BUCKETS[-1:]
    return (
        "dynamic_batching {\n"
        f"  preferred_batch_size: [ {', '.join(map(str, preferred))} ]\n"
        f"  max_queue_delay_microseconds: {max_queue_delay_us}\n"
        "}"
    )


def _parameters(graph_bytes: int) -> list[str]:
    # one thread where a second gains nothing; 0 is a thread per core
    threads = 1 if graph_bytes < SMALL_GRAPH_BYTES else 0
    return [
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
        for key, value in (("execution_mode", 0), ("intra_op_thread_count", threads))
    ]


def _warmup(batch: int, inputs: Sequence[Tensor]) -> str:
    lines = [f'model_warmup {{ name: "batch {batch}" batch_size: {batch}']
    for t in inputs:
        value = f'data_type: {t.type} {t.dims} input_data_file: "{t.name}"'
        lines.append(f'  inputs {{ key: "{t.name}" value {{ {value} }} }}')
    return "\n".join([*lines, "}"])


def _write_warmup(bundle: Bundle, inputs: Sequence[Tensor], folder: Path) -> None:
    """The first golden input, raw and little-endian: zero is no valid guidance scale."""
    golden = bundle.golden()
    x1 = noise.gaussian_batch([int(golden.seeds[0])], bundle.spec.shape)
    values = {"noise": x1.astype("<f4")}
    if golden.labels is not None:
        values["label"] = golden.labels[:1].astype("<i8")
    if golden.guidance is not None:
        values["guidance"] = golden.guidance[:1].astype("<f4")
    folder.mkdir()
    for tensor in inputs:
        (folder / tensor.name).write_bytes(values[tensor.name].tobytes())

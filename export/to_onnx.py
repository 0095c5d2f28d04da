"""PyTorch sampler to a single-file ONNX graph with a dynamic batch."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch

from mmf_deploy.errors import ParityError
from mmf_deploy.nn.sampler import Sampler
from mmf_deploy.spec import SampleSpec

from .graph import fixed_inputs

# GroupNormalization (opset 21 on) has no kernel of its own in ONNX Runtime
OPSET = 20


@dataclass(frozen=True)
class GraphFacts:
    """What a graph consists of.

    Attributes:
        nodes: number of nodes.
        operators: count by operator.
        bytes: size of the file.
    """

    nodes: int
    operators: dict[str, int]
    bytes: int


def export_onnx(sampler: Sampler, spec: SampleSpec, path: Path) -> GraphFacts:
    """Export and check a sampler.

    Inputs ``noise`` float32 [batch, *shape], ``label`` int64 [batch] and ``guidance``
    float32 [batch] where the generator has them; outputs ``sample`` float32 and, for
    images, ``image`` uint8 [batch, H, W, C].

    Raises:
        ParityError: the graph is not valid ONNX, or its batch is not dynamic.
    """
    # batch 2: the exporter would take a batch of 1 for a constant
    inputs = fixed_inputs(spec, 2).tensors()
    batch = torch.export.Dim("batch")
    with _quiet():
        program = torch.onnx.export(
            sampler,
            kwargs=inputs,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=["sample", "image"] if spec.is_image else ["sample"],
            dynamic_shapes={name: {0: batch} for name in inputs},
            optimize=True,
            verbose=False,
        )
    assert program is not None  # dynamo=True without a file name returns the program
    program.save(str(path), external_data=False)
    _strip(path)
    return check_graph(path)


def _strip(path: Path) -> None:
    """Drop what the exporter notes about its source: stack traces with paths, class names.

    They are a third of a small file, and no one's business where the artefact goes.
    """
    model = onnx.load(path)
    graph = model.graph
    for item in [*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer]:
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    for holder in (graph, model):
        holder.ClearField("metadata_props")
        holder.ClearField("doc_string")
    onnx.save(model, path)


def check_graph(path: Path) -> GraphFacts:
    """Full check with strict shape inference, and that the batch stayed dynamic."""
    model = onnx.load(path)
    try:
        onnx.checker.check_model(model, full_check=True)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as e:
        raise ParityError(f"{path.name}: not a valid ONNX graph: {e}") from e
    for value in [*model.graph.input, *model.graph.output]:
        if not value.type.tensor_type.shape.dim[0].dim_param:
            raise ParityError(f"{path.name}: the batch of {value.name!r} is fixed, not dynamic")
    operators: dict[str, int] = {}
    for node in model.graph.node:
        operators[node.op_type] = operators.get(node.op_type, 0) + 1
    ordered = dict(sorted(operators.items(), key=lambda item: (-item[1], item[0])))
    return GraphFacts(len(model.graph.node), ordered, path.stat().st_size)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints progress and warns of its own deprecations; neither helps a user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)

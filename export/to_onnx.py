"""PyTorch sampler to a single-file ONNX graph with a dynamic batch."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import torch
from torch import Tensor

from mmf_deploy.nn.sampler import Sampler
from mmf_deploy.spec import SampleSpec

from .graph import fixed_inputs
from .rewrite import in_form
from .simplify import simplify
from .targets import Form


class TimesAsInputs(Sampler):
    """The sampler as one writes it without a thought: r and t one a sample, made in the graph.

    Nothing of the time embedding is a constant then: what folding saves is measured against it.
    """

    def velocity(self, k: int, x: Tensor, label: Tensor | None, guidance: Tensor | None) -> Tensor:
        """u of step k."""
        t, r = (torch.full((x.shape[0],), self.grid[i], device=x.device) for i in (k, k + 1))
        return torch.as_tensor(self.net(x, r, t, label, guidance))


def export_onnx(sampler: Sampler, spec: SampleSpec, path: Path, form: Form | None = None) -> None:
    """Export a sampler in the given form.

    Inputs ``noise`` float32 [batch, *shape], ``label`` int64 [batch] and ``guidance``
    float32 [batch] where the generator has them; outputs ``sample`` float32, for images
    ``image`` uint8 [batch, H, W, C], and ``trajectory`` if the sampler gives it.
    """
    form = form or Form()
    # batch 2: the exporter would take a batch of 1 for a constant
    inputs = fixed_inputs(spec, 2).tensors()
    batch = torch.export.Dim("batch")
    with _quiet():
        program = torch.onnx.export(
            in_form(sampler, form),
            kwargs=inputs,
            dynamo=True,
            opset_version=form.opset,
            input_names=list(inputs),
            output_names=_outputs(sampler, spec),
            dynamic_shapes={name: {0: batch} for name in inputs},
            optimize=True,
            verbose=False,
        )
    assert program is not None  # dynamo=True without a file name returns the program
    program.save(str(path), external_data=False)
    model = onnx.load(path)
    _strip(model)
    if form.folded:
        simplify(model)
    onnx.save(model, path)


def _outputs(sampler: Sampler, spec: SampleSpec) -> list[str]:
    names = ["sample", "image"] if spec.is_image else ["sample"]
    return [*names, "trajectory"] if sampler.with_trajectory else names


def _strip(model: onnx.ModelProto) -> None:
    """Drop what the exporter notes about its source: stack traces with paths, class names.

    They are a third of a small file, and no one's business where the artefact goes.
    """
    graph = model.graph
    for item in [*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer]:
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    for holder in (graph, model):
        holder.ClearField("metadata_props")
        holder.ClearField("doc_string")


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

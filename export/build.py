"""From a planned variant to its file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import onnx

from mmf_deploy import bundle, files
from mmf_deploy.engines.base import Engine, EngineOptions, open_engine
from mmf_deploy.nn.sampler import Sampler, time_grid

from . import quantize
from .calibrate import calibrate, images_for
from .checks import GraphFacts, audit_dtypes, check_graph
from .fold import frozen_sampler, plain_sampler
from .gates import limits_of
from .measurements import Measured, latency_ms, pytorch_ms
from .origin import Origin
from .plan import Planned, Request
from .precision import store_in_fp16, to_low_precision
from .reference import Reference, reference
from .sensitivity import Choice, Chooser
from .targets import Form, candidates
from .to_onnx import TimesAsInputs, export_onnx

TUNING_TURNS = 7
Progress = Callable[[str, int], None]
"""(stage, images just made)."""
Layers = Callable[[str, int, int], None]
"""(what, done, of how many) of a search over layers."""


@dataclass(frozen=True)
class Built:
    """A file for a variant, not yet compared.

    Attributes:
        facts: of an ONNX graph; None for a package.
        form: that it was written in.
    """

    planned: Planned
    path: Path
    form: Form
    facts: GraphFacts | None


class Builder:
    """Makes the files of variants in a scratch directory; graphs that several need, once."""

    def __init__(
        self,
        origin: Origin,
        request: Request,
        scratch: Path,
        count: int,
        on_progress: Progress,
        on_layers: Layers,
    ) -> None:
        self.origin, self.request, self.scratch, self.count = origin, request, scratch, count
        self.measured = Measured()
        self._progress, self._layers = on_progress, on_layers
        self._graphs: dict[tuple[int, Form, bool], Path] = {}
        self._references: dict[int, Reference] = {}
        self._choosers: dict[tuple[Path, bool], Chooser] = {}
        self._forms: dict[str, Form] = {}

    def reference(self, steps: int) -> Reference:
        """PyTorch's samples with that many steps, made once."""
        if steps not in self._references:
            sampler = plain_sampler(self.origin, steps)
            self._references[steps] = reference(
                sampler,
                self.origin.spec,
                self.count,
                lambda images: self._progress("PyTorch's images", images),
            )
            self.measured.pytorch[str(steps)] = pytorch_ms(sampler, self.origin.spec)
        return self._references[steps]

    def build(self, planned: Planned, margin: float = 0.0) -> Built:
        """Make and check the file of one variant.

        Args:
            margin: dB above the floor that int8's layers are chosen for.
        Raises:
            ParityError: the graph is not what its target takes.
            ConfigError: the precision does not fit this network.
        """
        path = self.scratch / planned.file
        if planned.target.file_format == "package":
            self._progress(f"{planned.name}: compiling", 0)
            from .to_aoti import export_aoti

            export_aoti(
                frozen_sampler(self.origin, planned.steps),
                self.origin.spec,
                path,
                planned.precision,
            )
            return Built(planned, path, planned.form, None)
        form = self._form(planned)
        source = self._graph(planned.steps, form, planned.trajectory)
        self._represent(planned, source, path, margin)
        facts = check_graph(path, planned.target_name)
        audit_dtypes(path, planned.precision, planned.representation)
        return Built(planned, path, form, facts)

    def _represent(self, planned: Planned, source: Path, path: Path, margin: float) -> None:
        """The fp32 graph in the precision of a variant."""
        kind = planned.representation
        if kind.startswith("qdq"):
            self._quantise(planned, source, path, margin)
        elif kind == "storage" and planned.precision == "fp16":
            onnx.save(store_in_fp16(onnx.load(source)), path)
        elif kind == "graph" and planned.precision in ("fp16", "bf16"):
            onnx.save(to_low_precision(onnx.load(source), planned.precision), path)
        else:
            shutil.copy(source, path)

    def _graph(self, steps: int, form: Form, trajectory: bool = False) -> Path:
        """The fp32 graph of a form, exported once."""
        key = (steps, form, trajectory)
        if key not in self._graphs:
            self._progress("tracing", 0)
            path = self.scratch / f"graph{len(self._graphs)}.onnx"
            sampler = self._sampler(steps, form)
            sampler.with_trajectory = trajectory
            export_onnx(sampler, self.origin.spec, path, form)
            self._graphs[key] = path
        return self._graphs[key]

    def _sampler(self, steps: int, form: Form) -> Sampler:
        if form.folded:
            return frozen_sampler(self.origin, steps)
        plain = plain_sampler(self.origin, steps)
        return TimesAsInputs(plain.net, time_grid(steps), plain.is_image).eval()

    def _form(self, planned: Planned) -> Form:
        """The form of a target: its default, or the fastest here."""
        name = planned.target_name
        if not (self.request.tune and planned.form.folded and planned.runs_here):
            return planned.form
        if name not in self._forms:
            self._forms[name] = self._fastest(planned)
        return self._forms[name]

    def _fastest(self, planned: Planned) -> Form:
        """Every candidate form through the target's engine, taking turns."""
        self._progress(f"{planned.target_name}: trying forms", 0)
        forms = candidates(planned.target)
        graphs = {form: self._graph(planned.steps, form) for form in forms}
        with ExitStack() as stack:
            engines = {
                form: stack.enter_context(self.opened(planned, graph))
                for form, graph in graphs.items()
            }
            # in turns, so that drift of the machine hits all alike
            turns = [{form: latency_ms(e, 0.5) for form, e in engines.items()}
                     for _ in range(TUNING_TURNS)]  # fmt: skip
        tried = {form: median(turn[form] for turn in turns) for form in forms}
        self.measured.forms[planned.target_name] = [
            {"opset": form.opset, **form.as_dict(), "latency_ms": round(ms, 4)}
            for form, ms in tried.items()
        ]
        fastest = min(tried, key=lambda form: tried[form])
        # within the noise the default stays
        return fastest if tried[fastest] < 0.99 * tried[planned.form] else planned.form

    def _quantise(self, planned: Planned, source: Path, path: Path, margin: float) -> None:
        symmetric = planned.representation == "qdq-s8s8"
        chooser = self._chooser(source, symmetric, planned.steps)
        floor = limits_of(planned.precision, self.request.min_psnr).psnr + margin
        choice = chooser.choose(
            floor,
            self.request.curve,
            (lambda graph: self._time(planned, graph)) if planned.runs_here else None,
            self._layers,
        )
        chooser.write(choice, path)
        quantize.check_scheme(path, symmetric)
        self.measured.int8[planned.name] = _about(choice, floor)

    def _chooser(self, source: Path, symmetric: bool, steps: int) -> Chooser:
        key = (source, symmetric)
        if key not in self._choosers:
            model = onnx.load(source)
            layers = quantize.layers(model)
            operators = sorted({n.op_type for n in model.graph.node} & set(quantize.OPERATORS))
            ranges = calibrate(
                source,
                self.origin.spec,
                operators,
                lambda images: self._progress("calibrating", images),
            )
            expected = self.reference(steps)
            self._choosers[key] = Chooser(model, layers, ranges, symmetric, expected, self.scratch)
        return self._choosers[key]

    def _time(self, planned: Planned, graph: Path) -> float:
        with self.opened(planned, graph) as engine:
            return latency_ms(engine, 0.5)

    def opened(self, planned: Planned, graph: Path) -> Engine:
        """The engine that compares a variant, on a file of the scratch directory."""
        name, device = planned.verifier
        trial = self.variant(Built(planned, graph, planned.form, None))
        manifest = bundle.Manifest(
            name="trial",
            spec=self.origin.spec,
            variants=[trial],
            source=self.origin.source,
            recipe={},
        )
        return open_engine(
            name, bundle.Bundle(self.scratch, manifest, ""), None, EngineOptions(device=device)
        )

    def variant(self, built: Built) -> bundle.Variant:
        """The manifest's entry, without what the comparison adds."""
        planned = built.planned
        package = planned.target.file_format == "package"
        return bundle.Variant(
            name=planned.name,
            file=built.path.name,
            precision=planned.precision,
            steps=planned.steps,
            opset=None if package else built.form.opset,
            target=planned.target_name,
            engine=planned.target.engine,
            device=planned.target.device,
            verified=planned.verified,
            trajectory=planned.trajectory,
            form={} if package else {**built.form.as_dict(), "precision": planned.representation},
            graph=built.facts.as_dict() if built.facts else {},
        )


def share_files(built: list[Built]) -> list[Built]:
    """Variants whose files are equal share the first one's."""
    first: dict[str, Path] = {}
    shared = []
    for one in built:
        path = first.setdefault(files.sha256(one.path), one.path)
        shared.append(replace(one, path=path))
    return shared


def images_to_make(planned: list[Planned], count: int, origin: Origin) -> int:
    """How many images an export evaluates, by all engines together, without searches."""
    calibrated = {
        (p.steps, p.form, p.representation) for p in planned if p.representation.startswith("qdq")
    }
    references = {p.steps for p in planned}
    return count * (len(references) + len(planned)) + len(calibrated) * images_for(origin.spec)


def _about(choice: Choice, floor: float) -> dict[str, Any]:
    return {
        "min_psnr": floor,
        "quantised": len(choice.nodes),
        "kept_in_fp32": list(choice.kept),
        "curve": [point.as_dict() for point in choice.curve],
        "psnr_alone": choice.alone or {},
    }

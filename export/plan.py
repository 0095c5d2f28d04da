"""What an export will make, decided before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmf_deploy import bundle
from mmf_deploy.engines.base import EngineOptions, engine_class
from mmf_deploy.errors import ConfigError, DependencyError, require
from mmf_deploy.spec import SampleSpec

from .gates import check_allowed
from .targets import FORMATS, TARGETS, Form, Target, check_names, refusal, variant_name


@dataclass(frozen=True)
class Request:
    """What to export.

    Attributes:
        source: a checkpoint or a run.
        out: where the bundle shall lie; it must not exist unless ``force``.
        weights: "model" or an average; the slowest average if None.
        targets, precisions, steps: every combination that the targets offer becomes a variant.
        label, guidance: inputs to freeze; None leaves them inputs.
        min_psnr: floor for reduced precisions, in dB; their own default if None.
        curve: measure the whole trade-off of int8, not only what the floor needs.
        allow: gates (``gates.GATES``) whose failure is recorded and not refused.
        samples: seeds to compare; by the size of the images if None.
        tune: measure the candidate forms of graph here and take the fastest.
        sign_key: private key to sign the manifest with, or None.
        ort_web: for the target "web", an onnxruntime-web package; npm brings it if None.
    """

    source: Path
    out: Path
    weights: str | None = None
    force: bool = False
    targets: tuple[str, ...] = ("onnxruntime-cpu",)
    precisions: tuple[str, ...] = ("fp32",)
    steps: tuple[int, ...] = (1,)
    label: int | None = None
    guidance: float | None = None
    min_psnr: float | None = None
    curve: bool = False
    allow: tuple[str, ...] = ()
    samples: int | None = None
    tune: bool = False
    sign_key: Path | None = None
    ort_web: Path | None = None


@dataclass(frozen=True)
class Planned:
    """One variant to make.

    Attributes:
        name: of the variant; ``target_name`` is the key of ``TARGETS``.
        representation: how its precision is represented there.
        trajectory: whether its graph gives all points of the path too.
        verifier: engine and device that will compare it here.
    """

    name: str
    target_name: str
    target: Target
    precision: str
    steps: int
    representation: str
    verifier: tuple[str, str]
    trajectory: bool = False

    @property
    def file(self) -> str:
        """Its file name in the bundle, unless it shares another's."""
        return f"model.{self.name}{FORMATS[self.target.file_format]}"

    @property
    def runs_here(self) -> bool:
        """True if what compares it is what will run it, so that its times mean something."""
        own = (self.target.engine, self.target.device)
        return self.verifier == own and self.target_name != "web"

    @property
    def form(self) -> Form:
        """The form its target has by default."""
        return self.target.form

    @property
    def verified(self) -> str:
        """For the manifest."""
        return "{} on {}".format(*self.verifier)


def options_of(request: Request) -> list[str]:
    """What a person would type for the same variants: every option that is not a default.

    Weights are not among them: they name a set of a checkpoint or a file, as the source does.
    """
    default = Request(request.source, request.out)
    words: list[str] = []
    for option, value, usual in (
        ("--target", ",".join(request.targets), ",".join(default.targets)),
        ("--precision", ",".join(request.precisions), ",".join(default.precisions)),
        ("--steps", ",".join(map(str, request.steps)), "1"),
        ("--label", request.label, None),
        ("--guidance", request.guidance, None),
        ("--min-psnr", request.min_psnr, None),
        ("--allow", ",".join(request.allow), ""),
        ("--samples", request.samples, None),
    ):
        words += [option, str(value)] if value != usual else []
    words += ["--curve"] if request.curve else []
    return words + (["--tune"] if request.tune else [])


def with_triton(targets: Sequence[str]) -> tuple[tuple[str, ...], bool]:
    """The targets without "triton", and whether it was among them.

    Triton runs ONNX Runtime's variants; without any, those of its CPU provider.
    """
    names = tuple(name for name in targets if name != "triton")
    if len(names) == len(targets):
        return names, False
    if not any(name.startswith("onnxruntime") for name in names):
        names = ("onnxruntime-cpu", *names)
    return names, True


def make_plan(request: Request, spec: SampleSpec) -> tuple[list[Planned], list[str]]:
    """The variants of a request, and a line about each combination left out.

    Raises:
        ConfigError: something that does not exist or does not go together.
        DependencyError: an engine that a target needs for its comparison is not installed.
    """
    check_allowed(request.allow)
    check_names(request.targets, request.precisions)
    check_frozen(request, spec)
    _check_lists(request)
    planned, left_out = [], []
    for target_name in request.targets:
        target = TARGETS[target_name]
        for precision in request.precisions:
            reason = refusal(target_name, precision)
            if reason is not None:
                left_out.append(reason)
                continue
            _check_spec(precision, spec)
            planned += [_planned(target_name, target, precision, n) for n in request.steps]
    if not planned:
        raise ConfigError(left_out[0])
    return planned, left_out


def _planned(target_name: str, target: Target, precision: str, steps: int) -> Planned:
    if target.precisions[precision].startswith("qdq"):
        require("onnxruntime", "cpu")  # whose quantiser it is
    return Planned(
        name=variant_name(target_name, precision, steps),
        target_name=target_name,
        target=target,
        precision=precision,
        steps=steps,
        representation=target.precisions[precision],
        verifier=find_verifier(target, precision),
        trajectory=target.trajectories and steps > 1 and _computes_in_fp32(target, precision),
    )


def _computes_in_fp32(target: Target, precision: str) -> bool:
    """Whether the graph's own arithmetic is fp32, whatever its engine makes of it."""
    return precision == "fp32" or target.precisions[precision] in ("storage", "hint")


def find_verifier(target: Target, precision: str) -> tuple[str, str]:
    """The target's own engine where it runs here, else one on the CPU that reads the same file.

    Raises:
        DependencyError: none is installed.
    """
    reason = _why_not(target.engine, target.device)
    if reason is None:
        return target.engine, target.device
    if target.engine in ("openvino", "aoti") or target.file_format != "onnx":
        raise DependencyError(f"target needs engine {target.engine!r}: {reason}")
    # bf16 graphs: ONNX Runtime has no convolution for them on the CPU
    stand_in = "openvino" if precision == "bf16" else "onnxruntime"
    reason = _why_not(stand_in, "cpu")
    if reason is not None:
        raise DependencyError(f"comparing {precision} here needs engine {stand_in!r}: {reason}")
    return stand_in, "cpu"


def _why_not(engine: str, device: str) -> str | None:
    try:
        return engine_class(engine).unavailable(EngineOptions(device=device))
    except ModuleNotFoundError as e:
        return f"the package {e.name!r} is not installed"


def _check_lists(request: Request) -> None:
    for option, values in (("--target", request.targets), ("--precision", request.precisions),
                           ("--steps", request.steps)):  # fmt: skip
        if not values or len(set(values)) != len(values):
            raise ConfigError(f"{option} {','.join(map(str, values))}: expected each once")
    if min(request.steps) < 1:
        raise ConfigError(f"--steps {min(request.steps)}: expected 1 or more")
    floor = request.min_psnr
    if floor is not None and not 0 < floor < math.inf:
        raise ConfigError(f"--min-psnr {floor:g}: expected a number of dB above 0, such as 30")
    if request.samples is not None and request.samples < 16:
        raise ConfigError(f"--samples {request.samples}: expected at least 16")


def _check_spec(precision: str, spec: SampleSpec) -> None:
    if not spec.is_image and precision != "fp32":
        raise ConfigError(
            f"--precision {precision}: for images; this generator makes vectors of shape "
            f"{list(spec.shape)}, use fp32"
        )


def check_frozen(request: Request, spec: SampleSpec) -> None:
    """Refuse frozen inputs that the generator does not have or that are out of range.

    Raises:
        ConfigError: what came and what was expected.
    """
    if request.label is not None:
        if not spec.conditional:
            raise ConfigError(f"--label {request.label}: this generator has no classes")
        if not 0 <= request.label < spec.classes:
            raise ConfigError(f"--label {request.label}: expected 0 … {spec.classes - 1}")
    if request.guidance is not None:
        if spec.guidance is None:
            raise ConfigError(f"--guidance {request.guidance:g}: this generator takes none")
        low, high = spec.guidance
        if not low <= request.guidance <= high:
            raise ConfigError(f"--guidance {request.guidance:g}: expected {low:g} … {high:g}")


def refuse_to_overwrite(out: Path, force: bool) -> None:
    """Raise ConfigError if something is in the way that may not be replaced."""
    if not out.name or out.name == "..":
        raise ConfigError(f"--out {out}: give the bundle a name, for example bundles/digits")
    if not out.exists():
        return
    if not force:
        raise ConfigError(f"{out} exists; choose another --out, or replace it with --force")
    if not out.is_dir() or (not (out / bundle.MANIFEST).is_file() and any(out.iterdir())):
        raise ConfigError(f"{out} is not a bundle; --force replaces only bundles")


def describe(planned: Sequence[Planned]) -> list[str]:
    """One line a variant, for ``--dry-run``."""
    lines = []
    for p in planned:
        form = (
            "compiled package"
            if p.target.file_format == "package"
            else f"ONNX opset {p.form.opset}, {p.form.normalisation} normalisation, "
            f"{p.form.upsampling} upsampling, time {'folded' if p.form.folded else 'an input'}, "
            f"{p.representation}"
        )
        lines.append(
            f"{p.name}: {p.target.about}; {p.precision}, {p.steps} step"
            f"{'s' if p.steps > 1 else ''}; {form}; compared on {p.verified}"
        )
    return lines

"""What an artefact must hold to be written: a one-step generator has no later step to repair it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from mmf_deploy.errors import ConfigError, ParityError, nearest
from mmf_deploy.spec import SampleSpec

from .parity import Parity

GATES = ("max-error", "rms", "psnr", "worst-image", "frechet", "classes")
"""What ``--allow`` may name. Shapes, values that are not finite and operators are never allowed."""


@dataclass(frozen=True)
class Limits:
    """What is allowed for one precision.

    Attributes:
        absolute: largest difference of ``sample``, whose natural scale is 1; None for any.
        levels: largest difference of ``image`` in levels of 255; None for any.
        rms: largest root mean square difference of ``sample``.
        psnr: smallest PSNR of all images together, in dB.
        psnr_worst: smallest PSNR of any single image, in dB.
        frechet_shift: largest relative change of the Fréchet distance.
        same_class: smallest share of samples in which the judge sees the same class.
    """

    absolute: float | None
    levels: int | None
    rms: float
    psnr: float
    psnr_worst: float
    frechet_shift: float = 0.05
    same_class: float = 0.99


LIMITS = {
    "fp32": Limits(absolute=1e-3, levels=1, rms=1e-4, psnr=60.0, psnr_worst=45.0),
    "fp16": Limits(absolute=None, levels=None, rms=0.02, psnr=40.0, psnr_worst=28.0),
    "bf16": Limits(absolute=None, levels=None, rms=0.06, psnr=32.0, psnr_worst=20.0),
    "int8": Limits(absolute=None, levels=None, rms=0.1, psnr=30.0, psnr_worst=18.0),
}
FEWEST_SAMPLES = 256


def limits_of(precision: str, min_psnr: float | None) -> Limits:
    """The limits of a precision, with the user's own floor for reduced ones."""
    limits = LIMITS[precision]
    if min_psnr is None or precision == "fp32":
        return limits
    moved = min_psnr - limits.psnr
    return replace(
        limits,
        psnr=min_psnr,
        psnr_worst=limits.psnr_worst + min(0.0, moved),
        rms=limits.rms * 10 ** (max(0.0, -moved) / 20),
    )


def lowered(precision: str, min_psnr: float | None, samples: int) -> list[str]:
    """What a person asked for that is less than the default, to be recorded."""
    found = []
    default = LIMITS[precision].psnr
    if precision != "fp32" and min_psnr is not None and min_psnr < default:
        found.append(f"psnr: floor lowered from {default:g} to {min_psnr:g} dB")
    if samples < FEWEST_SAMPLES:
        found.append(f"samples: {samples} compared, not {FEWEST_SAMPLES}")
    return found


def check_allowed(names: Collection[str]) -> None:
    """Refuse exceptions that do not exist.

    Raises:
        ConfigError: names the gates there are.
    """
    for name in names:
        if name not in GATES:
            raise ConfigError(
                f"--allow {name!r}{nearest(name, GATES)}: expected one of {', '.join(GATES)}"
            )


def failures(parity: Parity, limits: Limits, spec: SampleSpec) -> dict[str, str]:
    """The gates that do not hold, with what was measured and what is allowed."""
    found = {}
    # written so that NaN fails
    if limits.absolute is not None and not parity.max_abs <= limits.absolute:
        found["max-error"] = (
            f"differs from the checkpoint by up to {parity.max_abs:.2g}; "
            f"allowed are {limits.absolute:g}"
        )
    if spec.is_image and limits.levels is not None and not parity.max_levels <= limits.levels:
        found["max-error"] = (
            f"differs from the checkpoint by up to {parity.max_abs:.2g} "
            f"({parity.max_levels} of 255 levels); allowed are {limits.levels} levels"
        )
    if not parity.rms <= limits.rms:
        found["rms"] = f"root mean square difference {parity.rms:.2g}; allowed are {limits.rms:.2g}"
    if not parity.psnr_worst >= limits.psnr_worst:
        found["worst-image"] = (
            f"PSNR of the worst image {parity.psnr_worst:.1f} dB; "
            f"at least {limits.psnr_worst:g} dB is asked for"
        )
    if not parity.psnr >= limits.psnr:
        found["psnr"] = f"PSNR {parity.psnr:.1f} dB; at least {limits.psnr:g} dB is asked for"
    if parity.frechet_shift is not None and not parity.frechet_shift <= limits.frechet_shift:
        found["frechet"] = (
            f"Fréchet distance shifted by {parity.frechet_shift:.1%}; "
            f"allowed are {limits.frechet_shift:.0%}"
        )
    if parity.same_class is not None and not parity.same_class >= limits.same_class:
        found["classes"] = (
            f"the same class in {parity.same_class:.1%} of the samples; "
            f"at least {limits.same_class:.0%} is asked for"
        )
    return found


def judge_variant(
    name: str,
    precision: str,
    parity: Parity,
    spec: SampleSpec,
    min_psnr: float | None,
    allowed: Collection[str],
) -> list[str]:
    """Refuse a variant that fails a gate, unless a person allowed it.

    Returns:
        the exceptions to record, one line each.
    Raises:
        ParityError: with every gate that failed.
    """
    found = failures(parity, limits_of(precision, min_psnr), spec)
    refused = {gate: text for gate, text in found.items() if gate not in allowed}
    if refused:
        advice = {"psnr", "frechet", "classes"} & set(refused) and precision == "int8"
        what = "try a higher --min-psnr, which quantises fewer layers; " if advice else ""
        raise ParityError(
            f"{name}: {'; '.join(refused.values())}. Nothing was written; {what}"
            f"--allow {','.join(refused)} writes it all the same and records it"
        )
    exceptions = [f"{gate}: {text}" for gate, text in found.items()]
    return exceptions + lowered(precision, min_psnr, parity.samples)

"""--shape, --classes and --guidance-range: what a sample is, where no file says it."""

from __future__ import annotations

from mmf_deploy.errors import ConfigError, SpecError
from mmf_deploy.spec import SampleSpec


def spec_from_flags(shape: str, classes: int = 0, guidance: str | None = None) -> SampleSpec:
    """The sample that the flags describe.

    Args:
        shape: "3,32,32" for an image, "2" for a vector.
        classes: 0 for an unconditional network.
        guidance: "1,4", the lowest and the highest scale, or None if it is no input.
    Raises:
        ConfigError: names the flag, what came and what was expected.
    """
    try:
        sides = tuple(int(part) for part in shape.split(","))
    except ValueError:
        raise ConfigError(
            f"--shape {shape}: expected channels,height,width such as 3,32,32, or one number for "
            "a vector"
        ) from None
    if not 0 <= classes < 2**31:
        raise ConfigError(f"--classes {classes}: expected 0 (unconditional) or more")
    try:
        return SampleSpec(shape=sides, classes=classes, guidance=_range(guidance))
    except SpecError as e:
        flag = f"--guidance-range {guidance}" if "guidance" in str(e) else f"--shape {shape}"
        raise ConfigError(f"{flag}: {e}") from None


def _range(guidance: str | None) -> tuple[float, float] | None:
    if guidance is None:
        return None
    try:
        low, high = (float(part) for part in guidance.split(","))
    except ValueError:
        raise ConfigError(
            f"--guidance-range {guidance}: expected the lowest and the highest scale, such as 1,4"
        ) from None
    return low, high

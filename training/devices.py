"""Which device a command means."""

from __future__ import annotations

from mmf_deploy.errors import ConfigError


def chosen(name: str) -> str:
    """The device of ``--device``: cpu or cuda, and for auto the GPU where there is one.

    Raises:
        ConfigError: another word, or a GPU that PyTorch does not see.
    """
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"--device {name!r}: expected auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch sees no GPU here; leave it out to use the CPU")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name

"""A user's own network, given as ``package.module:factory``, to be exported."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmf_deploy import bundle, files
from mmf_deploy.errors import CheckpointError, ConfigError, nearest
from mmf_deploy.spec import SampleSpec

from ..origin import Origin
from .adapted import Adapted, check_forward
from .spec_flags import spec_from_flags
from .weights_file import fit, read_tensors, shapes

__all__ = ["from_module", "spec_from_flags"]


def from_module(
    reference: str,
    weights: Path | None,
    spec: SampleSpec,
    factory_arguments: dict[str, Any] | None = None,
) -> Origin:
    """The origin of a network that a user's own factory builds.

    The module is imported with the current directory on the path; importing and calling it
    runs its code.

    Args:
        reference: ``package.module:factory``; the factory returns an nn.Module whose forward
            takes x, r, t, and label and guidance if it likes.
        weights: .safetensors, or a state dict of torch.save; None if the factory loads them.
        factory_arguments: keyword arguments of the factory.
    Raises:
        ConfigError: no such factory, or its network is not u(x, r, t, label, guidance).
        CheckpointError: the weights cannot be read or do not fit.
    """
    with _current_directory_on_path():
        net = _build(reference, factory_arguments or {})
        if weights is not None:
            _load(net, weights)
        net = net.cpu().eval().requires_grad_(False)
        adapted = Adapted(net, spec, reference).eval()
        check_forward(adapted, spec, reference)
    name = reference.partition(":")[0].rpartition(".")[2]
    return Origin(
        net=adapted,
        spec=spec,
        source=bundle.Source(
            run=reference,
            command=_command(reference, weights, spec),
            step=0,
            weights=weights.name if weights else "model",
            weights_sha256=files.sha256(weights) if weights else state_hash(net),
            parameters=sum(p.numel() for p in net.parameters()),
        ),
        recipe={"name": name, "module": reference, "arguments": factory_arguments or {}},
        default_name=name,
    )


def state_hash(net: nn.Module) -> str:
    """SHA-256 of names, shapes, types and values of a network's state, in hexadecimal."""
    digest = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _command(reference: str, weights: Path | None, spec: SampleSpec) -> str:
    """What exports it again, without ``--out``."""
    flags = {"--module": reference, "--shape": ",".join(str(n) for n in spec.shape)}
    if weights is not None:
        flags["--weights"] = weights.name
    if spec.conditional:
        flags["--classes"] = str(spec.classes)
    if spec.guidance is not None:
        flags["--guidance-range"] = ",".join(f"{scale:g}" for scale in spec.guidance)
    return shlex.join(["mmf-export", *(part for pair in flags.items() for part in pair)])


@contextmanager
def _current_directory_on_path() -> Iterator[None]:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with suppress(ValueError):  # a user's code may have changed the path
            sys.path.remove(here)


def _build(reference: str, arguments: Mapping[str, Any]) -> nn.Module:
    factory = _factory(reference)
    try:
        inspect.signature(factory).bind(**arguments)
    except TypeError as e:
        given = ", ".join(arguments) or "no arguments"
        raise ConfigError(f"--module {reference}: called with {given}: {e}") from None
    except ValueError:
        pass  # a callable without a signature
    try:
        net = factory(**arguments)
    except Exception as e:  # a user's code
        raise ConfigError(f"--module {reference}: the factory failed: {_said(e)}") from e
    if not isinstance(net, nn.Module):
        raise ConfigError(
            f"--module {reference}: the factory gave a {type(net).__name__}, expected a "
            "torch.nn.Module"
        )
    return net


def _factory(reference: str) -> Any:
    path, colon, attribute = reference.partition(":")
    if not colon or not path or not attribute:
        raise ConfigError(f"--module {reference}: expected package.module:factory")
    try:
        found: Any = importlib.import_module(path)
    except ModuleNotFoundError as e:
        if e.name is None or not f"{path}.".startswith(f"{e.name}."):
            raise ConfigError(f"--module {reference}: importing {path} failed: {e}") from e
        raise ConfigError(
            f"--module {reference}: no module {e.name!r} in {Path.cwd()} or among the installed "
            "packages"
        ) from None
    except Exception as e:  # a user's code
        raise ConfigError(f"--module {reference}: importing {path} failed: {_said(e)}") from e
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [n for n in vars(found) if not n.startswith("_")]
            raise ConfigError(f"--module {reference}: {path} has no {part!r}{nearest(part, names)}")
        found = getattr(found, part)
    if not callable(found) or isinstance(found, nn.Module):
        raise ConfigError(
            f"--module {reference}: {attribute} is a {type(found).__name__}, expected a function "
            "or class that returns the network"
        )
    return found


def _load(net: nn.Module, weights: Path) -> None:
    tensors = read_tensors(weights)
    result = fit(shapes(net.state_dict()), shapes(tensors))
    if not result.perfect:
        raise CheckpointError(
            f"{weights}: does not fit the network: {result.summary()}; expected what "
            "torch.save(net.state_dict(), FILE) writes"
        )
    for name, value in tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise CheckpointError(f"{weights}: {name}: found numbers that are not finite")
    try:
        net.load_state_dict(tensors, strict=True)
    except (RuntimeError, NotImplementedError) as e:
        raise CheckpointError(f"{weights}: cannot be loaded: {_said(e)}") from e


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"

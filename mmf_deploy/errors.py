"""Every error that this package raises on purpose.

    MMFError                  base: one readable line, exit code 1
    ├── ConfigError           something a person wrote (flag, recipe, config file); exit code 2
    ├── SpecError             a sample specification that contradicts itself
    ├── ShapeError            an array whose shape, dtype or range does not fit the spec
    ├── DependencyError       an optional package is missing; names the extra to install
    ├── CheckpointError       a checkpoint that is missing, corrupt or of another kind
    ├── BundleError           a bundle that is missing, corrupt, or fails its golden images
    ├── EngineError           an engine that does not exist here or failed to run
    ├── TrainingError         a run that cannot go on
    ├── ParityError           an exported artefact that differs from its checkpoint
    ├── RequestError          a request that cannot be served: HTTP 4xx, names the field
    │   └── OverloadedError   refused early, HTTP 429/503, with an exact retry_after_s
    └── ServiceError          what a client gets to see: status, code, request_id
        ├── BusyError         the service says: later (HTTP 429 or 503)
        └── UnreachableError  there is no reply, or only a part of one

A message says what came, what was expected and what to do. Command line tools
print it as one line and exit; ``--debug`` shows the traceback. The service turns
it into a JSON body. Anything else that surfaces is a bug.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class MMFError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 1


class ConfigError(MMFError):
    """Something a person wrote is not valid."""

    exit_code = 2


class SpecError(MMFError):
    """A sample specification contradicts itself."""


class ShapeError(MMFError):
    """An array does not fit the sample specification."""


class DependencyError(MMFError):
    """An optional package is missing."""


class CheckpointError(MMFError):
    """A checkpoint is missing, corrupt or of another kind."""


class BundleError(MMFError):
    """A bundle is missing, corrupt, or fails its golden images."""


class EngineError(MMFError):
    """An engine does not exist on this machine or failed to run."""


class TrainingError(MMFError):
    """A training run cannot go on."""


class ParityError(MMFError):
    """An exported artefact differs from its checkpoint by more than the tolerance."""


class RequestError(MMFError):
    """A request cannot be served as it stands.

    Args:
        message: what came, what was expected, what to do.
        field: the field of the request that is wrong, or None.
        status: the HTTP status, 4xx or 503.
        code: a short machine-readable word.
    """

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        status: int = 422,
        code: str = "invalid_request",
    ) -> None:
        super().__init__(message)
        self.field = field
        self.status = status
        self.code = code


class OverloadedError(RequestError):
    """The queue is full or the deadline cannot be met; come back in ``retry_after_s`` seconds.

    Args:
        reason: a word for the metrics: queue_full, deadline, expired, encode_backlog, rate_limit.
    """

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float,
        status: int = 503,
        code: str = "overloaded",
        reason: str = "queue_full",
    ) -> None:
        super().__init__(message, status=status, code=code)
        self.retry_after_s = retry_after_s
        self.reason = reason


class ServiceError(MMFError):
    """A service replied with an error, or with something that is no reply of a service.

    Args:
        text: what came, what was expected, what to do; one line.
        status: the HTTP status, or None without one.
        code: the service's short machine-readable word.
        message: what the service said, alone; ``text`` if not given.
        field: the field of the request that is wrong, or None.
        request_id: what the service's log calls this request, or None.
        retry_after_s: when the service wants to be asked again, or None if it did not say.
    """

    def __init__(
        self,
        text: str,
        *,
        status: int | None = None,
        code: str = "bad_reply",
        message: str | None = None,
        field: str | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(text)
        self.status = status
        self.code = code
        self.message = text if message is None else message
        self.field = field
        self.request_id = request_id
        self.retry_after_s = retry_after_s


class BusyError(ServiceError):
    """The service is overloaded, starting or shutting down, and retries did not help."""


class UnreachableError(ServiceError):
    """Nothing listens there, the connection broke, or the reply took too long."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the valid name closest to ``name``, or an empty string."""
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional module, or say which extra brings it.

    Raises:
        DependencyError: the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as e:
        if e.name is not None and not module.startswith(e.name):
            raise
        raise DependencyError(
            f"this needs the package {module.split('.')[0]!r}, which is not installed: "
            f'pip install "mmf-deploy[{extra}]"'
        ) from None

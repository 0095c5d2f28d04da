"""What TensorRT says: warnings go to the log, errors are kept for the exception that follows.

TensorRT returns None or False and gives its reason only here. Needs TensorRT 11 when imported.
"""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Callable
from typing import TypeVar

import tensorrt as trt

from mmf_deploy.errors import EngineError

log = logging.getLogger(__name__)
T = TypeVar("T")


class TensorRTLog(trt.ILogger):  # type: ignore[misc]  # untyped where TensorRT is not installed
    """A logger that remembers the last errors."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self._errors: deque[str] = deque(maxlen=6)

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Called by TensorRT, from any of its threads; must not raise."""
        if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
            self._errors.append(" ".join(msg.split()))
        elif severity == trt.ILogger.Severity.WARNING:
            log.warning("%s", msg)

    def failure(self, what: str) -> EngineError:
        """The error to raise when TensorRT cannot do ``what``, with the reasons it gave."""
        reasons = "; ".join(dict.fromkeys(self._errors)) or "it gave no reason"
        self._errors.clear()
        return EngineError(f"TensorRT cannot {what}: {reasons}")


@functools.cache
def tensorrt_log() -> TensorRTLog:
    """The only one: TensorRT keeps using the first that it is given."""
    return TensorRTLog()


def created(kind: Callable[[trt.ILogger], T], name: str) -> T:
    """A builder or a runtime.

    Raises:
        EngineError: TensorRT cannot make one, for example without GPU memory.
    """
    try:
        return kind(tensorrt_log())
    except TypeError as e:  # what the bindings make of a null pointer
        raise tensorrt_log().failure(f"create a {name}") from e

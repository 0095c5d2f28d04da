"""What a refusal says: the first error of a body, and a glimpse of what came."""

from __future__ import annotations

import reprlib
from typing import Any

from pydantic import ValidationError

from mmf_deploy.errors import RequestError

MAX_ERRORS = 1000
"""Pydantic tells its first error by listing all of them, which holds up every other client: a
megabyte of wrong fields would take it a tenth of a second and more."""


def first_error(error: ValidationError, status: int = 422) -> Any:
    """The first error of a body, without what no client can use.

    Args:
        status: of a body that does not fit, in the protocol that was spoken.
    Raises:
        RequestError: there are too many to list them.
    """
    if error.error_count() > MAX_ERRORS:
        raise RequestError(
            f"{error.error_count()} fields or elements are unknown or wrong; see /docs",
            status=status,
        )
    return error.errors(include_url=False, include_context=False)[0]


def short(value: object) -> str:
    """What came, for an error message: one line, at most 40 characters."""
    text = reprlib.repr(value)
    return text if len(text) <= 40 else text[:37] + "..."

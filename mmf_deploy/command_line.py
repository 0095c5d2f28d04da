"""A command as it was typed, for results that can be measured again; and values that it takes."""

from __future__ import annotations

import shlex
from collections.abc import Collection

import typer

from mmf_deploy.errors import ConfigError


def again(ctx: typer.Context, program: str, leave_out: Collection[str] = ("out",)) -> str:
    """The command that repeats this one, with every value that is not a default.

    Args:
        program: what it begins with, for example ``mmf bench``.
        leave_out: names of parameters that change nothing about the result, or are secret.
    """
    arguments, options = [], []
    for parameter in ctx.command.params:
        name = parameter.name or ""
        value = ctx.params.get(name)
        if name in leave_out or value in (None, parameter.default):
            continue
        if parameter.param_type_name == "argument":
            arguments.append(str(value))
        elif isinstance(value, bool):
            flags = parameter.opts if value else parameter.secondary_opts
            options.append(flags[0])
        else:
            options += [parameter.opts[0], f"{value:g}" if isinstance(value, float) else str(value)]
    return shlex.join([*program.split(), *arguments, *options])


def integers(option: str, text: str, example: str = "1,8,64") -> list[int]:
    """Integers of at least 1, separated by commas.

    Raises:
        ConfigError: something else.
    """
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} {text!r}: expected integers such as {example}") from None
    if min(numbers) < 1:
        raise ConfigError(f"{option} {text!r}: expected integers of at least 1")
    return list(dict.fromkeys(numbers))


def words(text: str) -> tuple[str, ...]:
    """Words separated by commas."""
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))

"""What a prompt means to a model without a text encoder: a class, or nothing."""

from __future__ import annotations

import functools
import re

from mmf_deploy.errors import RequestError
from mmf_deploy.spec import SampleSpec


def label_of_prompt(prompt: str, spec: SampleSpec) -> int | None:
    """The class that a prompt names, or None if it names none.

    Names count as whole words, upper and lower case alike; the longest of overlapping names counts
    ("sea lion" is no "lion"). Class numbers count only in prompts that contain no name.

    Raises:
        RequestError: 400, it names two classes.
    """
    if prompt.strip() in spec.class_names:  # names may differ in case alone
        return spec.class_names.index(prompt.strip())
    words = _words(prompt)
    found = _names_in(words, spec.class_names) or _numbers_in(words, spec.classes)
    if len(found) > 1:
        named = ", ".join(prompt_for(label, spec) for label in sorted(found)[:5])
        raise RequestError(
            f"prompt: it names {len(found)} classes ({named}); name one, or give class_label",
            field="prompt",
            status=400,
            code="invalid_value",
        )
    return found.pop() if found else None


def prompt_for(label: int, spec: SampleSpec) -> str:
    """A prompt for a class: its name, or its number if it has no name of its own."""
    name = spec.class_names[label] if spec.class_names else ""
    return name if name.strip() and spec.class_names.index(name) == label else str(label)


def _words(text: str) -> tuple[str, ...]:
    """Words without case, underscores or punctuation; a decimal number is one word."""
    return tuple(re.findall(r"\d+(?:[.,]\d+)+|[^\W_]+", text.casefold()))


@functools.lru_cache(maxsize=16)
def _table(class_names: tuple[str, ...]) -> tuple[dict[tuple[str, ...], set[int]], int]:
    """Classes by the words of their name, and the number of words of the longest name."""
    table: dict[tuple[str, ...], set[int]] = {}
    for label, name in enumerate(class_names):
        if words := _words(name):
            table.setdefault(words, set()).add(label)
    return table, max(map(len, table), default=0)


def _names_in(words: tuple[str, ...], class_names: tuple[str, ...]) -> set[int]:
    table, longest = _table(class_names)
    found: set[int] = set()
    k = 0
    while k < len(words):
        for size in range(longest, 0, -1):
            if labels := table.get(words[k : k + size]):
                found |= labels
                k += size - 1
                break
        k += 1
    return found


def _numbers_in(words: tuple[str, ...], classes: int) -> set[int]:
    """Class numbers as they are written: 7 is one, 07 and 7.0 are not."""
    numbers = {str(k): k for k in range(classes)}
    return {numbers[word] for word in words if word in numbers}

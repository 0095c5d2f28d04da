"""Where several results come from, and what of it forbids to compare them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmf_deploy.results import Result

Numbers = list[int]
"""Which results, counted from 1."""


def machine_text(machine: Mapping[str, str]) -> str:
    """``AMD EPYC, 2 cores, Linux``, and what else it says of itself."""
    rest = dict(machine)
    cpu, cores, system = (rest.pop(name, "") for name in ("cpu", "cores", "system"))
    unit = "core" if cores == "1" else "cores"
    parts = [cpu, f"{cores} {unit}" if cores else "", system]
    parts += [f"{name.replace('_', ' ')} {value}" for name, value in rest.items()]
    return ", ".join(filter(None, parts)) or "not recorded"


def machines(found: Sequence[Result]) -> list[tuple[str, Numbers]]:
    """Each machine and its results.

    Two descriptions are of one machine where everything that both tell is the same: a result of
    the processor does not name the GPU.
    """
    groups: list[tuple[dict[str, str], Numbers]] = []
    for k, result in enumerate(found, 1):
        known, numbers = next((g for g in groups if _same(g[0], result.machine)), ({}, []))
        if not numbers:
            groups.append((known, numbers))
        known.update(result.machine)
        numbers.append(k)
    return [(machine_text(known), numbers) for known, numbers in groups]


def _same(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    shared = one.keys() & other.keys()
    return one == other or (bool(shared) and all(one[name] == other[name] for name in shared))


def versions(found: Sequence[Result]) -> dict[str, dict[str, Numbers]]:
    """By package: by version, its results."""
    packages: dict[str, dict[str, Numbers]] = {}
    for k, result in enumerate(found, 1):
        for package, version in result.versions.items():
            packages.setdefault(package, {}).setdefault(version, []).append(k)
    return packages


def warnings(found: Sequence[Result]) -> list[str]:
    """What on this page must not be compared, a line each."""
    lines = []
    if (count := len(machines(found))) > 1:
        lines.append(f"Results of {count} machines are on this page: times and rates must not be "
                     "compared across machines.")  # fmt: skip
    differing = ", ".join(package for package, by in versions(found).items() if len(by) > 1)
    if differing:
        lines.append(f"Results with different versions are on this page ({differing}): they must "
                     "not be compared, since a difference may come from these.")  # fmt: skip
    return lines

"""The service: on top of its engine, beside LitServe, behind Ray."""

from __future__ import annotations

from typing import Any

from mmf_deploy.results import Result, Table

from .common import body, result


def service_result(found: dict[str, Any]) -> Result:
    """What serve_targets.py measured, in the common form."""
    notes = [
        "engine and service took turns, each in its own process with as many threads; the load "
        "generator shared the cores",
        f"other processes used up to {found['accounts']['other_cores']:.2f} cores meanwhile",
    ]
    title = "The service on top of its engine"
    table = Table(title, ["what", "value"], _service_rows(found), notes)
    return result("service", title, found, [table])


def service(found: dict[str, Any], link: str) -> str:
    """What the service costs on top of its engine."""
    machine = found["machine"]
    return (
        f"On {machine['cores']} cores ({machine['cpu']}), which the load generator shares, by\n"
        f"`make bench-serve` ([results]({link})):\n\n"
        f"| | |\n|---|---|\n{body(_service_rows(found))}"
    )


def _service_rows(found: dict[str, Any]) -> list[list[str]]:
    over, start = found["overload"], found["start"]
    level = over["level"]
    rows = [
        (
            f"one client, reply as {row['format']}: p50 over the bare engine's "
            f"{row['engine_p50_ms']:.2f} ms",
            f"{row['overhead_ms']:.2f} ms",
        )
        for row in found["overhead"]
    ]
    for name, what in (("digits", "digits"), ("cifar", "the 55.9M CIFAR-10 network")):
        if row := found.get(name):
            each = "one image" if row["images"] == 1 else f"{row['images']} images"
            rows.append(
                (
                    f"saturation, {what}, {each} a request: share of the engine's "
                    f"{row['engine_images_per_s']:,.1f} images/s at its best batch",
                    f"{row['service_images_per_s']:,.1f} images/s, {row['share']:.0%}",
                )
            )
    after = level["recovery"]["first_ms"]
    rows += [
        (
            f"{level['offered_per_s'] / over['capacity_per_s']:.0f}× overload for "
            f"{level['seconds']:.0f} s ({level['images']} images a request, deadline "
            f"{level['deadline_ms']:.0f} ms): accepted in time",
            f"{_or_none(level['deadline_met'], '.2%')} ({level['shed']:.0%} refused with a time to "
            "come back)",
        ),
        ("the same: first images after it", _or_none(after, ".0f", " ms")),
        (
            "start to ready, resident memory",
            f"{start['ready_s']:.2f} s, {start['memory_mb']:.0f} MB",
        ),
        (
            "wrong images among everything that was returned, failures",
            f"{found['accounts']['wrong_images']} and {found['accounts']['failed']} of "
            f"{found['accounts']['replies']:,} replies",
        ),
    ]
    return [list(row) for row in rows]


def _or_none(value: float | None, form: str, unit: str = "") -> str:
    return "none" if value is None else f"{value:{form}}{unit}"


LITSERVE = ["digits, one PNG a request", "mmf-serve", "LitServe", "ratio"]


def litserve_result(found: dict[str, Any]) -> Result:
    """What litserve/compare.py measured, in the common form."""
    title = "The service and LitServe under the same load"
    notes = [
        f"medians of {len(found['rounds'])} rounds in turns, each server started afresh and alone; "
        f"LitServe {found['versions']['litserve']} with the best of "
        f"{len(found['settings_tried'])} settings for each line; ratio: ours over theirs",
        f"every image was checked: {found['wrong_images']} wrong, {found['failed']} failures",
    ]
    return result("litserve", title, found, [Table(title, LITSERVE, _litserve_rows(found), notes)])


def litserve(found: dict[str, Any], link: str) -> str:
    """mmf-serve and LitServe under the same load."""
    machine = found["machine"]
    return (
        f"On {machine['cores']} cores ({machine['cpu']}), {len(found['rounds'])} rounds in turns, "
        f"LitServe {found['versions']['litserve']} with the best of\n"
        f"{len(found['settings_tried'])} settings for each line, by "
        f"`{found['command']}`\n"
        f"([results]({link})):\n\n"
        f"| {' | '.join(LITSERVE)} |\n|---|---|---|---|\n{body(_litserve_rows(found))}"
    )


def _litserve_rows(found: dict[str, Any]) -> list[list[str]]:
    middle, ratio = found["median"], found["ratio"]
    rows = [
        (
            "requests/s at saturation",
            f"{middle['mmf_requests_per_s']:,.0f}",
            f"{middle['litserve_requests_per_s']:,.0f}",
            f"{ratio['requests_per_s']:.2f}×",
        ),
        (
            "p50 with one client",
            f"{middle['mmf_p50_ms']:.2f} ms",
            f"{middle['litserve_p50_ms']:.2f} ms",
            f"{ratio['p50']:.2f}×",
        ),
    ]
    return [list(row) for row in rows]


RAY = ["p50 of one client", "images/s with 8 clients", "memory",
       "killed under load: failed tries", "slowest request", "replaced after"]  # fmt: skip


def ray_result(found: dict[str, Any]) -> Result:
    """What serve_ray.py measured, in the common form."""
    title = "Two replicas behind Ray, one of them killed under load"
    notes = [f"the load average before was {found['load_average'][0]:.1f}, where 0 is a machine "
             "with nothing else to do"]  # fmt: skip
    return result("ray", title, found, [Table(title, ["", *RAY], _ray_rows(found), notes)])


def ray(found: dict[str, Any], link: str) -> str:
    """One process, and two replicas behind each proxy of Ray, one of them killed under load."""
    machine = found["machine"]
    return (
        f"{machine['cores']} cores ({machine['cpu']}), by\n`{found['command']}` "
        f"([results]({link})). The load average before was {found['load_average'][0]:.1f},\n"
        "where 0 is a machine with nothing else to do.\n\n"
        f"| | {' | '.join(RAY)} |\n{'|---' * 7}|\n{body(_ray_rows(found))}"
    )


def _ray_rows(found: dict[str, Any]) -> list[list[str]]:
    rows = []
    for row in found["rows"]:
        kills = row["kills"]
        failed = sum(sum(k["failed_tries"].values()) for k in kills)
        last = ["", "", ""] if not kills else [
            f"{failed} of {sum(k['requests'] for k in kills) + failed:,}",
            f"{max(k['slowest_ms'] for k in kills):,.0f} ms",
            f"{min(k['replaced_s'] for k in kills):.1f} to "
            f"{max(k['replaced_s'] for k in kills):.1f} s",
        ]  # fmt: skip
        rows.append([row["mode"], f"{row['p50_ms']:.1f} ms", f"{row['images_per_s']:.0f}",
                     f"{row['memory_mb']:,} MB", *last])  # fmt: skip
    return rows

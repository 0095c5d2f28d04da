"""The service: on top of its engine, beside LitServe, behind Ray."""

from __future__ import annotations

from typing import Any


def service(found: dict[str, Any], link: str) -> str:
    """What the service costs on top of its engine."""
    machine, over = found["machine"], found["overload"]
    level, start = over["level"], found["start"]
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
            f"{level['deadline_met']:.2%} ({level['shed']:.0%} refused with a time to come back)",
        ),
        ("the same: first images after it", f"{after:.0f} ms"),
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
    body = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return (
        f"On {machine['cores']} cores ({machine['cpu']}), which the load generator shares, by\n"
        f"`make bench-serve` ([results]({link})):\n\n"
        f"| | |\n|---|---|\n{body}"
    )


def litserve(found: dict[str, Any], link: str) -> str:
    """mmf-serve and LitServe under the same load."""
    machine, middle, ratio = found["machine"], found["median"], found["ratio"]
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
    body = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return (
        f"On {machine['cores']} cores ({machine['cpu']}), {len(found['rounds'])} rounds in turns, "
        f"LitServe {found['versions']['litserve']} with the best of\n"
        f"{len(found['settings_tried'])} settings for each line, by "
        f"`{found['command']}`\n"
        f"([results]({link})):\n\n"
        f"| digits, one PNG a request | mmf-serve | LitServe | ratio |\n|---|---|---|---|\n{body}"
    )


def ray(found: dict[str, Any], link: str) -> str:
    """One process, and two replicas behind each proxy of Ray, one of them killed under load."""
    machine = found["machine"]
    lines = [
        f"{machine['cores']} cores ({machine['cpu']}), by\n`{found['command']}` "
        f"([results]({link})). The load average before was {found['load_average'][0]:.1f},\n"
        "where 0 is a machine with nothing else to do.\n",
        "| | p50 of one client | images/s with 8 clients | memory "
        "| killed under load: failed tries | slowest request | replaced after |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        kills = row["kills"]
        failed = sum(sum(k["failed_tries"].values()) for k in kills)
        last = ["", "", ""] if not kills else [
            f"{failed} of {sum(k['requests'] for k in kills) + failed:,}",
            f"{max(k['slowest_ms'] for k in kills):,.0f} ms",
            f"{min(k['replaced_s'] for k in kills):.1f} to "
            f"{max(k['replaced_s'] for k in kills):.1f} s",
        ]  # fmt: skip
        cells = [row["mode"], f"{row['p50_ms']:.1f} ms", f"{row['images_per_s']:.0f}",
                 f"{row['memory_mb']:,} MB", *last]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)

"""Clicks in the demo, and the page that generates in a browser."""

from __future__ import annotations

from typing import Any

from mmf_deploy.results import Result, Table

from .common import body, result

DEMO = ["click, median", "engine", "beyond it, median", "p90"]


def demo_result(found: dict[str, Any]) -> Result:
    """What demo_latency.py measured, in the common form."""
    title = "From a click in the demo until the images are painted"
    notes = [
        f"{_chromium(found)} without a GPU shared the cores with the service; from the click on "
        "New seed until its images are painted",
        _many_users(found),
    ]
    return result("demo", title, found, [Table(title, ["", *DEMO], _demo_rows(found), notes)])


def demo(found: dict[str, Any], link: str) -> str:
    """Clicks in the demo, and ten users at once."""
    machine = found["machine"]
    # broken as a person would: a page is read in its source, too
    many = _many_users(found).replace("clicks, ", "clicks,\n")
    return (
        f"{machine['cores']} cores ({machine['cpu']}), which {_chromium(found)} "
        f"without a GPU shares, by\n`{found['command']}`\n"
        f"([results]({link})): from the click on *New seed* until the "
        "images are painted.\n\n"
        f"| | {' | '.join(DEMO)} |\n|---|---|---|---|---|\n{body(_demo_rows(found))}\n\n{many}"
    )


def _chromium(found: dict[str, Any]) -> str:
    return f"Chromium {found['versions']['chromium']}"


def _many_users(found: dict[str, Any]) -> str:
    many = found["many_users"]
    return (
        f"{many['users']} pages of this one browser that click all the time, 16 images each: "
        f"{many['clicks']} clicks, {many['errors']} errors, median "
        f"{many['click_ms']['p50']:.0f} ms, p90 {many['click_ms']['p90']:.0f} ms. "
        f"From the command to the page: {found['ready_s']:.1f} s."
    )


def _demo_rows(found: dict[str, Any]) -> list[list[str]]:
    return [
        [
            f"{row['images']} image{'s' if row['images'] > 1 else ''}, {row['clicks']} clicks",
            f"{row['click_ms']['p50']:.0f} ms",
            f"{row['engine_ms']['p50']:.1f} ms",
            f"{row['beyond_engine_ms']['p50']:.0f} ms",
            f"{row['beyond_engine_ms']['p90']:.0f} ms",
        ]
        for row in found["one_user"]
    ]


def web_page_result(found: dict[str, Any]) -> Result:
    """What web_page.py measured, in the common form."""
    title = "The page that makes images in a browser"
    notes = [f"{_chromium(found)} without a GPU, empty cache: {' '.join(_page(found).split())}"]
    return result(
        "web-page", title, found, [Table(title, _web_head(found), _web_rows(found), notes)]
    )


def web_page(found: dict[str, Any], link: str) -> str:
    """The browser page: load, bytes, images."""
    machine = found["machine"]
    rows = [[f"`{row[0]}`", *row[1:]] for row in _web_rows(found)]
    return (
        f"{machine['cores']} cores ({machine['cpu']}), {_chromium(found)} without a "
        f"GPU, empty cache, by\n`{found['command']}`\n([results]({link})): {_page(found)}\n\n"
        f"| {' | '.join(_web_head(found))} |\n|---|---|---|---|---|---|\n{body(rows)}"
    )


def _page(found: dict[str, Any]) -> str:
    return (
        f"first image after {found['first_image_ms']} ms (median of {len(found['loads_ms'])}\n"
        f"loads, the slowest {found['first_image_ms_slowest']} ms) and "
        f"{found['first_image_bytes'] / 1e6:.1f} MB; "
        f"the folder is {found['folder_bytes'] / 1e6:.1f} MB."
    )


def _web_head(found: dict[str, Any]) -> list[str]:
    return ["variant", "file", "one image in the browser", "ONNX Runtime", "PyTorch eager",
            f"levels of 255, {found['images']} seeds"]  # fmt: skip


def _web_rows(found: dict[str, Any]) -> list[list[str]]:
    return [
        [r["variant"], f"{r['bytes'] / 1e6:.2f} MB", f"{r['browser_ms']:.2f} ms",
         f"{r['onnxruntime_ms']:.2f} ms", f"{r['pytorch_ms']:.2f} ms", str(r["levels"])]
        for r in found["variants"]
    ]  # fmt: skip

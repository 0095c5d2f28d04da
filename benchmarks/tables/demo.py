"""Clicks in the demo, and the page that generates in a browser."""

from __future__ import annotations

from typing import Any


def demo(found: dict[str, Any], link: str) -> str:
    """Clicks in the demo, and ten users at once."""
    machine, versions, many = found["machine"], found["versions"], found["many_users"]
    head = (
        f"{machine['cores']} cores ({machine['cpu']}), which Chromium {versions['chromium']} "
        f"without a GPU shares, by\n`{found['command']}`\n"
        f"([results]({link})): from the click on *New seed* until the "
        "images are painted.\n\n"
        "| | click, median | engine | beyond it, median | p90 |\n|---|---|---|---|---|\n"
    )
    rows = [
        f"| {row['images']} image{'s' if row['images'] > 1 else ''}, {row['clicks']} clicks "
        f"| {row['click_ms']['p50']:.0f} ms | {row['engine_ms']['p50']:.1f} ms "
        f"| {row['beyond_engine_ms']['p50']:.0f} ms | {row['beyond_engine_ms']['p90']:.0f} ms |"
        for row in found["one_user"]
    ]
    end = (
        f"\n\n{many['users']} pages of this one browser that click all the time, 16 images each: "
        f"{many['clicks']} clicks,\n{many['errors']} errors, median "
        f"{many['click_ms']['p50']:.0f} ms, p90 {many['click_ms']['p90']:.0f} ms. "
        f"From the command to the page: {found['ready_s']:.1f} s."
    )
    return head + "\n".join(rows) + end


def web_page(found: dict[str, Any], link: str) -> str:
    """The browser page: load, bytes, images."""
    machine, versions = found["machine"], found["versions"]
    head = (
        f"{machine['cores']} cores ({machine['cpu']}), Chromium {versions['chromium']} without a "
        f"GPU, empty cache, by\n`{found['command']}`\n"
        f"([results]({link})): first image after "
        f"{found['first_image_ms']} ms (median of {len(found['loads_ms'])}\nloads, the slowest "
        f"{found['first_image_ms_slowest']} ms) and {found['first_image_bytes'] / 1e6:.1f} MB; "
        f"the folder is {found['folder_bytes'] / 1e6:.1f} MB.\n\n"
        "| variant | file | one image in the browser | ONNX Runtime | PyTorch eager "
        f"| levels of 255, {found['images']} seeds |\n|---|---|---|---|---|---|\n"
    )
    return head + "\n".join(
        f"| `{r['variant']}` | {r['bytes'] / 1e6:.2f} MB | {r['browser_ms']:.2f} ms | "
        f"{r['onnxruntime_ms']:.2f} ms | {r['pytorch_ms']:.2f} ms | {r['levels']} |"
        for r in found["variants"]
    )

"""Results as one HTML page that needs nothing else: no other file, no other host, no script.

The script on it sorts tables and copies commands; the page forbids itself every request and
every other script, whatever stands in the results.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from pathlib import Path

from mmf_deploy import __version__
from mmf_deploy.report_inputs import Found, Image
from mmf_deploy.report_summary import machine_text, machines, versions, warnings
from mmf_deploy.results import Table

GENERATOR = '<meta name="generator" content="mmf report">'
"""What a page of this kind is known by."""
ASSETS = Path(__file__).parent / "assets"
KINDS = {
    "bench": "Latency",
    "profile": "Profile",
    "step": "Training step",
    "load": "Service under load",
    "plan": "Capacity",
    "scale": "Scale",
    "peers": "Peers",
    "selftest": "Self-test",
}
LONG = 40
"""A text of more characters may break into lines within its cell."""


def page(title: str, found: Sequence[Found]) -> str:
    """The whole page.

    Args:
        found: at least one result, in the order to show.
    """
    style, script = ((ASSETS / f"report.{kind}").read_text("utf-8") for kind in ("css", "js"))
    parts = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        GENERATOR,
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(style, script)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{escape(title)}</title>",
        '<link rel="icon" href="data:,">',
        f"<style>{style}</style>",
        "</head>",
        "<body>",
        f"<header><h1>{escape(title)}</h1>{_warnings(found)}</header>",
        "<main>",
        _contents(found),
        _summary(found),
        *(_result(k, one) for k, one in enumerate(found, 1)),
        "</main>",
        f"<footer>Made by <code>mmf report</code>, mmf-deploy {__version__}.</footer>",
        f"<script>{script}</script>",
        "</body>",
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def _policy(style: str, script: str) -> str:
    """Nothing is requested, and only this style and this script count."""
    hashes = [
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for text in (style, script)
    ]
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{hashes[0]}'; "
        f"script-src 'sha256-{hashes[1]}'; base-uri 'none'; form-action 'none'"
    )


def _warnings(found: Sequence[Found]) -> str:
    lines = [f"<p>{escape(line)}</p>" for line in warnings([one.result for one in found])]
    return f'<div class="warning" role="note">{"".join(lines)}</div>' if lines else ""


def _contents(found: Sequence[Found]) -> str:
    items = [
        f'<li><a href="#r{k}">{escape(one.result.title)}</a> '
        f'<span class="kind">{escape(_kind(one))}</span></li>'
        for k, one in enumerate(found, 1)
    ]
    return (
        '<nav aria-labelledby="contents"><h2 id="contents">Contents</h2>'
        f"<ol>{''.join(items)}</ol></nav>"
    )


def _kind(one: Found) -> str:
    return KINDS.get(one.result.kind, one.result.kind)


def _summary(found: Sequence[Found]) -> str:
    listed = [one.result for one in found]
    where = [f"<li>{escape(text)}: {_links(numbers)}</li>" for text, numbers in machines(listed)]
    packages = []
    for package, by_version in versions(listed).items():
        each = "; ".join(f"{escape(v)}: {_links(numbers)}" for v, numbers in by_version.items())
        differs = ' class="differs"' if len(by_version) > 1 else ""
        packages.append(f"<li{differs}>{escape(package)} {each}</li>")
    return (
        '<section aria-labelledby="origin"><h2 id="origin">Machines and versions</h2>'
        "<p>Each with the numbers of the results that were measured with it.</p>"
        f'<ul class="origin">{"".join(where)}</ul>'
        f'<ul class="origin packages">{"".join(packages)}</ul></section>'
    )


def _links(numbers: Sequence[int]) -> str:
    return ", ".join(f'<a href="#r{k}">{k}</a>' for k in numbers)


def _result(k: int, one: Found) -> str:
    result = one.result
    facts = [
        ("machine", machine_text(result.machine)),
        ("versions", ", ".join(f"{p} {v}" for p, v in result.versions.items()) or "not recorded"),
        ("file", one.name),
    ]
    parts = [
        f'<section class="result" aria-labelledby="r{k}">',
        f'<p class="kind">{k}. {escape(_kind(one))}</p>',
        f'<h2 id="r{k}">{escape(result.title)}</h2>',
        f'<div class="command"><pre><code>{escape(result.command)}</code></pre></div>',
        "<dl>" + "".join(f"<dt>{n}</dt><dd>{escape(text)}</dd>" for n, text in facts) + "</dl>",
        *(
            _table(table, f"r{k}", f"-{n}", result.title)
            for n, table in enumerate(result.tables, 1)
        ),
        *map(_image, one.images),
        '<p class="up"><a href="#contents">Contents</a></p>',
        "</section>",
    ]
    return "\n".join(parts)


def _table(table: Table, section: str, suffix: str, above: str) -> str:
    """With a heading, if that is another than the one above."""
    own = table.title != above
    name = section + suffix if own else section
    heading = f'<h3 id="{name}">{escape(table.title)}</h3>\n' if own else ""
    head = "".join(
        f'<th scope="col"{_text(k, table)}>{escape(column)}</th>'
        for k, column in enumerate(table.columns)
    )
    body = "\n".join(f"<tr>{_cells(row, table)}</tr>" for row in table.rows)
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    return (
        f'{heading}<div class="scroll" tabindex="0" role="region" aria-labelledby="{name}">\n'
        f'<table class="data"><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'
        + (f'\n<ul class="notes">{notes}</ul>' if notes else "")
    )


def _cells(row: Sequence[str], table: Table) -> str:
    cells = []
    for k, cell in enumerate(row):
        open_, close = ('th scope="row"', "th") if k == 0 and table.left else ("td", "td")
        cells.append(f"<{open_}{_text(k, table, cell)}>{escape(cell)}</{close}>")
    return "".join(cells)


def _text(k: int, table: Table, cell: str = "") -> str:
    """The class of a cell that is no number."""
    if k >= table.left:
        return ""
    return ' class="t long"' if len(cell) > LONG else ' class="t"'


def _image(image: Image) -> str:
    if image.problem:
        return f'<p class="missing">{escape(image.title)}: {escape(image.problem)}.</p>'
    data = base64.b64encode(image.png).decode()
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{escape(image.title)}" '
        f'width="{image.width}" height="{image.height}">'
        f"<figcaption>{escape(image.title)}</figcaption></figure>"
    )

"""Results as HTML: images inside the page, captions, sentences. Everything is escaped."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from mmf_deploy import images
from mmf_deploy.spec import SampleSpec

from .asked import class_name

SMALL = 16
"""Captions have room under so many images, and no more."""


def ms(value: float) -> str:
    """Milliseconds with as many digits as they are worth."""
    if value < 0.1:
        return f"{value:.3f}"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def plural(number: int, word: str) -> str:
    """``1 image``, ``4 images``."""
    return f"{number} {word}{'' if number == 1 else 's'}"


def data_uri(image: NDArray[np.uint8]) -> str:
    """A uint8 [H, W, C] image as the address of itself."""
    return "data:image/png;base64," + base64.b64encode(images.encode(image)).decode()


def picture(image: NDArray[np.uint8], alt: str, extra: str = "") -> str:
    """An ``<img>`` of a uint8 [H, W, C] image."""
    height, width = image.shape[:2]
    return (
        f'<img src="{data_uri(image)}" alt="{escape(alt)}" width="{width}" height="{height}"'
        f"{extra}>"
    )


def tile(image: NDArray[np.uint8], alt: str, caption: str, file: str) -> str:
    """An image that can be saved with a click, and what is written under it.

    Args:
        caption: HTML.
        file: name to save it under, without extension.
    """
    return (
        f'<figure class="mmf-tile"><a class="mmf-save" href="#" download="{escape(file)}.png" '
        f'title="{escape(alt)}; click to save">{picture(image, alt)}</a>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def described(spec: SampleSpec, seed: int, label: int | None) -> str:
    """What an image is of, in words."""
    named = "" if label is None else f"{class_name(spec, label)}, "
    return f"{named}seed {seed}"


def caption(spec: SampleSpec, seed: int, label: int | None) -> str:
    """The same as a caption."""
    named = "" if label is None else f"<b>{escape(class_name(spec, label))}</b> "
    return f'{named}<span class="mmf-seed">{seed}</span>'


def grid(
    array: NDArray[np.uint8],
    spec: SampleSpec,
    seeds: Sequence[int],
    labels: Sequence[int] | None,
    name: str,
) -> str:
    """Images with their seeds and classes.

    Args:
        array: uint8 [n, H, W, C].
        name: of the model; files are called after it.
    """
    columns = int(np.ceil(np.sqrt(len(array))))
    tiles = []
    for k, (image, seed) in enumerate(zip(array, seeds, strict=True)):
        label = labels[k] if labels else None
        tiles.append(
            tile(
                image,
                described(spec, seed, label),
                caption(spec, seed, label),
                file_name(name, "" if label is None else class_name(spec, label), seed),
            )
        )
    dense = " mmf-dense" if len(array) > SMALL else ""
    return (
        f'<div class="mmf-grid{dense}" style="--columns:{columns}" '
        f'data-name="{escape(file_name(name, len(array), "from", seeds[0]))}">'
        f"{''.join(tiles)}</div>"
    )


def file_name(*parts: object) -> str:
    """Words and numbers as a file's name."""
    words = (re.sub(r"[^A-Za-z0-9._]+", "-", str(part)).strip("-.") for part in parts)
    return "-".join(word for word in words if word)


SAVE_GRID = '<button type="button" class="mmf-link" data-mmf="grid">Download grid</button>'


def links(query: str, save: str = "") -> str:
    """Copy or open the link to what is shown, and the HTML of a button that saves it."""
    return (
        '<p class="mmf-links">'
        f'<button type="button" class="mmf-link" data-mmf="copy" data-query="{escape(query)}">'
        "Copy link</button>"
        f'<a class="mmf-link" href="?{escape(query)}" target="_blank" rel="noopener">'
        f"Open in a new page</a>{save}</p>"
    )


def alert(sentences: Sequence[str]) -> str:
    """Sentences that a screen reader says at once; nothing if there are none."""
    if not sentences:
        return ""
    said = "".join(f"<p>{escape(_capital(s))}</p>" for s in sentences)
    return f'<div class="mmf-alert" role="alert">{said}</div>'


def note(text: str) -> str:
    """A sentence in place of what cannot be shown."""
    return f'<p class="mmf-note">{escape(text)}</p>'


def _capital(text: str) -> str:
    stopped = text if text.endswith((".", "!", "?", ")")) else f"{text}."
    # an address stays as it is
    return stopped if re.match(r"\w+://", text) else stopped[:1].upper() + stopped[1:]

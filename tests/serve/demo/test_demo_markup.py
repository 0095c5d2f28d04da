"""What is written into the page: escaped, and the very pixels."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from mmf_deploy.serve.demo import markup
from mmf_deploy.serve.demo.bars import Bar, bars

from mmf_deploy.client.replies import pixels
from mmf_deploy.spec import SampleSpec

NASTY = "<script>alert('x')</script>\"&"


class Tags(HTMLParser):
    """Names of the elements of a page, and their attributes."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.feed(content)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_in_the_page_has_the_very_pixels(channels):
    array = np.random.default_rng(0).integers(0, 256, (2, 5, 7, channels), np.uint8)
    spec = SampleSpec(shape=(channels, 5, 7), classes=2)
    tags = Tags(markup.grid(array, spec, (8, 9), (0, 1), "toy"))
    images = tags.all("img")
    for image, expected in zip(images, array, strict=True):
        content = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
        np.testing.assert_array_equal(pixels(content), expected)
        assert (image["width"], image["height"]) == ("7", "5")
    assert [image["alt"] for image in images] == ["0, seed 8", "1, seed 9"]
    assert [a["download"] for a in tags.all("a")] == ["toy-0-8.png", "toy-1-9.png"]


def test_names_are_text_and_never_elements():
    spec = SampleSpec(shape=(1, 2, 2), classes=1, class_names=(NASTY,))
    content = markup.grid(np.zeros((1, 2, 2, 1), np.uint8), spec, (3,), (0,), NASTY)
    content += markup.alert([NASTY]) + markup.note(NASTY) + markup.links(f"label={NASTY}")
    content += bars([Bar(NASTY, 1.0, extra=NASTY)], unit=NASTY)
    tags = Tags(content)
    assert tags.all("script") == []
    assert tags.all("img")[0]["alt"] == f"{NASTY}, seed 3"
    assert tags.all("a")[0]["download"] == "toy.png".replace("toy", "script-alert-x-script-" * 2)\
        .replace("-.png", "-3.png")  # fmt: skip
    assert tags.all("button")[0]["data-query"] == f"label={NASTY}"


def test_a_grid_without_classes_says_seeds_alone():
    content = markup.grid(
        np.zeros((1, 2, 2, 1), np.uint8), SampleSpec(shape=(1, 2, 2)), (3,), None, "toy"
    )
    assert 'alt="seed 3"' in content
    assert 'download="toy-3.png"' in content


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (4, 2), (16, 4), (64, 8), (5, 3)])
def test_a_grid_is_as_square_as_it_can_be(count, columns):
    spec = SampleSpec(shape=(1, 2, 2))
    content = markup.grid(np.zeros((count, 2, 2, 1), np.uint8), spec, range(count), None, "toy")
    assert f"--columns:{columns}" in content
    assert ("mmf-dense" in content) == (count > 16)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0213, "0.021"), (0.215, "0.21"), (3.4, "3.40"), (12.34, "12.3"), (1234.5, "1,234")],
)
def test_milliseconds_have_as_many_digits_as_they_are_worth(value, shown):
    assert markup.ms(value) == shown


def test_messages_are_sentences_and_addresses_stay_as_they_are():
    said = re.findall(r"<p>(.*?)</p>", markup.alert(["seed 'x': expected y", "http://a: gone."]))
    assert said == ["Seed &#x27;x&#x27;: expected y.", "http://a: gone."]
    assert markup.alert([]) == ""
    assert 'role="alert"' in markup.alert(["a"])


def test_bars_share_a_scale():
    content = bars([Bar("a", 1.0), Bar("b", 4.0, ours=False)])
    assert re.findall(r"width:([\d.]+)%", content) == ["25.0", "100.0"]
    assert re.findall(r"width:([\d.]+)%", bars([Bar("a", 1.0)], longest=8.0)) == ["12.5"]
    assert "nan" not in bars([Bar("nothing", 0.0)])

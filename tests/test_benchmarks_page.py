"""docs/benchmarks.md: beside every number the line that measures it, and none typed by hand."""

import re
import shlex
import tomllib

import pytest

from mmf_deploy.cli import COMMANDS
from tests.rendering import ROOT, render

NAME = "docs/benchmarks.md"
PAGE = (ROOT / NAME).read_text()
PARTS = (
    "How it is measured", "Digits", "The CIFAR-10 UNet on two cores", "What the machine can do",
    "A training step", "The service", "The demo and the browser page", "Peers",
    "Scale: batch, resolution, width", "Planning", "GPUs", "Repeatability",
)  # fmt: skip
UNITS = (
    "µs|ms|s|seconds?|minutes?|milliseconds?|×|times|images/s|requests/s|MB|GB|MiB|GiB|GB/s|"
    "GFLOP|GFLOP/s|TFLOP/s|%|percent|dB|J|mJ"
)
MEASURED = re.compile(rf"(?<![\w.])\d[\d.,]*[ -]?(?:{UNITS})(?!\w)")
ALLOWED = ("95% confidence", "within 15%")
"""What belongs to the method or is a target, not a result."""


def prose(text):
    """Without what is generated."""
    return re.sub(r"<!-- begin (\S+) -->.*?<!-- end \1 -->", "", text, flags=re.DOTALL)


def parts(text):
    """The text under each heading of the second level."""
    return dict(part.split("\n", 1) for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:])


def commands(text):
    """Every line of a code block, and everything in code quotes that calls one of our programs."""
    block = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)
    lines = "".join(block.findall(text)).replace("\\\n", " ").splitlines()
    quoted = re.findall(r"`([^`]+)`", block.sub("", text))
    return [
        *(line for line in lines if line.strip()),
        *(code for code in quoted if re.match(r"(make|mmf(-[a-z]+)?|python) ", code + " ")),
    ]


def is_known(command):
    """Whether what it calls is there: a target, a subcommand, a script."""
    program, *words = shlex.split(command, comments=True)
    if program == "make":
        targets = re.findall(r"^([a-z0-9-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return bool(words) and set(words) <= set(targets)
    if program == "mmf":
        return bool(words) and words[0] in COMMANDS
    if program == "python":
        return bool(words) and words[0].startswith("benchmarks/") and (ROOT / words[0]).is_file()
    return program in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


def measurements(text):
    """Numbers with a unit, outside generated sections and commands."""
    text = prose(text)
    for line in [*commands(text), *ALLOWED]:
        text = text.replace(line, "")
    return MEASURED.findall(text)


def test_the_page_has_its_parts_in_order_and_the_table_at_the_top_leads_to_each():
    assert tuple(parts(PAGE)) == PARTS
    top = PAGE.partition("\n## ")[0]
    anchors = [re.sub(r"[^\w -]", "", part.lower()).replace(" ", "-") for part in PARTS]
    linked = re.findall(r"\]\(#([\w-]+)\)", PAGE)
    assert set(linked) <= set(anchors)
    assert list(dict.fromkeys(re.findall(r"\]\(#([\w-]+)\)", top))) == anchors[1:]
    rows = [line for line in top.splitlines() if line.startswith("| ")][1:]
    assert rows
    assert all(commands(row) for row in rows)


@pytest.mark.parametrize("part", PARTS)
def test_every_part_names_a_command(part):
    assert commands(prose(parts(PAGE)[part]))


@pytest.mark.parametrize("command", dict.fromkeys(commands(PAGE)))
def test_every_command_of_the_page_is_there(command):
    assert is_known(command)


def test_what_a_section_waits_for_is_named_in_the_text_too():
    for section in render.SECTIONS.values():
        if section.pending:
            assert NAME in section.pages
            assert section.pending in commands(prose(PAGE))


def test_no_measurement_is_typed_by_hand():
    assert measurements(PAGE) == []


@pytest.mark.parametrize(
    "text",
    ["takes 12 ms", "1.25× faster", "7,526.7 images/s", "±2%", "853 MB", "a 60-s run", "3.9 times",
     "`0.2 ms`", "at 85 GFLOP/s.", "95% of it", "40 dB"],
)  # fmt: skip
def test_a_measurement_in_the_text_is_seen(text):
    assert measurements(f"before {text} after")


@pytest.mark.parametrize(
    "text",
    ["a 95% confidence interval", "`mmf plan --rate 500 --p99 50ms`", "a 3×3 convolution", "p90",
     "CIFAR-10", "batch 64", "```\nmmf bench --within 2%\n```\n",
     "<!-- begin digits -->\n12 ms\n<!-- end digits -->"],
)  # fmt: skip
def test_what_is_no_measurement_is_let_through(text):
    assert not measurements(f"before\n{text} after")


@pytest.mark.parametrize(
    "command",
    ["make bench-nothing", "make", "mmf frobnicate", "mmf", "python benchmarks/nothing.py",
     "python -m torch", "curl localhost"],
)  # fmt: skip
def test_a_command_that_is_not_there_is_seen(command):
    assert not is_known(command)
    assert commands(f"```\n{command}  # why\n```") == [f"{command}  # why"]

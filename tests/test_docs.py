"""The documentation says what the commands say, and points at what is there."""

import re
from pathlib import Path

import pytest

from mmf_deploy.cli import COMMANDS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_pictures_exist(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def documented_commands(page):
    """(command, options) of every `mmf …` line in a code block."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    for line in "\n".join(blocks).splitlines():
        if match := re.match(r"\$? ?mmf[ -]([a-z-]+)([^#]*)", line):
            yield match[1], re.findall(r"--[a-z-]+", match[2])


def test_the_readme_has_commands_to_check():
    found = {command for command, _ in documented_commands(ROOT / "README.md")}
    assert {"train", "export", "serve", "bench"} <= found


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_and_options_in_the_documentation_exist(page):
    for command, options in documented_commands(page):
        assert command in COMMANDS, command
        source = (ROOT / Path(*COMMANDS[command][0].split(".")[1:])).with_suffix(".py")
        if not source.exists():
            source = (ROOT / Path(*COMMANDS[command][0].split("."))).with_suffix(".py")
        text = source.read_text()
        for option in set(options) - {"--help", "--debug"}:
            name = option.removeprefix("--").replace("-", "_")
            assert option in text or re.search(rf"\b{name}: Annotated", text), option

"""The documentation says what the committed results and the commands say."""

import importlib.util
import re
from pathlib import Path

import pytest

from mmf_deploy.cli import COMMANDS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_tables_of_the_readme_come_from_the_committed_results():
    spec = importlib.util.spec_from_file_location("render", ROOT / "benchmarks" / "render.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = (ROOT / "README.md").read_text()
    assert module.render(text) == text, "run: python benchmarks/render.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_pictures_exist(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_in_the_documentation_exist(page):
    blocks = re.findall(r"```\n(.*?)```", page.read_text(), re.DOTALL)
    for line in "\n".join(blocks).splitlines():
        if match := re.match(r"\$? ?mmf[ -]([a-z]+)\b", line):
            assert match[1] in COMMANDS, line

"""The documentation says what the committed results and the commands say."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from mmf_deploy.cli import COMMANDS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def load_render():
    spec = importlib.util.spec_from_file_location("render", ROOT / "benchmarks" / "render.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["render"] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


render = load_render()


@pytest.mark.parametrize("page", render.PAGES)
def test_the_tables_of_a_page_come_from_the_committed_results(page):
    text = (ROOT / page).read_text()
    assert render.render(page, text) == text, "run: python benchmarks/render.py"


def test_markers_that_nothing_or_no_result_belongs_to_are_refused(monkeypatch, tmp_path):
    quickstart = "<!-- begin quickstart -->\n<!-- end quickstart -->\n"
    with pytest.raises(SystemExit, match=r"README\.md: there is no section 'quickstrat'"):
        render.render("README.md", quickstart.replace("start", "strat"))
    with pytest.raises(SystemExit, match=r"expected '<!-- begin (speed|service) -->'"):
        render.render("README.md", quickstart)
    monkeypatch.setattr(render, "RESULTS", tmp_path)
    with pytest.raises(SystemExit, match=r"quickstart-cpu\.json, which is not there"):
        render.render("README.md", quickstart)
    assert render.render("README.md", "nothing measured yet") == "nothing measured yet"


def test_objectives_are_compared_over_seeds_and_failures_are_told():
    def row(seed, frechet, **changed):
        return {
            "objective": "mmf", "derivative": "auto", "seed": seed, "status": "finished",
            "frechet": frechet, "frechet_real": 7.5, "class_accuracy": 0.98, "seconds": 100.0,
            "step": 2600, **changed,
        }  # fmt: skip

    gone = {"status": "failed", "step": None, "frechet_real": None}
    rows = [
        row(0, 8.0), row(1, 10.0, seconds=None),
        row(0, 9.0, derivative="jvp"), row(1, None, derivative="jvp", **gone),
        row(0, None, objective="paper-literal", **gone),
    ]  # fmt: skip
    machine = {"cpu": "a CPU", "cores": "2"}
    found = {"machine": machine, "command": "python benchmarks/objectives.py", "rows": rows}
    text = render.objectives(found)
    assert text.splitlines()[-3:] == [
        "| `mmf` | 9.00 ± 1.41 | 98.0% ± 0.0% |",
        "| `mmf` with `jvp` | 9.00, 1 of 2 failed | 98.0% |",
        "| `paper-literal` | 1 of 1 failed |  |",
    ]
    assert "`python benchmarks/objectives.py`" in text
    assert "is 7.50" in text


def test_a_step_is_compared_with_flow_matching():
    flow = {
        "objective": "flow-matching", "lam": 0.0, "derivative": None, "gap_fraction": None,
        "median_ms": 100.4, "ratio": 1.0, "naive_speedup": None,
    }  # fmt: skip
    mmf = {
        "objective": "mmf", "lam": 1.0, "derivative": "jvp", "gap_fraction": 0.25,
        "median_ms": 150.0, "ratio": 1.494, "naive_speedup": 2.806,
    }  # fmt: skip
    config = {"parameters": 1_800_000, "recipe": "cifar10-small", "batch": 16, "threads": 2}
    text = render.bench_step(
        {"machine": {"cpu": "a CPU"}, "config": config, "rounds": 9, "rows": [flow, mmf],
         "command": "mmf bench-step"}
    )  # fmt: skip
    assert text.splitlines()[-2:] == [
        "| flow-matching |  |  |  | 100 ms | 1.00 |  |",
        "| mmf | 25% | 1 | `jvp` | 150 ms | 1.49 | 2.81 |",
    ]
    assert "`mmf bench-step`" in text


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

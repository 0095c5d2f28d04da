"""The page of `mmf report`: light and dark, phone and screen, paper, without its script."""

import pytest
from PIL import Image

from mmf_deploy import results
from mmf_deploy.report_cli import app
from mmf_deploy.results import Picture, Result, Table

COLUMNS = ["engine", *(f"count {k}" for k in range(12)), "ms"]
MS = ["10.5", "", "2,000", "9.25 ms"]
ROWS = [[f"engine {ms or 'none'}", *["1,234"] * 12, ms] for ms in MS]


def draw(path):
    Image.new("RGB", (1040, 600), "white").save(path)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Two results of different machines, one with more columns than fit, as a page."""
    folder = tmp_path_factory.mktemp("report")
    for name, cpu in (("bench", "a CPU"), ("load", "another CPU with quite a long name indeed")):
        result = Result(
            kind=name,
            title=f"{name}: a title that needs several lines on a narrow screen, as some do",
            command=f"mmf {name} bundles/{'long-name-' * 12} --batches 1,8,64",
            machine={"cpu": cpu, "cores": "2"},
            versions={"onnxruntime": "1.0", "numpy": "2.0"},
            tables=[Table("many columns", COLUMNS, ROWS, ["a note " * 30]),
                    Table("sentences", ["why"], [["a sentence as long as a note " * 4]])],
            pictures=[Picture(f"{name}.png", "time by engine")],
        )  # fmt: skip
        results.write(folder, name, result, {f"{name}.png": draw})
    out = folder / "report.html"
    app([str(folder), "--out", str(out)], prog_name="mmf report", standalone_mode=False)
    return out.as_uri()


@pytest.fixture
def visit(report):
    """``visit(page)``: the page from its file, and the addresses that it asked for."""

    def go(page):
        asked = []
        page.on("request", lambda r: asked.append(r.url))
        page.goto(report)
        page.complaints.remove(report)  # a file is on no host
        return [url for url in asked if not url.startswith("data:")]

    return go


def style(page, selector, name):
    return page.locator(selector).first.evaluate(f"e => getComputedStyle(e).{name}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_every_screen_and_asks_nobody_for_anything(
    scheme, new_page, visit, report, no_overlap, all_labelled, screenshot
):
    page = new_page(1440, 900, scheme)
    assert visit(page) == [report]
    for width in (1440, 390):
        page.set_viewport_size({"width": width, "height": 900})
        no_overlap(page)
        all_labelled(page)
        screenshot(page, f"report-{width}-{scheme}")
    wide = page.locator(".scroll").first
    assert wide.evaluate("e => e.scrollWidth > 2 * e.clientWidth"), "tables scroll by themselves"
    ground = style(page, "html", "backgroundColor")
    bright = sum(map(int, ground.strip("rgb()").split(","))) > 380
    assert bright == (scheme == "light")
    assert style(page, "img", "backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("img").first.evaluate("e => e.naturalWidth") == 1040
    assert style(page, "td:last-child", "textAlign") == "right"
    assert style(page, "td:last-child", "fontVariantNumeric") == "tabular-nums"
    assert page.locator(".warning").is_visible()


def test_tables_are_sorted_by_number_and_back_and_commands_are_copied(page, visit):
    visit(page)
    table = page.locator("table.data").first
    button = table.get_by_role("button", name="ms")
    given = [row[0] for row in ROWS]
    up = ["engine 9.25 ms", "engine 10.5", "engine 2,000", "engine none"]
    down = [*reversed(up[:3]), "engine none"]
    for expected, sort in ((up, "ascending"), (down, "descending"), (given, None)):
        button.click()
        assert table.locator("tbody th").all_text_contents() == expected
        assert table.locator("thead th").last.get_attribute("aria-sort") == sort
    page.get_by_role("button", name="Copy").first.click()
    page.get_by_role("button", name="Copied").or_(
        page.get_by_role("button", name="Selected")
    ).wait_for()


def test_everything_can_be_read_without_script_and_on_paper(new_page, visit, no_overlap):
    page = new_page(720, 900, java_script_enabled=False)
    visit(page)
    assert page.locator("section.result").count() == 2
    assert page.get_by_role("button").count() == 0
    page = new_page(720, 900, "dark")
    visit(page)
    page.emulate_media(media="print")
    no_overlap(page)
    assert page.get_by_role("button", name="Copy").count() == 0
    assert style(page, "html", "backgroundColor") == "rgb(255, 255, 255)"

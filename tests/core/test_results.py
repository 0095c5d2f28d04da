"""The form that every benchmark writes: what is written is what is read, on every medium."""

import io
import json

import pytest
from rich.console import Console

from mmf_deploy import results
from mmf_deploy.errors import ConfigError
from mmf_deploy.results import Picture, Result, Table

ROWS = [["onnxruntime", "1.25", "2.10×"], ["a|b", "10.00", ""]]
TABLE = Table("milliseconds", ["engine", "median", "× eager"], ROWS, ["known to: ±1%"])


def result(**changed):
    given = {
        "kind": "bench", "title": "digits", "command": "mmf bench --batches 1",
        "machine": {"cpu": "a CPU", "cores": "2"}, "versions": {"numpy": "2.0"},
        "tables": [TABLE], "pictures": [Picture("bench.png", "time by engine")],
        "content": {"rows": [{"median_ms": 1.25}]}, **changed,
    }  # fmt: skip
    return Result(**given)


def draw(path):
    path.write_bytes(b"drawn")


def test_what_is_written_is_what_is_read(tmp_path):
    said = results.write(tmp_path, "bench", result(), {"bench.png": draw})
    assert results.read(tmp_path / "bench.json").as_dict() == result().as_dict()
    assert (tmp_path / "bench.png").read_bytes() == b"drawn"
    assert said == "written: " + ", ".join(
        str(tmp_path / name) for name in ("bench.json", "bench.md", "bench.png")
    )
    assert (tmp_path / "bench.md").read_text() == results.markdown(result())
    record = json.loads((tmp_path / "bench.json").read_text())
    assert record["rows"] == [{"median_ms": 1.25}]
    assert record["format"] == results.FORMAT


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"format": 2}, "result format 2, this reads 1; expected"),
        ({"format": None}, "no result; expected what a benchmark wrote with --out"),
        ({"kind": ...}, "'kind'"),
        ({"machine": ["a CPU"]}, "not the result of a benchmark"),
        ({"tables": [{"title": "t", "columns": ["a"], "rows": [[1]]}]}, "expected texts"),
        ({"tables": [{"title": "t", "columns": ["a"], "rows": ["x"]}]}, "expected texts"),
        ({"tables": [{"title": "t", "columns": ["a"], "rows": [["x", "y"]]}]}, "2 cells"),
        ({"tables": [{"title": "t", "columns": [], "rows": [], "left": "1"}]}, "left '1'"),
        ({"tables": [{"colums": []}]}, "colums"),
        ({"pictures": ["x.png"]}, "not the result of a benchmark"),
    ],
)
def test_a_file_of_another_form_is_refused_with_a_reason(changed, part, tmp_path):
    found = result().as_dict() | changed
    path = tmp_path / "x.json"
    path.write_text(json.dumps({k: v for k, v in found.items() if v is not ...}))
    with pytest.raises(ConfigError) as caught:
        results.read(path)
    assert part in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"{", b"[]", b'"x"', b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_json_object_is_refused(content, tmp_path):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"x\.json"):
        results.read(tmp_path / "x.json")


def test_a_missing_file_and_a_directory_are_refused(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(ConfigError, match=path.name):
            results.read(path)


def test_markdown_aligns_numbers_and_keeps_every_cell_in_its_column():
    table = Table("t", ["what", "ms"], [["a|b\nc", "1"]], ["a note"])
    assert table.markdown() == "| what | ms |\n| --- | ---: |\n| a\\|b c | 1 |\n\n- a note"
    page = results.markdown(result())
    for part in ("# digits", "`mmf bench --batches 1`", "cpu a CPU", "numpy 2.0", "## milliseconds",
                 "![time by engine](bench.png)"):  # fmt: skip
        assert part in page


def printed(table, width=None):
    console = Console(file=io.StringIO(), width=width) if width else None
    table.print(console)
    return console.file.getvalue() if console else ""


def test_the_terminal_shows_texts_as_they_are():
    said = printed(Table("[b]title[/x]", ["[red]a", "n"], [["[i]x", "1"]], ["[/] note"]), 80)
    assert [line.rstrip() for line in said.splitlines()] == [
        "[b]title[/x]", "[red]a  n", "[i]x    1", "[/] note"
    ]  # fmt: skip


def test_the_terminal_cuts_off_nothing(capsys):
    cells = [f"{'wide' * 5}{k}" for k in range(12)]
    note = "a long note " * 20
    printed(Table("a title that is longer than its table", cells, [cells], [note]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a title that is longer than its table"
    assert lines[1].split() == lines[2].split() == cells
    assert lines[3] == note


def test_rows_have_as_many_cells_as_there_are_columns():
    with pytest.raises(ValueError, match="1 cells in a table of 2 columns"):
        Table("t", ["a", "b"], [["x"]])


def test_numbers_do_not_hide_behind_the_names_of_the_head():
    with pytest.raises(ValueError, match="format"):
        result(content={"format": "npy"})


def test_a_place_that_cannot_be_written_to_is_refused_before_anything_is_measured(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file; expected a directory"):
        results.prepare(tmp_path / "file", pictures=False)
    results.prepare(tmp_path / "a" / "b", pictures=False)
    assert (tmp_path / "a" / "b").is_dir()

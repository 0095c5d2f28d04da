"""Committed tables are what today's code makes of the numbers beside them."""

import importlib
import json
import sys

import pytest

from mmf_deploy import results
from mmf_deploy.errors import ConfigError
from tests.rendering import ROOT, render

EVERY = sorted(path for path in render.RESULTS.rglob("*.json"))


def load():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module("redraw")
    finally:
        sys.path.pop(0)


redraw = load()


def readable(path):
    try:
        return results.read(path)
    except ConfigError:
        return None  # from before there was a common form


def kind(path):
    found = readable(path)
    return found and found.kind


DRAWN = [path for path in EVERY if kind(path) in redraw.KINDS]


@pytest.mark.parametrize("path", DRAWN, ids=lambda p: p.relative_to(render.RESULTS).as_posix())
def test_tables_and_pictures_are_those_of_todays_code(path):
    found = results.read(path)
    made, draw = redraw.KINDS[found.kind](found)
    written = json.loads(json.dumps(made.as_dict()))
    assert written == json.loads(path.read_text()), "run: python benchmarks/redraw.py"
    assert set(draw) == {picture.file for picture in found.pictures}


def test_every_kind_that_can_be_redrawn_is_committed():
    assert set(redraw.KINDS) <= set(map(kind, EVERY))


def test_redrawing_writes_the_same_files_again(tmp_path, monkeypatch, capsys):
    name = "cifar10-random-cpu/bench.json"
    (tmp_path / "cifar10-random-cpu").mkdir()
    (tmp_path / name).write_bytes((render.RESULTS / name).read_bytes())
    (tmp_path / "old.json").write_text("{}")
    monkeypatch.setattr(redraw, "RESULTS", tmp_path)
    redraw.main()
    assert (tmp_path / name).read_bytes() == (render.RESULTS / name).read_bytes()
    assert (tmp_path / "cifar10-random-cpu" / "frontier.png").stat().st_size > 5000
    said = capsys.readouterr().out
    assert "old.json: no result" in said

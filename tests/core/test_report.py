"""`mmf report`: what it joins, what it says, and what it never does."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser

import pytest
from PIL import Image

from mmf_deploy import results
from mmf_deploy.errors import ConfigError
from mmf_deploy.report_cli import app
from mmf_deploy.report_summary import machines, warnings
from mmf_deploy.results import Picture, Result, Table

HERE = {"cpu": "a CPU", "cores": "2", "system": "Linux"}
EVIL = "<script>alert(1)</script>\"'&amp;<img src=//x onerror=alert(1)>"


def result(kind="bench", **changed):
    given = {
        "kind": kind, "title": f"all about {kind}", "command": f"mmf {kind}", "machine": HERE,
        "versions": {"mmf-deploy": "0.1.0"},
        "tables": [Table("times", ["what", "by", "ms"], [["a", "x", "1.5"]], ["a note"], left=2)],
        **changed,
    }  # fmt: skip
    return Result(**given)


def write(folder, name, found, pictures=()):
    folder.mkdir(parents=True, exist_ok=True)
    results.write(folder, name, found, dict.fromkeys((p.file for p in found.pictures), png))
    return folder / f"{name}.json"


def png(path):
    Image.new("RGB", (30, 20), "red").save(path)


def report(*args):
    app(list(map(str, args)), prog_name="mmf report", standalone_mode=False)


class Page(HTMLParser):
    """Tags with their attributes, and the text outside of style and script."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(text)
        assert self.open == [], "every tag is closed"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text += data

    def all(self, name):
        return [attrs for tag, attrs in self.tags if tag == name]


def made(*args):
    report(*args)
    out = args[args.index("--out") + 1]
    return Page(out.read_text())


def test_everything_of_every_result_is_on_the_page(tmp_path, capsys):
    picture = Picture("step.png", "time by objective")
    write(tmp_path / "all", "a", result("step", pictures=[picture]))
    write(tmp_path / "all", "b", result("bench"))
    page = made(tmp_path / "all", "--out", tmp_path / "r.html", "--title", "Mine")
    for part in ("Mine", "all about step", "mmf step", "a CPU, 2 cores, Linux", "mmf-deploy 0.1.0",
                 "times", "1.5", "a note", "all/a.json"):  # fmt: skip
        assert part in page.text
    (image,) = page.all("img")
    kind, _, data = image["src"].partition(",")
    assert kind == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (30, 20)
    assert (image["alt"], image["width"], image["height"]) == ("time by objective", "30", "20")
    size = (tmp_path / "r.html").stat().st_size
    said = capsys.readouterr().out
    assert said == (f"written: {tmp_path / 'r.html'}, {size / 1e6:.2f} MB, 2 results; "
                    "open it in a browser\n")  # fmt: skip


def test_results_follow_each_other_in_one_order_whatever_they_are_given_in(tmp_path):
    kinds = ["other", "repeat", "peers", "scale", "demo", "service", "load", "plan", "limit",
             "step", "profile", "bench"]  # fmt: skip
    files = [write(tmp_path / kind, "x", result(kind)) for kind in kinds]
    page = made(*files, "--out", tmp_path / "r.html")
    titles = re.findall(r"\n?all about (\w+)", page.text)
    ordered = ["bench", "profile", "limit", "step", "load", "service", "plan", "demo", "scale",
               "peers", "repeat", "other"]  # fmt: skip
    assert titles == [*ordered, *ordered], "in the contents, and on the page"
    targets = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    links = [attrs["href"].removeprefix("#") for attrs in page.all("a")]
    assert set(links) <= targets
    assert links[:8] == [f"r{k}" for k in range(1, 9)]


def test_cells_say_what_they_belong_to_and_which_are_numbers(tmp_path):
    page = made(write(tmp_path, "x", result()), "--out", tmp_path / "r.html")
    cells = [(tag, a.get("scope"), a.get("class")) for tag, a in page.tags if tag in ("th", "td")]
    assert cells == [("th", "col", "t"), ("th", "col", "t"), ("th", "col", None),
                     ("th", "row", "t"), ("td", None, "t"), ("td", None, None)]  # fmt: skip


def test_nothing_that_stands_in_a_result_becomes_part_of_the_page(tmp_path):
    table = Table(EVIL, [EVIL], [[EVIL]], [EVIL])
    found = result(EVIL, title=EVIL, command=EVIL, machine={EVIL: EVIL}, versions={EVIL: EVIL},
                   tables=[table], pictures=[Picture("x.png", EVIL)])  # fmt: skip
    file = write(tmp_path / "<b>", "x", found)
    page = made(file, "--out", tmp_path / "r.html", "--title", EVIL)
    assert len(page.all("script")) == 1
    assert len(page.all("img")) == 1
    assert not page.all("b")
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert page.text.count(EVIL) >= 9


def test_the_page_forbids_itself_every_request_and_every_other_script(tmp_path):
    file = write(tmp_path, "x", result(pictures=[Picture("x.png", "x")]))
    page = made(file, "--out", tmp_path / "r.html")
    (policy,) = [m["content"] for m in page.all("meta") if "http-equiv" in m]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    sources = [attrs.get("src") or attrs.get("href") for tag, attrs in page.tags if tag != "a"]
    assert all(source.startswith("data:") for source in sources if source)


def test_a_picture_that_cannot_be_shown_is_a_line_on_page_and_terminal(tmp_path, capsys):
    pictures = [Picture(f"{name}.png", f"about {name}") for name in ("gone", "text", "short")]
    file = write(tmp_path / "x", "x", result(pictures=pictures))
    found = json.loads(file.read_text())
    found["pictures"].append({"file": "../secret.png", "title": "elsewhere"})
    found["pictures"].append({"file": "half\ud800.png", "title": "half\ud800"})
    file.write_text(json.dumps(found))
    png(tmp_path / "secret.png")
    (tmp_path / "x" / "gone.png").unlink()
    (tmp_path / "x" / "text.png").write_text("no picture")
    (tmp_path / "x" / "short.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    page = made(file, "--out", tmp_path / "r.html")
    assert not page.all("img")
    said = capsys.readouterr().out
    for line in ("'gone.png' is missing", "'text.png' is no PNG", "'short.png' is no PNG",
                 "'../secret.png' is not in the folder", "'half\\ud800.png'"):  # fmt: skip
        assert line in page.text
        assert line in said
    assert "about gone: picture 'gone.png' is missing" in page.text


def test_a_directory_is_searched_one_level_deep_and_what_is_no_result_is_named(tmp_path, capsys):
    root = tmp_path / "all"
    write(root, "top", result(title="on top"))
    write(root / "sub", "x", result(title="one below"))
    write(root / "sub" / "deep", "x", result(title="two below"))
    write(root / ".hidden", "x", result(title="hidden"))
    (root / "bundle.json").write_text("{}")
    page = made(root, root / "sub", "--out", tmp_path / "r.html")
    assert [page.text.count(t) > 0 for t in ("on top", "one below", "two below", "hidden")] == [
        True, True, True, False
    ]  # fmt: skip
    assert page.text.count("one below") == 2, "once, and in the contents"
    said = capsys.readouterr().out
    assert f"skipped: {root / 'bundle.json'}: no result; expected" in said
    assert said.count("skipped") == 1
    page = made(root, "--out", tmp_path / "r.html")
    assert "two below" not in page.text


def test_what_is_named_must_be_a_result(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.json").write_text("{}")
    for path, part in (("x.json", "no result; expected what"), ("none.json", "no such file"),
                       ("empty", "no result there; expected")):  # fmt: skip
        with pytest.raises(ConfigError, match=part):
            report(tmp_path / path, "--out", tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_a_page_is_made_again_but_no_other_file_is_overwritten(tmp_path):
    file, out = write(tmp_path, "x", result()), tmp_path / "r.html"
    report(file, "--out", out)
    before = out.read_bytes()
    report(file, "--out", out)
    assert out.read_bytes() == before, "from the same results the same page"
    report(file, "--out", out, "--title", "Other")
    assert b"<h1>Other</h1>" in out.read_bytes()
    foreign = tmp_path / "mine.html"
    foreign.write_text("<!doctype html><title>mine</title>")
    for path in (foreign, file):
        kept = path.read_bytes()
        with pytest.raises(ConfigError, match="mmf report did not write it; give another name"):
            report(file, "--out", path)
        assert path.read_bytes() == kept
    with pytest.raises(ConfigError, match="is a directory"):
        report(file, "--out", tmp_path)
    report(file, "--out", foreign, "--force")
    assert b"all about bench" in foreign.read_bytes()


def test_results_of_other_machines_and_versions_must_not_be_compared(tmp_path, capsys):
    here = write(tmp_path / "here", "x", result(versions={"numpy": "2.0", "torch": "2.15"}))
    there = write(tmp_path / "there", "x", result(machine=HERE | {"cpu": "another"},
                                                  versions={"numpy": "2.1"}))  # fmt: skip
    page = made(here, there, "--out", tmp_path / "r.html")
    said = capsys.readouterr().out
    for line in ("Results of 2 machines are on this page: times",
                 "Results with different versions are on this page (numpy): they"):  # fmt: skip
        assert line in page.text
        assert f"\nwarning: {line}" in f"\n{said}"
    assert [a.get("role") for t, a in page.tags if a.get("class") == "warning"] == ["note"]
    for part in ("a CPU, 2 cores, Linux: 1", "another, 2 cores, Linux: 2", "numpy 2.0: 1; 2.1: 2",
                 "torch 2.15: 1"):  # fmt: skip
        assert part in page.text
    alone = made(here, "--out", tmp_path / "r.html")
    assert not [a for _, a in alone.tags if a.get("class") in ("warning", "differs")]


def test_a_gpu_that_only_one_result_names_is_no_other_machine():
    with_gpu = HERE | {"gpu": "a GPU"}
    same = [result(machine=HERE), result(machine=with_gpu), result(machine=HERE)]
    assert machines(same) == [("a CPU, 2 cores, Linux, gpu a GPU", [1, 2, 3])]
    assert warnings(same) == []
    other = [*same, result(machine=HERE | {"gpu": "another"}), result(machine={})]
    assert [numbers for _, numbers in machines(other)] == [[1, 2, 3], [4], [5]]
    assert machines(other)[2][0] == "not recorded"
    assert machines([result(machine=HERE | {"cores": "1"})])[0][0] == "a CPU, 1 core, Linux"


def test_a_page_of_a_result_without_tables_and_of_one_that_was_moved_is_whole(tmp_path):
    file = write(tmp_path / "a", "x", result(tables=[], versions={}))
    shutil.move(tmp_path / "a", tmp_path / "b")
    page = made(tmp_path / "b" / file.name, "--out", tmp_path / "new" / "r.html")
    assert "all about bench" in page.text
    assert not page.all("table")

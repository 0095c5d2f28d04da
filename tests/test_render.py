"""Tables of the pages: from committed results, in the common form and in the ones before it."""

import dataclasses
import json
import re

import pytest

from mmf_deploy import results
from mmf_deploy.results import Picture, Result, Table
from tests.rendering import ROOT, render, tables

ALL = "docs/benchmarks.md"
LINK = "../benchmarks/results/scale-cpu/scale.json"


@pytest.mark.parametrize("page", render.PAGES)
def test_the_tables_of_a_page_come_from_the_committed_results(page):
    text = (ROOT / page).read_text()
    assert render.render(page, text) == text, "run: python benchmarks/render.py"


def test_every_committed_result_is_on_a_page_and_its_pictures_lie_beside_it():
    shown = {section.result for section in render.SECTIONS.values()}
    for path in render.RESULTS.rglob("*.json"):
        if path.parent.name == "runs":  # the single runs that the tables beside them are made of
            assert (path.parent.parent / "table3.json").is_file()
            continue
        assert path.relative_to(render.RESULTS).as_posix() in shown, path
        if "format" in json.loads(path.read_text()):
            for picture in results.read(path).pictures:
                assert (path.parent / picture.file).is_file(), picture.file


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


@pytest.fixture
def scale():
    """A result in the common form, as it lies in its file."""
    by_batch = Table("Cost by batch", ["", "b"], [["ort|fp32", "1.00 ms"]], ["fit: 0.9"])
    by_width = Table("Cost by width", ["", "w"], [["ort", "2.00 ms"]])
    return Result(
        kind="scale",
        title="What an image costs",
        command="python benchmarks/scale.py",
        machine={"cpu": "a CPU", "cores": "1", "system": "Linux", "gpu_memory": "none"},
        versions={"python": "3.11.7", "onnxruntime": "1.32.0"},
        tables=[by_batch, by_width],
        pictures=[Picture("batch.png", "Cost by batch"), Picture("width.png", "Cost by width")],
        content={"rows": []},
    ).as_dict()


def test_a_result_in_the_common_form_shows_origin_tables_notes_and_pictures(scale):
    assert tables.common.common(scale, LINK) == (
        "What an image costs. Measured on 1 core (a CPU), Linux, gpu memory none, by\n"
        "`python benchmarks/scale.py`\n"
        "([results](../benchmarks/results/scale-cpu/scale.json)), with python 3.11.7, "
        "onnxruntime 1.32.0.\n\n"
        "**Cost by batch**\n\n|  | b |\n| --- | ---: |\n| ort\\|fp32 | 1.00 ms |\n\n- fit: 0.9\n\n"
        "**Cost by width**\n\n|  | w |\n| --- | ---: |\n| ort | 2.00 ms |\n\n"
        "![Cost by batch](../benchmarks/results/scale-cpu/batch.png)\n\n"
        "![Cost by width](../benchmarks/results/scale-cpu/width.png)"
    )


def test_some_tables_and_pictures_of_a_result_are_chosen_by_words_of_their_titles(scale):
    text = tables.common.common(scale, LINK, tables=["width", "batch"], pictures=[])
    assert re.findall(r"\*\*(.*)\*\*", text) == ["Cost by width", "Cost by batch"]
    scale["title"] = "Cost by width"
    assert "**Cost by width**" not in tables.common.common(scale, LINK)
    assert "![" not in text
    with pytest.raises(SystemExit, match="'depth'; expected a part of: Cost by batch; Cost by w"):
        tables.common.common(scale, LINK, pictures=["depth"])


def test_a_result_from_before_the_common_form_has_a_function_of_its_own(scale):
    write = tables.common.either(lambda found, link: f"before: {found['rows']} {link}")
    assert write({"rows": [1]}, LINK) == f"before: [1] {LINK}"
    assert write(scale, LINK) == tables.common.common(scale, LINK)


def test_a_section_that_waits_for_its_result_names_the_command(monkeypatch, tmp_path, scale):
    section = dataclasses.replace(render.SECTIONS["scale"], pending="make bench-scale")
    monkeypatch.setattr(render, "SECTIONS", {"scale": section})
    monkeypatch.setattr(render, "RESULTS", tmp_path)
    page = "before\n<!-- begin scale -->\nold\n<!-- end scale -->\nafter\n"
    waiting = render.render(ALL, page)
    assert waiting == page.replace("old", "Not measured yet: `make bench-scale`")
    with pytest.raises(SystemExit, match="expected '<!-- begin scale -->'"):
        render.render(ALL, "no markers")
    (tmp_path / "scale-cpu").mkdir()
    (tmp_path / "scale-cpu" / "scale.json").write_text(json.dumps(scale))
    assert render.render(ALL, waiting) == page.replace("old", tables.common.common(scale, LINK))


def bench_row(variant="fp32", batch=1, threads=1, **changed):
    return {
        "engine": "onnxruntime", "variant": variant, "threads": threads, "batch": batch,
        "median_ms": 20.4 * batch, "p90_ms": 25.0, "images_per_s": 49.0, "speedup": 6.5,
        "versus": {"plain-fp32": 1.25}, "memory_mb": 85.6, **changed,
    }  # fmt: skip


def bench(rows):
    machine = {"cpu": "a CPU", "cores": "2"}
    graph = {"nodes": 290, "bytes": 722345}
    return {
        "machine": machine, "command": "mmf-bench", "parameters": 192545, "bundle": "digits",
        "rows": rows, "graphs": {"fp32": graph, "plain-fp32": graph},
    }  # fmt: skip


def test_rows_of_a_benchmark_are_read_from_before_and_from_now():
    now = {"memory_mb": None, "speedup": None, "versus": {}}
    renamed = bench_row("int8", peak_memory_mb=1234.4)
    del renamed["memory_mb"]
    rows = [
        bench_row(),
        renamed,
        bench_row("bf16", **now),
        bench_row(batch=8),
        bench_row(threads=2),
    ]
    text = tables.bench.speed(bench(rows), LINK)
    assert text.splitlines()[-3:] == [
        "| onnxruntime fp32 | 20 ms | 25 ms | 49.0 | 86 MB | 6.50× | 1.25× |",
        "| onnxruntime int8 | 20 ms | 25 ms | 49.0 | 1,234 MB | 6.50× | 1.25× |",
        "| onnxruntime bf16 | 20 ms | 25 ms | 49.0 |  |  |  |",
    ]
    assert tables.bench.latency(bench(rows), LINK).splitlines()[-2:] == [
        "| onnxruntime fp32 | 8 | 1 | 163 ms | 25 ms | 49.0 | 86 MB | 6.50× | 1.25× |",
        "| onnxruntime fp32 | 1 | 2 | 20 ms | 25 ms | 49.0 | 86 MB | 6.50× | 1.25× |",
    ]


def floor_row(engine, variant, ms, floor_ms, share):
    return {"engine": engine, "variant": variant, "median_ms": ms, "floor_ms": floor_ms,
            "of_floor": share}  # fmt: skip


def test_the_verdict_holds_every_engine_of_ours_against_the_target_of_its_type():
    rows = [
        floor_row("pytorch", "eager fp32", 80.0, 80.0, 1.0),
        floor_row("onnxruntime", "plain-fp32", 81.0, 80.0, 0.99),
        floor_row("onnxruntime", "fp32", 100.0, 80.0, 0.8),
        floor_row("openvino", "openvino-fp32", 90.0, 80.0, 0.89),
        floor_row("openvino", "openvino-int8", 40.0, 20.0, 0.5),
    ]
    text = tables.floor.verdict({"rows": rows}, LINK)
    assert text.splitlines()[-3:] == [
        "| openvino fp32 | 85% | 89% | 80.00 | 90.00 | reached |",
        "| onnxruntime fp32 | 85% | 80% | 80.00 | 100.00 | missed |",
        "| openvino int8 | 55% | 50% | 20.00 | 40.00 | missed |",
    ]
    assert "85% of the floor in fp32: **reached**, with 89% by openvino fp32" in text
    assert "55% of the floor in int8: **missed**, with 50% by openvino int8" in text
    with pytest.raises(SystemExit, match="no engine in int8, which has a target"):
        tables.floor.verdict({"rows": rows[:4]}, LINK)


def test_where_the_time_goes_is_shown_of_the_fastest_engine_of_each_type():
    found = json.loads((render.RESULTS / render.PROFILE).read_text())
    text = tables.floor.beyond(found, LINK)
    ours = [
        p for p in found["profiles"] if p["engine"] != "pytorch" and "plain" not in p["variant"]
    ]
    for dtype in ("fp32", "int8"):
        best = min((p for p in ours if p["variant"].endswith(dtype)), key=lambda p: p["plain_ms"])
        name = f"{best['engine']} {dtype}, batch 1"
        assert f"**Where the time beyond the floor goes: {name}" in text
    assert text.count("**Where the time") == 2


@pytest.mark.parametrize("name", ["service", "litserve", "ray", "demo", "web-page"])
def test_what_a_script_measured_is_in_the_common_form_with_the_rows_of_the_page(name):
    section = render.SECTIONS[name]
    found = results.read(render.RESULTS / section.result)
    assert found.kind == name
    (table,) = found.tables
    assert table.notes
    text = section.write(found.as_dict(), LINK).replace("`", "")
    for row in table.rows:
        assert f"| {' | '.join(row)} |" in text
    assert not set(found.content) & {"tables", "format", "machine"}


def test_an_overload_that_nothing_came_through_is_written_all_the_same():
    found = json.loads((render.RESULTS / "serve-cpu.json").read_text())
    level = found["overload"]["level"]
    level["deadline_met"], level["recovery"]["first_ms"] = None, None
    (table,) = tables.serving.service_result(found).tables
    rows = [value for what, value in table.rows if "overload" in what or "first images" in what]
    assert rows == ["none (80% refused with a time to come back)", "none"]


def test_folded_time_is_read_from_one_image_on_one_thread():
    rows = [
        bench_row("plain-fp32", median_ms=0.25),
        bench_row(median_ms=0.2, versus={"plain-fp32": 1.26}),
        *(bench_row(v, batch, 2, versus={"plain-fp32": 9.0}) for v in ("plain-fp32", "fp32")
          for batch in (1, 8)),
        bench_row(engine="pytorch", versus={"plain-fp32": 9.0}),
    ]  # fmt: skip
    assert tables.export.frozen_time(bench(rows), LINK).splitlines()[-2:] == [
        "| r and t as tensors of the graph (`plain-fp32`) | 290 | 0.72 MB | 0.250 ms |  |",
        "| folded (`fp32`) | 290 | 0.72 MB | 0.200 ms | 1.26× |",
    ]


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
    text = tables.training.objectives(found, LINK)
    assert text.splitlines()[-3:] == [
        "| `mmf` | 9.00 ± 1.41 | 98.0% ± 0.0% |",
        "| `mmf` with `jvp` | 9.00, 1 of 2 failed | 98.0% |",
        "| `paper-literal` | 1 of 1 failed |  |",
    ]
    assert f"`python benchmarks/objectives.py` ([results]({LINK}))" in text
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
    text = tables.training.bench_step(
        {"machine": {"cpu": "a CPU"}, "config": config, "rounds": 9, "rows": [flow, mmf],
         "command": "mmf bench-step"}, LINK
    )  # fmt: skip
    assert text.splitlines()[-2:] == [
        "| flow-matching |  |  |  | 100 ms | 1.00 |  |",
        "| mmf | 25% | 1 | `jvp` | 150 ms | 1.49 | 2.81 |",
    ]
    assert "`mmf bench-step`" in text

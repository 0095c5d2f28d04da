"""Dashboard, alerts and documentation ask for what GET /metrics gives, in PromQL that parses."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import promql_parser
import pytest
import yaml
from mmf_deploy.serve.service import Limits
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboards" / "mmf.json").read_text())
RULES = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"][0]["rules"]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]

BY_PROMETHEUS = {"job", "instance"}
"""Labels that a scrape adds."""

PAGES = [*(ROOT / "docs").glob("*.md"), DEPLOY / "README.md", ROOT / "README.md"]


def texts(panel):
    """The PromQL of a panel's queries."""
    return [target["expr"].replace("$__rate_interval", "1m") for target in panel["targets"]]


def expressions():
    """(where, PromQL) of everything that asks Prometheus for something."""
    for panel in PANELS:
        for number, text in enumerate(texts(panel), 1):
            yield f"{panel['title']} {number}", text
    for rule in RULES:
        yield rule["alert"], rule["expr"]


EXPRESSIONS = dict(expressions())


def selectors(text):
    """(metric, label names) of every selector of an expression."""
    found = []

    def note(node):
        if isinstance(node, promql_parser.VectorSelector):
            found.append((node.name, {m.name for m in node.matchers.matchers}))
        return True

    promql_parser.walk(promql_parser.parse(text), note)
    return found


@pytest.fixture(scope="module")
def exposed(tiny_bundle, tiny_formula, request):
    """Label names by sample, of a service to which everything that is counted has happened."""
    conftest = request.config.pluginmanager.get_plugin(str(Path(__file__).parent / "conftest.py"))
    engine = conftest.GatedEngine(tiny_bundle, tiny_formula)
    with conftest.serve(engine, Limits(max_queue_images=12)) as client:
        assert client.generate(seed=1).status_code == 200
        engine.shut()
        # more than a batch: what fails leaves a rest behind that is dropped
        failing = client.generating(n=12)
        assert engine.entered.acquire(timeout=10)
        assert client.generate(n=12).status_code == 503
        engine.error = RuntimeError("a batch fails")
        engine.gate.set()
        assert failing.result(10).status_code == 500
        client.portal.call(client.service.reload)
        text = client.get("/metrics").text
    labels = {"ALERTS": {"alertname", "alertstate"}, "up": set()}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    return labels


def test_two_selectors_with_their_labels_are_seen():
    text = 'sum by (le) (rate(a{x="1"}[1m])) / (b{y!="2", z=~"3"} offset 5m or vector(0))'
    assert selectors(text) == [("a", {"x"}), ("b", {"y", "z"})]


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_every_metric_and_label_that_is_asked_for_exists(where, exposed):
    found = selectors(EXPRESSIONS[where])
    assert found
    for metric, labels in found:
        assert metric in exposed, metric
        assert labels <= exposed[metric] | BY_PROMETHEUS, metric


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_what_is_grouped_by_are_labels_of_the_metrics(where, exposed):
    text = EXPRESSIONS[where]
    have = set.union(*(exposed[metric] for metric, _ in selectors(text))) | BY_PROMETHEUS
    for names in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", text):
        assert {name.strip() for name in names.split(",")} <= have


def test_legends_and_variables_name_labels_that_are_there(exposed):
    for panel in PANELS:
        for target, text in zip(panel["targets"], texts(panel), strict=True):
            kept = set().union(*(exposed[metric] for metric, _ in selectors(text))) | BY_PROMETHEUS
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= kept
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            metric, label = re.fullmatch(
                r"label_values\((\w+), (\w+)\)", variable["query"]["query"]
            ).groups()
            assert label in exposed[metric] | BY_PROMETHEUS


def test_every_metric_of_the_service_is_on_the_dashboard(exposed):
    asked = [metric for panel in PANELS for text in texts(panel) for metric, _ in selectors(text)]
    shown = {re.sub(r"_(bucket|sum|count)$", "", metric) for metric in asked}
    ours = {re.sub(r"_(bucket|sum|count|created)$", "", m) for m in exposed if m[:4] == "mmf_"}
    made = {m for m in ours if f"{m}_total" in ours}  # what `_created` leaves of a counter
    assert ours - made <= shown


def test_variables_of_the_dashboard_are_defined():
    names = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD)))
    assert used - {n for n in used if n.startswith("__")} <= names


def test_panels_have_ids_of_their_own_and_do_not_overlap():
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    taken = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_metrics_in_the_documentation_exist(page, exposed):
    for name in re.findall(r"\bmmf_(?!deploy\b)\w+[a-z]\b", page.read_text()):
        assert name in exposed or f"{name}_bucket" in exposed, name


def test_every_alert_is_documented_and_says_what_to_do():
    text = (ROOT / "docs" / "deploying.md").read_text()
    for rule in RULES:
        assert f"`{rule['alert']}`" in text, rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "description"}


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not():
    cases = yaml.safe_load((DEPLOY / "prometheus" / "alerts.test.yml").read_text())["tests"]
    for fires in (True, False):
        found = {test["alertname"] for case in cases for test in case["alert_rule_test"]
                 if ("exp_alerts" in test) is fires}  # fmt: skip
        assert found == {rule["alert"] for rule in RULES}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs Prometheus' promtool")
def test_the_cases_of_the_alerts_hold():
    for command in (["check", "config", "prometheus.yml"], ["test", "rules", "alerts.test.yml"]):
        done = subprocess.run(["promtool", *command], cwd=DEPLOY / "prometheus",
                              capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

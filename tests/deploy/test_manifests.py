"""Compose and Kubernetes files: valid by their schemas, and in agreement with the service."""

import re
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from mmf_deploy.serve import settings
from mmf_deploy.serve.cli import DRAIN
from mmf_deploy.serve.server import DRAIN_S
from mmf_deploy.serve.settings import Settings

# of this environment, whether it is activated or not
BIN = Path(sys.executable).parent
ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"
CLUSTER = DEPLOY / "kubernetes"
KUSTOMIZATION = yaml.safe_load((CLUSTER / "kustomization.yaml").read_text())
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
DEPLOYMENT = yaml.safe_load((CLUSTER / "deployment.yaml").read_text())
POD = DEPLOYMENT["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]
GRAFANA = DEPLOY / "grafana"


@pytest.mark.parametrize("name", KUSTOMIZATION["resources"])
def test_a_manifest_fits_the_schema_of_its_kind(name):
    manifest = yaml.safe_load((CLUSTER / name).read_text())
    kubernetes_validate.validate(manifest, "1.37", strict=True)


def test_a_field_that_does_not_exist_is_found():
    manifest = yaml.safe_load((CLUSTER / "service.yaml").read_text())
    manifest["spec"]["port"] = 80
    with pytest.raises(kubernetes_validate.ValidationError, match="port"):
        kubernetes_validate.validate(manifest, "1.37", strict=True)


def test_kustomize_names_every_manifest_and_they_select_the_same_pods():
    listed = {
        *KUSTOMIZATION["resources"],
        "kustomization.yaml",
        "servicemonitor.yaml",
        "serve.yaml",
    }
    assert {p.name for p in CLUSTER.glob("*.yaml")} == listed
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    for name in ("deployment", "disruption", "servicemonitor"):
        spec = yaml.safe_load((CLUSTER / f"{name}.yaml").read_text())["spec"]
        assert spec["selector"]["matchLabels"] == labels
    assert yaml.safe_load((CLUSTER / "service.yaml").read_text())["spec"]["selector"] == labels
    assert [image["name"] for image in KUSTOMIZATION["images"]] == [CONTAINER["image"]]
    generated = {generator["name"] for generator in KUSTOMIZATION["configMapGenerator"]}
    assert generated == {v["configMap"]["name"] for v in POD["volumes"] if "configMap" in v}
    claim = yaml.safe_load((CLUSTER / "bundle.yaml").read_text())["metadata"]["name"]
    assert claim in {v.get("persistentVolumeClaim", {}).get("claimName") for v in POD["volumes"]}


def test_pods_have_the_time_to_drain():
    wait_s = int(CONTAINER["lifecycle"]["preStop"]["exec"]["command"][1])
    delay_s = Settings().drain_delay
    assert POD["terminationGracePeriodSeconds"] > wait_s + delay_s + DRAIN_S
    grace_s = int(COMPOSE["services"]["mmf"]["stop_grace_period"].removesuffix("s"))
    assert grace_s > delay_s + DRAIN_S
    assert f"({delay_s})" in DRAIN  # what the command says is what is reckoned with here


def test_variables_of_a_container_are_settings():
    in_pod = {variable["name"] for variable in CONTAINER["env"]}
    in_image = re.findall(r"\bMMF_\w+(?==)", (ROOT / "Dockerfile").read_text())
    for name in {*in_pod, *in_image, *COMPOSE["services"]["mmf"]["environment"]}:
        assert name.startswith(settings.PREFIX)
        setting = name.removeprefix(settings.PREFIX).lower()
        assert setting == "config" or setting in Settings.model_fields, name


@pytest.mark.parametrize("path", [DEPLOY / "serve.yaml", CLUSTER / "serve.yaml"], ids=str)
def test_a_file_of_settings_is_taken(path):
    settings.read(path, {})


def test_the_example_of_settings_names_each_with_its_default():
    text = (DEPLOY / "serve.yaml").read_text()
    for name in Settings.model_fields:
        assert re.search(rf"^(# )?{name}:", text, re.MULTILINE), name
    assert settings.read(DEPLOY / "serve.yaml", {}) == Settings()


def test_the_example_of_settings_is_valid_with_each_line_in_use(tmp_path):
    text = (DEPLOY / "serve.yaml").read_text()
    lines = re.sub(r"^# (?=[a-z_]+:|  \w+:)", "", text, flags=re.MULTILINE)
    found = yaml.safe_load(lines)
    assert found.keys() == Settings.model_fields.keys()
    del found["models"], found["checkpoint"]  # each goes with another choice than the rest
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(found))
    assert settings.read(tmp_path / "serve.yaml", {}).threads == 2


def test_compose_fits_its_schema():
    done = subprocess.run(
        [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec",
         DEPLOY / "compose.yaml"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_a_service_of_compose_is_confined(name):
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert not service["user"].startswith("0:")
    assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory", "pids"}
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert "healthcheck" in service or "HEALTHCHECK" in (ROOT / "Dockerfile").read_text()


def test_a_pod_is_confined():
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert POD["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    user = f"{POD['securityContext']['runAsUser']}:{POD['securityContext']['runAsGroup']}"
    assert COMPOSE["services"]["mmf"]["user"] == user
    assert f"USER {user}\n" in (ROOT / "Dockerfile").read_text()


def test_probes_ask_paths_that_need_no_key():
    paths = {CONTAINER[f"{probe}Probe"]["httpGet"]["path"]
             for probe in ("startup", "readiness", "liveness")}  # fmt: skip
    assert paths == {"/healthz", "/readyz"}
    assert CONTAINER["livenessProbe"]["httpGet"]["path"] == "/healthz"


def test_grafana_finds_the_datasource_and_the_dashboard_of_compose():
    sources = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())
    url = sources["datasources"][0]["url"]
    host, port = re.fullmatch(r"http://(\w+):(\d+)", url).groups()
    assert COMPOSE["services"][host]["ports"] == [f"127.0.0.1:{port}:{port}"]
    provider = yaml.safe_load((GRAFANA / "provisioning/dashboards/mmf.yml").read_text())
    folder = provider["providers"][0]["options"]["path"]
    assert f"./grafana/dashboards:{folder}:ro" in COMPOSE["services"]["grafana"]["volumes"]
    for volume in ("./grafana/dashboards", "./grafana/provisioning", "./prometheus"):
        assert (DEPLOY / volume).is_dir()

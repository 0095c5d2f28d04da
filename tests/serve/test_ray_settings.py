"""What replicas on Ray are told, and what Ray's proxies do when one dies; without Ray."""

import asyncio
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from mmf_deploy.serve import ray_app
from mmf_deploy.serve.metrics import Metrics
from mmf_deploy.serve.ray_metrics import merged
from mmf_deploy.serve.ray_proxy import MAX_KEPT_BYTES, SecondTry, middlewares
from mmf_deploy.serve.ray_settings import RaySettings, placed, settings_of
from mmf_deploy.serve.settings import Settings
from starlette.testclient import TestClient

from mmf_deploy.engines.base import BUCKETS
from mmf_deploy.errors import ConfigError, MMFError

ROOT = Path(__file__).parents[2]


def test_the_texts_of_serve_run_are_understood(tiny_bundle):
    found = settings_of({"bundle": str(tiny_bundle), "replicas": "2", "num_cpus": "0.5"})
    assert (found.bundle, found.replicas, found.num_cpus) == (tiny_bundle, 2, 0.5)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"replica": 2}, "replica: no such setting (did you mean 'replicas'?)"),
        ({"replicas": "two"}, "replicas: input should be a valid integer"),
        ({"replicas": 3, "max_replicas": 2}, "max_replicas is 2, but there are 3 replicas"),
        ({"port": 8000}, "port: Ray's proxies listen, not the replicas"),
    ],
)
def test_wrong_settings_are_one_line_that_names_them(args, said):
    with pytest.raises(ConfigError) as e:
        settings_of(args)
    assert said in str(e.value)
    assert "\n" not in str(e.value)


def test_what_is_not_said_follows_from_the_bundle_and_the_threads(tiny_bundle, monkeypatch):
    monkeypatch.chdir(tiny_bundle.parent)
    found = placed(RaySettings(bundle=Path(tiny_bundle.name), threads=2))
    assert found.bundle == tiny_bundle
    assert (found.num_cpus, found.num_gpus, found.threads, found.target) == (2.0, 0.0, 2, 4.0)
    assert placed(RaySettings(bundle=tiny_bundle, num_cpus=3.5)).threads == 3
    assert placed(RaySettings(bundle=tiny_bundle, num_cpus=0.5)).threads == 1


def test_a_replica_on_cuda_takes_one_gpu_and_is_to_run_full_batches(tiny_bundle):
    found = placed(RaySettings(bundle=tiny_bundle, device="cuda"))
    assert (found.num_gpus, found.target) == (1.0, float(BUCKETS[-1]))


def test_a_missing_bundle_is_said_before_ray_starts_unless_nothing_depends_on_it(tmp_path):
    with pytest.raises(MMFError, match="no bundle here"):
        placed(RaySettings(bundle=tmp_path / "none"))
    assert placed(RaySettings(bundle=tmp_path / "none", num_gpus=1, target=8)).target == 8


def test_replicas_of_one_machine_share_its_cores(monkeypatch):
    monkeypatch.setattr(ray_app, "available_cores", lambda: 8)
    settings = Settings(max_queue=64, port=9, host="0.0.0.0")
    two, many = ray_app._spread(settings, 2), ray_app._spread(settings, 16)
    assert (two.threads, two.num_cpus, two.max_queue) == (4, 4.0, 64)
    assert (many.threads, many.num_cpus) == (1, 0.5)
    assert ray_app._spread(Settings(threads=2), 2).num_cpus == 2.0


def test_more_replicas_than_gpus_are_refused():
    with pytest.raises(ConfigError, match="take 2 GPUs, one each, and Ray finds 1 here"):
        ray_app._check_gpus(RaySettings(replicas=2, num_gpus=1), 1)


def test_a_replica_refuses_images_before_ray_refuses_requests():
    options = ray_app._options(RaySettings(max_queue=100, num_cpus=1, num_gpus=0, target=4))
    assert options["max_ongoing_requests"] > 100
    assert options["num_replicas"] == 1
    assert "autoscaling_config" not in options


def test_replicas_follow_the_load_between_their_bounds():
    options = ray_app._options(RaySettings(replicas=2, max_replicas=5, target=4))
    assert "num_replicas" not in options
    found = options["autoscaling_config"]
    assert (found["min_replicas"], found["max_replicas"]) == (2, 5)
    assert found["target_ongoing_requests"] == 4 < options["max_ongoing_requests"]


def test_the_last_line_of_what_ray_keeps_is_the_reason():
    class Deployment:
        message = "The deployment failed:\n  File x\nmmf_deploy.errors.EngineError: a: b\n\n"

    assert ray_app._reason(Deployment()) == "a: b"
    assert ray_app._reason(None) == "Ray does not say why"


def test_the_file_for_a_cluster_has_settings_that_are_understood():
    file = yaml.safe_load((ROOT / "deploy/ray/serve.yaml").read_text())
    (application,) = file["applications"]
    assert application["import_path"] == "mmf_deploy.serve.ray_app:app"
    assert application["name"] == ray_app.APPLICATION
    assert settings_of(application["args"]).max_replicas > 1


def test_no_image_of_the_committed_measurement_was_wrong():
    measure = runpy.run_path(str(ROOT / "benchmarks/serve_ray.py"))
    result = json.loads(measure["RESULT"].read_text())
    assert result["rows"]
    assert not any(row["wrong_images"] for row in result["rows"])


def test_nothing_imports_ray_before_it_is_asked_for():
    code = "import sys, mmf_deploy.serve.ray_app; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_metrics_of_two_replicas_are_one_text_that_tells_them_apart():
    one, two = Metrics(), Metrics()
    for metrics in (one, two, two):
        metrics.images.labels("digits", "fp32").inc(3)
    one.infer_seconds.labels("digits").observe(0.01)
    text = merged({"a": one.text(), "b": two.text()}).decode()
    assert 'mmf_images_total{model="digits",replica="a",variant="fp32"} 3.0' in text
    assert 'mmf_images_total{model="digits",replica="b",variant="fp32"} 6.0' in text
    assert 'mmf_infer_seconds_bucket{le="+Inf",model="digits",replica="a"} 1.0' in text
    assert 'mmf_infer_seconds_count{model="digits",replica="a"} 1.0' in text
    lines = text.splitlines()
    assert lines.count("# TYPE mmf_images_total counter") == 1
    assert lines.count("# TYPE mmf_infer_seconds histogram") == 1


class Replicas:
    """An application whose first calls end as Ray's proxy does when a replica dies."""

    def __init__(self, deaths: int) -> None:
        self.deaths = deaths
        self.bodies: list[bytes] = []

    async def __call__(self, scope, receive, send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.bodies.append(body)
        if len(self.bodies) > self.deaths:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": body})


def post(replicas: Replicas, body: bytes, path: str = "/v1/generate"):
    (middleware,) = middlewares()
    assert middleware.cls is SecondTry
    return TestClient(SecondTry(replicas)).post(path, content=body)


@pytest.mark.parametrize("deaths", [0, 1])
def test_a_request_is_made_again_where_its_replica_died(deaths):
    replicas = Replicas(deaths)
    reply = post(replicas, b"body")
    assert (reply.status_code, reply.content) == (200, b"body")
    assert replicas.bodies == [b"body"] * (deaths + 1)


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/v1/generate", {"code": "replica_lost"}),
        ("/v1/images/generations", {"type": "server_error"}),
    ],
)
def test_a_request_that_lost_two_replicas_is_told_to_come_back(path, error):
    replicas = Replicas(2)
    reply = post(replicas, b"body", path)
    assert reply.status_code == 503
    assert (reply.headers["Retry-After"], reply.headers["Retry-After-Ms"]) == ("1", "1000")
    assert error.items() <= reply.json()["error"].items()
    assert len(replicas.bodies) == 2


def test_a_request_too_large_to_keep_is_not_made_again():
    replicas = Replicas(1)
    assert post(replicas, bytes(MAX_KEPT_BYTES + 1)).status_code == 503
    assert len(replicas.bodies) == 1


def test_nothing_is_made_again_for_a_client_that_left():
    replicas, sent = Replicas(0), []

    async def gone():
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    asyncio.run(SecondTry(replicas)({"type": "http", "path": "/"}, gone, send))
    assert sent == replicas.bodies == []

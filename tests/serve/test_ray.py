"""The service on a real Ray, on this machine: two replicas, and what happens when one dies."""

import asyncio
import json
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from mmf_deploy import bundle

pytestmark = pytest.mark.ray

# the clients that the published measurement has; they try again and compare every image
SCRIPT = Path(__file__).parents[2] / "benchmarks/serve_ray.py"
sys.path.insert(0, str(SCRIPT.parent))  # as it is when the script is run
try:
    measure = SimpleNamespace(**runpy.run_path(str(SCRIPT)))
finally:
    sys.path.remove(str(SCRIPT.parent))

COMMAND = [sys.executable, "-c", "from mmf_deploy.cli import main_serve; main_serve()"]
PATIENCE_S = 90


class Cluster:
    """A running ``mmf-serve --ray N`` and every process below it."""

    def __init__(self, process: subprocess.Popen, errors: Path) -> None:
        self.process = process
        timer = threading.Timer(PATIENCE_S, process.kill)
        timer.start()
        self.line = process.stdout.readline()
        timer.cancel()
        assert self.line, errors.read_text()
        self.url = re.search(r"http://\S+", self.line).group()


@contextmanager
def ray_home():
    """Where Ray puts its files; the path is short, because sockets are among them."""
    home = Path(tempfile.mkdtemp(prefix="mmf-ray-"))
    try:
        yield home
    finally:
        until = time.monotonic() + 10
        while home.exists() and time.monotonic() < until:  # Ray's last processes still write there
            shutil.rmtree(home, ignore_errors=True)
            time.sleep(0.1)


@contextmanager
def started(replicas: int):
    """``mmf-serve --ray`` on a free port; nothing of it outlives the block."""
    with ray_home() as home, (home / "stderr").open("w") as errors:
        process = subprocess.Popen(
            [*COMMAND, "--ray", str(replicas), "--port", "0"],
            stdout=subprocess.PIPE, stderr=errors, text=True,
            env=os.environ | {"RAY_TMPDIR": str(home)},
        )  # fmt: skip
        below: list[psutil.Process] = []
        try:
            yield Cluster(process, home / "stderr")
        finally:
            if process.poll() is None:
                below = psutil.Process(process.pid).children(recursive=True)
                process.send_signal(signal.SIGTERM)
                process.wait(PATIENCE_S)
            process.stdout.close()
            for child in psutil.wait_procs(below, timeout=10)[1]:
                child.kill()


@pytest.fixture(scope="module")
def cluster():
    with started(2) as found:
        yield found


def generate(url: str, **body) -> httpx.Response:
    return httpx.post(f"{url}/v1/generate", json=body, timeout=PATIENCE_S)


def metric(text: str, pattern: str) -> float:
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines()
               if re.match(pattern, line))  # fmt: skip


def test_every_replica_answers_and_says_which_one_it_is(cluster):
    announced = r"serving digits \([0-9a-f]{12}\) on http://127\.0\.0\.1:\d+\n"
    assert re.fullmatch(announced, cluster.line)
    replies = [generate(cluster.url, seed=7) for _ in range(40)]
    assert {reply.status_code for reply in replies} == {200}
    assert len({reply.headers["X-MMF-Replica"] for reply in replies}) == 2
    assert len({reply.json()["images"][0]["png_base64"] for reply in replies}) == 1
    assert len(measure.replicas(cluster.process.pid)) == 2


def test_a_reply_has_one_request_id_the_one_that_was_given(cluster):
    reply = httpx.get(f"{cluster.url}/readyz", headers={"X-Request-Id": "mine-1"})
    assert reply.headers.get_list("X-Request-Id") == ["mine-1"]
    assert len(httpx.get(f"{cluster.url}/readyz").headers.get_list("X-Request-Id")) == 1


def test_errors_keep_their_status_and_format(cluster):
    reply = generate(cluster.url, seed="seven")
    assert reply.status_code == 422
    assert reply.json()["error"]["field"] == "seed"
    assert httpx.get(f"{cluster.url}/v1/modell").status_code == 404


def test_metrics_are_those_of_every_replica_whichever_is_asked(cluster):
    pattern = r'mmf_images_total\{.*replica="'
    made = len([generate(cluster.url, seed=7) for _ in range(30)])
    for _ in range(6):
        text = httpx.get(f"{cluster.url}/metrics").text
        samples = [line for line in text.splitlines() if re.match(pattern, line)]
        assert len(samples) == len(set(samples)) == 2
        assert metric(text, pattern) >= made
    assert len(re.findall("^# TYPE mmf_images_total ", text, re.MULTILINE)) == 1


def test_server_sent_events_come_through_one_by_one(cluster):
    arrived = []
    body = {"n": 200, "seed": 0, "stream": True}
    with httpx.stream("POST", f"{cluster.url}/v1/generate", json=body) as reply:
        assert reply.headers["Content-Type"].startswith("text/event-stream")
        for line in reply.iter_lines():
            if line.startswith("event: "):
                arrived.append((line.removeprefix("event: "), time.perf_counter()))
    assert Counter(kind for kind, _ in arrived) == {"image": 200, "done": 1}
    assert arrived[-1][0] == "done"
    assert arrived[0][1] < arrived[-1][1]


def test_work_of_clients_that_leave_is_dropped(cluster):
    host, port = cluster.url.removeprefix("http://").split(":")
    body = json.dumps({"n": 256, "seed": 0}).encode()
    head = f"POST /v1/generate HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    pattern = r'mmf_dropped_images_total\{.*reason="disconnect"'
    until = time.monotonic() + 20
    dropped = 0.0
    while not dropped and time.monotonic() < until:
        clients = [socket.create_connection((host, int(port))) for _ in range(16)]
        for client in clients:
            client.sendall(head + body)
        time.sleep(0.05)
        for client in clients:
            client.close()
        time.sleep(0.3)
        dropped = metric(httpx.get(f"{cluster.url}/metrics").text, pattern)
    assert dropped > 0


def test_a_killed_replica_costs_no_request_and_is_replaced(cluster, capsys):
    pid = cluster.process.pid
    before = {process.pid for process in measure.replicas(pid)}

    async def kill() -> dict[str, Any]:
        killing = measure.kill(cluster.url, pid, measure.images(), frozen_s=0.3)
        return await asyncio.wait_for(killing, PATIENCE_S)

    found = asyncio.run(kill())
    after = {process.pid for process in measure.replicas(pid)}
    assert found["wrong_images"] == 0
    assert found["requests"] > 50
    # the proxy asks the other replica itself, so clients need not even try again
    assert found["failed_tries"] == {}
    assert (len(before), len(before & after), len(after)) == (2, 1, 2)
    with capsys.disabled():
        print(f"\nkill -9 under load: {found}")


def test_a_signal_to_stop_lets_accepted_requests_finish():
    with started(1) as cluster, ThreadPoolExecutor(7) as pool:
        # 128 images each, enlarged, so that the replies take a while
        waiting = [pool.submit(generate, cluster.url, n=128, seed=k, size=256) for k in range(7)]
        while not any(future.done() for future in waiting):
            time.sleep(0.01)
        assert not all(future.done() for future in waiting)
        cluster.process.send_signal(signal.SIGTERM)
        assert cluster.process.wait(PATIENCE_S) == 0
        replies = [future.result() for future in waiting]
        assert [reply.status_code for reply in replies] == [200] * 7
        assert all(len(reply.json()["images"]) == 128 for reply in replies)


def test_a_bundle_that_misses_its_golden_images_never_becomes_ready(tiny_bundle, tmp_path):
    loaded = bundle.load(tiny_bundle)
    golden = loaded.golden()
    golden.outputs[3] += np.uint8(100)

    def fill(directory):
        shutil.copy(tiny_bundle / "model.fp32.onnx", directory)
        golden.save(directory / bundle.GOLDEN)

    bundle.write(tmp_path / "lying", loaded.manifest, fill)
    with ray_home() as home:
        done = subprocess.run(
            [*COMMAND, str(tmp_path / "lying"), "--ray", "1", "--port", "0"],
            capture_output=True, text=True, timeout=PATIENCE_S, check=False,
            env=os.environ | {"RAY_TMPDIR": str(home)},
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: no replica became ready: ")
    assert "golden image of seed 3 differs by" in last
    assert "Traceback" not in done.stderr

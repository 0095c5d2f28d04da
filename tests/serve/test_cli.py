import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest

from mmf_deploy import bundle

COMMAND = [sys.executable, "-c", "from mmf_deploy.cli import main_serve; main_serve()"]
PATIENCE_S = 30


def refused(*args: str) -> tuple[int, str]:
    """Run mmf-serve, which must give up; returns the exit code and the one line it said."""
    done = subprocess.run(
        [*COMMAND, *args], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ")
    return done.returncode, done.stderr


@pytest.fixture
def copy(tiny_bundle, tmp_path):
    """A copy of the tiny bundle, to be harmed."""
    return shutil.copytree(tiny_bundle, tmp_path / "copy")


def test_a_port_in_use_is_said_before_anything_else(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, line = refused(str(tmp_path / "missing"), "--port", str(port))
    assert code == 2
    assert line == (
        f"error: port {port} on 127.0.0.1 is in use; choose another: mmf-serve --port {port + 1}\n"
    )


def test_a_host_that_is_not_here_is_refused(tiny_bundle):
    code, line = refused(str(tiny_bundle), "--port", "0", "--host", "192.0.2.1")
    assert code == 2
    assert "cannot listen on 192.0.2.1" in line


def test_a_missing_bundle_is_refused(tmp_path):
    code, line = refused(str(tmp_path / "missing"), "--port", "0")
    assert code == 1
    assert f"{tmp_path / 'missing'}: no bundle here" in line


def test_a_corrupt_file_is_named_with_both_hashes(copy):
    graph = copy / "model.fp32.onnx"
    expected = bundle.load(copy).manifest.files[graph.name]
    graph.write_bytes(graph.read_bytes()[:-1])
    code, line = refused(str(copy), "--port", "0")
    assert code == 1
    assert f"{graph}: corrupt: expected SHA-256 {expected}, found " in line


def test_a_path_that_leaves_the_bundle_is_refused(copy):
    manifest = json.loads((copy / bundle.MANIFEST).read_text())
    manifest["files"]["../outside"] = "0" * 64
    (copy / bundle.MANIFEST).write_text(json.dumps(manifest))
    code, line = refused(str(copy), "--port", "0")
    assert code == 1
    assert "'../outside' leaves the bundle's directory" in line


def test_a_bundle_that_misses_its_golden_images_is_refused_after_the_engine_ran(copy, tmp_path):
    loaded = bundle.load(copy)
    golden = loaded.golden()
    golden.outputs[3] += np.uint8(100)

    def fill(directory):
        shutil.copy(copy / "model.fp32.onnx", directory)
        golden.save(directory / bundle.GOLDEN)

    bundle.write(tmp_path / "lying", loaded.manifest, fill)
    code, line = refused(str(tmp_path / "lying"), "--port", "0")
    assert code == 1
    assert "golden image of seed 3 differs by" in line


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--engine", "onnxruntim"], 1, "did you mean 'onnxruntime'?"),
        (["--variant", "int4"], 1, "no variant 'int4'; it has fp32"),
        (["--device", "cuda"], 1, "cannot run here"),
        (["--checkpoint", "somewhere"], 2, "--engine pytorch"),
        (["--engine", "pytorch"], 2, "--checkpoint"),
    ],
)
def test_an_engine_that_cannot_run_is_refused(tiny_bundle, args, code, said):
    found, line = refused(str(tiny_bundle), "--port", "0", *args)
    assert found == code
    assert said in line


def test_a_flag_for_models_wins_over_a_variable_for_a_bundle(tmp_path, monkeypatch):
    monkeypatch.setenv("MMF_SERVE_BUNDLE", str(tmp_path / "by-variable"))
    assert "by-flag: no bundle" in refused("--port", "0", "--model", f"a={tmp_path / 'by-flag'}")[1]
    monkeypatch.delenv("MMF_SERVE_BUNDLE")
    monkeypatch.setenv("MMF_SERVE_MODEL", f"a={tmp_path / 'by-variable'}")
    assert "by-flag: no bundle" in refused("--port", "0", str(tmp_path / "by-flag"))[1]
    both = refused("--port", "0", str(tmp_path / "b"), "--model", f"a={tmp_path / 'c'}")
    assert both[0] == 2
    assert "either one bundle or named models" in both[1]


class Running:
    """An mmf-serve process; ``port`` is what it printed."""

    def __init__(self, path, env=None) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, str(path), "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        # a server that never gets ready must not hang the tests
        watchdog = threading.Timer(PATIENCE_S, self.process.kill)
        watchdog.start()
        self.line = self.process.stdout.readline()
        watchdog.cancel()

    @property
    def port(self) -> int:
        return int(self.line.rsplit(":", 1)[1])

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.process.kill()
        self.process.communicate()

    def stop(self, sig) -> tuple[int, str, str]:
        self.process.send_signal(sig)
        out, err = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, out, err


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_without_torch_and_a_signal_ends_it_cleanly(tiny_bundle, tmp_path, sig):
    (tmp_path / "torch.py").write_text("raise ImportError('torch must not be imported')\n")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with Running(tiny_bundle, env) as server:
        digest = bundle.load(tiny_bundle).digest
        assert server.line == f"serving tiny ({digest[:12]}) on http://127.0.0.1:{server.port}\n"
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
        with contextlib.closing(connection):
            connection.request("GET", "/readyz")
            reply = connection.getresponse()
            assert reply.status == 200, "the line is printed once it is ready"
            reply.read()
            connection.request("POST", "/v1/generate", '{"n": 2, "seed": 1}')
            body = json.loads(connection.getresponse().read())
        assert body["bundle"] == digest
        assert [i["seed"] for i in body["images"]] == [1, 2]
        assert server.stop(sig) == (0, "", "")


def test_two_servers_on_port_0_get_different_ports(tiny_bundle):
    with Running(tiny_bundle) as one, Running(tiny_bundle) as two:
        assert one.port != two.port

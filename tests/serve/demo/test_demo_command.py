"""`mmf-demo` as a process: what it says, what it serves, how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import httpx
import pytest
from mmf_deploy.serve.demo import launch

from mmf_deploy.errors import DependencyError, MMFError
from mmf_deploy.spec import SampleSpec

COMMAND = [sys.executable, "-m", "mmf_deploy.cli", "demo"]
PATIENCE_S = 60


def refused(*args, **environment) -> tuple[int, str]:
    """Run mmf-demo, which must give up; returns the exit code and the one line it said."""
    done = subprocess.run(
        [*COMMAND, *args], capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        env=os.environ | environment,
    )  # fmt: skip
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ")
    return done.returncode, done.stderr


@contextmanager
def running(*args, end=signal.SIGINT, **environment):
    """``(address, line)`` of mmf-demo; at the end it must stop at once and have said nothing."""
    child = subprocess.Popen(
        [*COMMAND, *map(str, args), "--port", "0"], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env=os.environ | environment,
    )  # fmt: skip
    try:
        line = child.stdout.readline()
        assert line, child.stderr.read()
        yield re.search(r"http://\S+", line)[0], line
        child.send_signal(end)
        out, err = child.communicate(timeout=PATIENCE_S)
        assert (child.returncode, out, err) == (0, "", "")
    finally:
        child.kill()
        child.communicate()


@pytest.fixture(scope="module")
def address():
    with running() as (found, line):
        assert line == f"demo of digits (in this process) on {found}\n"
        yield found


def test_a_missing_bundle_is_one_line(tmp_path):
    code, line = refused(str(tmp_path / "missing"))
    assert (code, f"{tmp_path / 'missing'}: no bundle here" in line) == (1, True)


def test_a_service_that_is_down_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    code, line = refused("--url", f"http://127.0.0.1:{port}", "--port", "0")
    assert code == 1
    assert f"http://127.0.0.1:{port}: " in line
    assert "is mmf-serve running there?" in line


def test_vectors_are_refused(make_tiny_bundle):
    code, line = refused(str(make_tiny_bundle(SampleSpec(shape=(2,)))), "--port", "0")
    assert code == 2
    assert "makes vectors" in line


def test_a_port_in_use_names_another():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, line = refused("--port", str(port))
    assert code == 2
    assert f"choose another: mmf-demo --port {port + 1}" in line


@pytest.mark.parametrize(
    ("args", "environment", "said"),
    [
        (["x", "--url", "http://127.0.0.1:1"], {}, "BUNDLE x with --url"),
        (["--threads", "2", "--url", "http://127.0.0.1:1"], {}, "--threads 2 with --url"),
        (["--url", "127.0.0.1:1"], {}, "expected http://HOST:PORT"),
        (["--auth", "me"], {}, "--auth: expected USER:PASSWORD"),
        ([], {"MMF_DEMO_AUTH": "me:a me:b"}, "'me' is given twice"),
    ],
)
def test_wrong_options_are_one_line(args, environment, said):
    code, line = refused(*args, "--port", "0", **environment)
    assert (code, said in line) == (2, True), line


def test_the_page_names_no_other_machine_in_what_it_loads(address):
    page = httpx.get(address).text
    assert "<title>digits: noise to image in one step</title>" in page
    assert httpx.get(f"{address}/favicon.ico").headers["content-type"] == "image/svg+xml"
    assert "http" not in re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    loaded = re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"([^\"]+)\"", page)
    assert loaded
    assert [url for url in loaded if "//" in url] == []
    assert "@import" not in page + httpx.get(f"{address}/theme.css").text
    assert "//" not in re.sub(r"xmlns='[^']*'", "", httpx.get(f"{address}/theme.css").text)


@pytest.mark.parametrize("door", ["gradio_api/upload", "gradio_api/proxy=http://a", "monitoring"])
def test_doors_that_nobody_needs_are_shut(address, door):
    content = {"files": ("a", b"x")}
    reply = httpx.post(f"{address}/{door}", files=content)
    assert reply.status_code == 404
    assert httpx.get(f"{address}/docs").status_code == 404


async def opened(client, address, user, query=""):
    """What a visitor gets to see first, by the protocol that the page speaks."""
    config = (await client.get(f"{address}/config")).json()
    [load] = [d for d in config["dependencies"] if any(t[1] == "load" for t in d["targets"])]
    session = {"session_hash": f"user{user}"}
    body = {"data": [], "fn_index": load["id"], "trigger_id": None, **session}
    joined = await client.post(f"{address}/gradio_api/queue/join{query}", json=body)
    assert joined.status_code == 200, joined.text
    events = f"{address}/gradio_api/queue/data"
    async with client.stream("GET", events, params=session) as stream:
        async for line in stream.aiter_lines():
            event = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
            if event.get("msg") == "process_completed":
                assert event["success"], event
                return json.dumps(event["output"]["data"])
    return ""


def test_ten_visitors_at_once_get_their_images(address):
    async def all_of_them():
        async with httpx.AsyncClient(timeout=PATIENCE_S) as client:
            return await asyncio.gather(*(
                opened(client, address, k, f"?seed={100 + k}&label={k}&count=4") for k in range(10)
            ))  # fmt: skip

    for k, content in enumerate(asyncio.run(all_of_them())):
        assert [f'{k}, seed {100 + k + j}\\"' in content for j in range(4)] == [True] * 4


def test_who_has_no_password_sees_nothing_and_the_next_signal_ends_it(tmp_path):
    file = tmp_path / "guests"
    file.write_text("me:pass:word\n")
    with running("--auth-file", file, end=signal.SIGTERM) as (address, _):
        assert httpx.get(f"{address}/config").status_code == 401
        login = {"username": "me", "password": "word"}
        assert httpx.post(f"{address}/login", data=login).status_code == 400
        with httpx.Client() as client:
            login["password"] = "pass:word"
            assert client.post(f"{address}/login", data=login).status_code == 200
            assert client.get(f"{address}/config").status_code == 200


def test_without_gradio_it_says_what_to_install(tiny_bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "True")  # put back afterwards
    with pytest.raises(DependencyError, match=r'pip install "mmf-deploy\[demo\]"'):
        launch.launch(launch.Settings(bundle=tiny_bundle, port=0))


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as found:
        yield found


def test_sharing_says_the_public_address_and_who_may_use_it(listener, monkeypatch, capsys):
    from gradio import networking

    asked = []
    monkeypatch.setattr(
        networking, "setup_tunnel", lambda *a: asked.append(a) or "https://x.gradio.live"
    )
    assert launch._share(listener, []) == "https://x.gradio.live"
    assert "whoever has the public address can use this demo" in capsys.readouterr().err
    assert asked[0][:2] == listener.getsockname()
    launch._share(listener, [("me", "x")])
    assert capsys.readouterr().err == ""


def test_sharing_that_fails_is_one_line(listener, monkeypatch):
    from gradio import networking

    def fail(*_):
        raise RuntimeError("no\nroute")

    monkeypatch.setattr(networking, "setup_tunnel", fail)
    with pytest.raises(MMFError, match=r"no public address could be had \(no route\); start"):
        launch._share(listener, [("me", "x")])

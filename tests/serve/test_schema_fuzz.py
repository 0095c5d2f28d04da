"""/openapi.json against the service: schemathesis asks what it allows, and what it does not."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import uvicorn
from mmf_deploy.serve.api_keys import KeyRing
from mmf_deploy.serve.app import create_app
from mmf_deploy.serve.front import Front
from mmf_deploy.serve.key_file import Key, digest_of
from mmf_deploy.serve.listen import listen
from mmf_deploy.serve.service import Limits, Service, State

from mmf_deploy import bundle
from mmf_deploy.engines.base import open_engine
from mmf_deploy.spec import SampleSpec
from tests.stepped import write_stepped_bundle

PATIENCE_S = 10
CHECKS = (
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
OF_A_READY_SERVICE = (*CHECKS, "not_a_server_error", "unsupported_method")

# paths that lead somewhere are seldom found by chance
KNOWN = {
    "label": ["0", "9", "3"],
    "file": ["0.png", "7.jpg", "9223372036854775807.webp"],
    "name": ["tiny"],
    "model_name": ["tiny"],
}


class Listening(NamedTuple):
    url: str
    document: dict[str, Any]


@contextmanager
def listening(engine, front=None, until=State.READY) -> Iterator[Listening]:
    """A service on a socket that makes few images a request, so that none takes long."""
    reached = threading.Event()
    service = Service(
        {"tiny": lambda: [engine]},
        Limits(max_images=8),
        lambda state: reached.set() if state is until else None,
    )
    app = create_app(service, front)
    config = uvicorn.Config(app, log_config=None, log_level="error", ws="none", lifespan="on")
    server, listener = uvicorn.Server(config), listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        assert reached.wait(PATIENCE_S), service.failure
        yield Listening(f"http://127.0.0.1:{listener.getsockname()[1]}", app.openapi())
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
        listener.close()


def config_of(digest: str) -> str:
    known = {**KNOWN, "bundle": [digest], "model_version": [digest[:12], digest, "1"]}
    lines = ["[parameters]"]
    lines += [f"{name} = {{dictionary = '{name}', probability = 0.8}}" for name in known]
    for name, values in known.items():
        lines += [f"[dictionaries.{name}]", f"values = {values}"]
    return "\n".join([*lines, "[warnings]", "fail-on = ['unresolvable_reference']"])


@pytest.fixture
def fuzz(tmp_path) -> Callable[..., None]:
    """Runs schemathesis as a program on a service, and fails with what it printed."""

    def run(service: Listening, digest: str, *options: str, checks=CHECKS) -> None:
        (tmp_path / "schemathesis.toml").write_text(config_of(digest))
        (tmp_path / "openapi.json").write_text(json.dumps(service.document))
        command = [sys.executable, "-m", "schemathesis.cli", "run", "openapi.json", "--no-color",
                   "--url", service.url, "--checks", ",".join(checks), "--continue-on-failure",
                   "--generation-deterministic", "--request-timeout", "60", *options]  # fmt: skip
        environment = {"PATH": "", "NO_PROXY": "127.0.0.1"}
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"

    return run


SHORT = ("--phases", "examples,coverage,fuzzing", "--max-examples", "5")
LONG = ("--phases", "examples,coverage,fuzzing,stateful", "--max-examples", "100")


def test_every_reply_is_a_documented_one(fuzz, tiny_bundle, tmp_path):
    found = bundle.load(write_stepped_bundle(tiny_bundle, tmp_path / "stepped"))
    # the whole way of an image is to be had as well
    with listening(open_engine("onnxruntime", found, "fp32-4step")) as service:
        fuzz(service, found.digest, *SHORT, checks=OF_A_READY_SERVICE)


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec",
    [
        SampleSpec(shape=(1, 8, 8), classes=10),
        SampleSpec(shape=(3, 4, 6), classes=2, class_names=("cat", "dog"), guidance=(1.0, 4.0)),
        SampleSpec(shape=(3, 4, 4)),
        SampleSpec(shape=(2,)),
    ],
    ids=["numbers", "names", "no-classes", "vectors"],
)
def test_every_reply_is_a_documented_one_whatever_the_model_is(fuzz, make_tiny_bundle, spec):
    found = bundle.load(make_tiny_bundle(spec))
    with listening(open_engine("onnxruntime", found)) as service:
        fuzz(service, found.digest, *LONG, checks=OF_A_READY_SERVICE)


@pytest.mark.slow
def test_every_refusal_without_a_key_is_a_documented_one(fuzz, gated):
    ring = KeyRing([Key(name="ci", sha256=digest_of("right").hex())])
    with listening(gated, Front(keys=ring)) as service:
        fuzz(service, gated.bundle.digest, *SHORT)


@pytest.mark.slow
def test_every_refusal_of_a_service_that_is_not_ready_is_a_documented_one(fuzz, gated):
    gated.error = MemoryError("no room")
    with listening(gated, until=State.FAILED) as service:
        fuzz(service, gated.bundle.digest, *SHORT)

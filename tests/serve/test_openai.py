"""OpenAI's images protocol, spoken by the official client to a server on a socket."""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import httpx
import numpy as np
import openai
import pytest
import uvicorn
from mmf_deploy.serve.api_keys import KeyRing
from mmf_deploy.serve.app import create_app
from mmf_deploy.serve.front import Front
from mmf_deploy.serve.key_file import Key, digest_of
from mmf_deploy.serve.listen import listen
from mmf_deploy.serve.openai_prompt import label_of_prompt, prompt_for
from mmf_deploy.serve.openai_schema import ImagesRequest, bad_requests, parse, resolve, scale_of
from mmf_deploy.serve.service import Limits, Service, State
from PIL import Image

from mmf_deploy import bundle
from mmf_deploy.engines.base import open_engine
from mmf_deploy.errors import RequestError
from mmf_deploy.spec import SampleSpec

ANIMALS = SampleSpec(
    shape=(3, 4, 6),
    classes=5,
    class_names=("cat", "Dog", "sea lion", "lion", "T-shirt"),
    guidance=(1.0, 4.0),
)
PATIENCE_S = 10
NUMBERED = SampleSpec(shape=(1, 8, 8), classes=10)


# What a prompt means


@pytest.mark.parametrize(
    ("prompt", "label"),
    [
        ("cat", 0),
        ("DOG", 1),
        ("a photo of a dog.", 1),
        ("dog, dog and dog", 1),
        ("a sea lion", 2),
        ("sea_lion", 2),
        ("lion of the sea", 3),
        ("t shirt", 4),
        ("4", 4),
        ("class 4, please", 4),
        ("2 pictures of a dog", 1),
        ("04", None),
        ("4.0", None),
        ("99", None),
        ("category", None),
        ("cats", None),
        ("", None),
        ("a house", None),
    ],
)
def test_prompt_chooses_the_class_that_it_names(prompt, label):
    assert label_of_prompt(prompt, ANIMALS) == label


@pytest.mark.parametrize("prompt", ["cat and dog", "sea lion or lion", "3 or 4"])
def test_prompt_that_names_two_classes_is_refused(prompt):
    with pytest.raises(RequestError, match=r"names 2 classes.*class_label") as e:
        label_of_prompt(prompt, ANIMALS)
    assert (e.value.status, e.value.field) == (400, "prompt")


def test_number_is_a_class_where_classes_have_no_names():
    assert label_of_prompt("a handwritten 7", NUMBERED) == 7
    assert label_of_prompt("7", SampleSpec(shape=(1, 8, 8))) is None


def test_names_that_differ_in_case_alone_can_each_be_asked_for():
    letters = SampleSpec(shape=(1, 8, 8), classes=2, class_names=("a", "A"))
    assert [label_of_prompt(p, letters) for p in ("a", "A")] == [0, 1]


@pytest.mark.parametrize(
    "spec",
    [
        ANIMALS,
        NUMBERED,
        SampleSpec(shape=(1, 8, 8), classes=3, class_names=("crane", "crane", " ")),
    ],
)
def test_every_class_has_a_prompt_that_gives_it_again(spec):
    prompts = [prompt_for(label, spec) for label in range(spec.classes)]
    assert [label_of_prompt(p, spec) for p in prompts] == list(range(spec.classes))


# What a request means


@pytest.mark.parametrize(
    ("body", "param", "code", "text"),
    [
        ("{}", "prompt", "missing_required_parameter", "prompt is required"),
        ('{"prompt": ["a", "b"]}', "prompt", "invalid_type", "valid string"),
        ('{"prompt": null}', "prompt", "invalid_type", "valid string"),
        ('{"prompt": "%s"}' % ("x" * 32_001), "prompt", "invalid_value", "32000"),
        ('{"prompt": "a", "n": 11}', "n", "invalid_value", "10"),
        ('{"prompt": "a", "n": true}', "n", "invalid_type", "integer"),
        ('{"prompt": "a", "sede": 1}', "sede", "unknown_parameter", "did you mean 'seed'"),
        ('{"prompt": "a", "output_format": "gif"}', "output_format", "invalid_value", "webp"),
        ('{"prompt": "a", "quality": "best"}', "quality", "invalid_value", "hd"),
        ('{"prompt": "a", "class_label": 1.5}', "class_label", "invalid_type", "class name"),
        ('{"prompt": "a", "partial_images": 1}', "partial_images", "invalid_value", "one go"),
        ('{"prompt": "a", "output_compression": 50}', "output_compression", "invalid_value", "png"),
        (
            '{"prompt": "a", "stream": true, "response_format": "url"}',
            "response_format", "invalid_value", "b64_json",
        ),
        (
            '{"prompt": "a", "response_format": "url", "output_format": "webp", '
            '"output_compression": 50}',
            "output_compression", "invalid_value", "one quality",
        ),
        ("[]", None, "invalid_value", "JSON object"),
        ("prompt=a", None, "invalid_json", "not JSON"),
        ("[" * 100_000, None, "invalid_json", "recursion"),
    ],
)  # fmt: skip
def test_wrong_request_is_refused_with_its_parameter(body, param, code, text):
    with pytest.raises(RequestError, match=text) as e:
        parse(body.encode())
    assert (e.value.status, e.value.field, e.value.code) == (400, param, code)


def test_null_is_the_same_as_absent_but_for_the_prompt():
    names = ", ".join(f'"{name}": null' for name in ImagesRequest.model_fields if name != "prompt")
    assert parse(f'{{"prompt": "7", {names}}}'.encode()) == ImagesRequest(prompt="7")


@pytest.mark.parametrize(
    ("size", "scale"),
    [(None, 1), ("auto", 1), ("6x4", 1), ("12x8", 2), ("1020x680", 170)],
)
def test_size_is_the_models_own_or_a_whole_multiple(size, scale):
    assert scale_of(size, ANIMALS) == scale


@pytest.mark.parametrize("size", ["4x6", "7x4", "0x0", "6x8", "1026x684", "1024x1024", "big", ""])
def test_other_size_is_refused_with_those_on_offer(size):
    with pytest.raises(RequestError, match="multiple of 6x4 up to 1020x680: 6x4, 12x8") as e:
        scale_of(size, ANIMALS)
    assert (e.value.status, e.value.field) == (400, "size")


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"class_label": "dogg"}, "class_label"),
        ({"class_label": 5}, "class_label"),
        ({"guidance_scale": 4.5}, "guidance_scale"),
        ({"n": 9}, "n"),
        ({"n": 2, "seed": 2**63 - 1}, "seed"),
    ],
)
def test_value_that_does_not_fit_the_model_is_refused_with_its_parameter(wrong, param):
    with pytest.raises(RequestError, match=f"^{param}: ") as e, bad_requests():
        resolve(ImagesRequest(prompt="cat", **wrong), ANIMALS, max_images=8)
    assert (e.value.status, e.value.field) == (400, param)


def test_class_label_wins_over_the_prompt_and_no_class_means_one_by_the_seed():
    def labels(**body):
        return [item.label for item in resolve(ImagesRequest(seed=8, n=2, **body), NUMBERED, 8)]

    assert labels(prompt="3", class_label=4) == [4, 4]
    assert labels(prompt="3") == [3, 3]
    assert labels(prompt="some") == [8, 9]


# The official client


class Listening(NamedTuple):
    url: str
    service: Service


def wait_until(condition) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


@contextmanager
def listening(engines, front=None, limits=None) -> Iterator[Listening]:
    """A service on a socket, one engine a model."""
    ready = threading.Event()
    sources = {name: partial(lambda e: [e], engine) for name, engine in engines.items()}
    service = Service(sources, limits, lambda s: ready.set() if s is State.READY else None)
    app = create_app(service, front)
    config = uvicorn.Config(app, log_config=None, log_level="error", ws="none", lifespan="on")
    server, listener = uvicorn.Server(config), listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        assert ready.wait(PATIENCE_S), service.failure
        yield Listening(f"http://127.0.0.1:{listener.getsockname()[1]}", service)
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
        listener.close()


@contextmanager
def talking(url, key="unused", retries=0, **hooks) -> Iterator[openai.OpenAI]:
    http = openai.DefaultHttpxClient(trust_env=False, event_hooks=hooks)
    with openai.OpenAI(
        base_url=url, api_key=key, max_retries=retries, timeout=PATIENCE_S, http_client=http
    ) as client:
        yield client


@pytest.fixture(scope="module")
def url(tiny_bundle, make_tiny_bundle) -> Iterator[str]:
    points = SampleSpec(shape=(2,))
    paths = {
        "digits": tiny_bundle,
        "animals": make_tiny_bundle(ANIMALS),
        "points": make_tiny_bundle(points),
    }
    engines = {n: open_engine("onnxruntime", bundle.load(p)) for n, p in paths.items()}
    with listening(engines) as found:
        yield found.url


@pytest.fixture(scope="module")
def client(url) -> Iterator[openai.OpenAI]:
    with talking(url + "/v1") as found:
        yield found


def native(client, **body):
    """PNGs of the native route."""
    reply = client.post("/generate", body=body, cast_to=object)
    return [base64.b64decode(image["png_base64"]) for image in reply["images"]]


def pixels(encoded: bytes):
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(image), image.format


def test_images_are_those_of_the_native_route(client):
    reply = client.images.generate(prompt="a 7", n=3, extra_body={"seed": 5})
    made = [base64.b64decode(image.b64_json) for image in reply.data]
    assert made == native(client, n=3, seed=5, labels=7)
    assert [(i.seed, i.class_label, i.revised_prompt) for i in reply.data] == [
        (5, 7, "7"), (6, 7, "7"), (7, 7, "7"),
    ]  # fmt: skip
    assert (reply.size, reply.output_format, reply.background) == ("8x8", "png", "opaque")
    assert (reply.model, reply.variant) == ("digits", "fp32")
    assert reply.created > 1_700_000_000


def test_prompt_class_label_guidance_and_size_reach_the_model(client):
    reply = client.images.generate(
        model="animals", prompt="a lion and a dog", n=1, size="12x8",
        extra_body={"seed": 3, "class_label": "sea lion", "guidance_scale": 2.5, "steps": 1,
                    "priority": "high", "deadline_ms": 5000.0},
    )  # fmt: skip
    body = {"model": "animals", "seed": 3, "labels": 2, "guidance": 2.5, "size": 8}
    assert base64.b64decode(reply.data[0].b64_json) == native(client, **body)[0]
    assert reply.data[0].class_label == 2
    assert reply.data[0].guidance_scale == 2.5
    assert reply.size == "12x8"


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_url_holds_the_image_and_never_changes(client, url, kind):
    asked = {
        "model": "animals", "prompt": "dog", "size": "12x8", "output_format": kind,
        "extra_body": {"seed": 9, "guidance_scale": 1.5},
    }  # fmt: skip
    address = client.images.generate(response_format="url", **asked).data[0].url
    assert address.startswith(url + "/v1/images/")
    raw = httpx.get(address, trust_env=False)
    assert raw.headers["content-type"] == f"image/{kind}"
    assert "immutable" in raw.headers["cache-control"]
    inline = client.images.generate(response_format="b64_json", **asked).data[0].b64_json
    assert raw.content == base64.b64decode(inline)
    assert pixels(raw.content)[0].shape == (8, 12, 3)


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_output_compression_is_the_quality(client, kind):
    def image(**options):
        asked = {"model": "animals", "prompt": "cat", "size": "48x32", "extra_body": {"seed": 1}}
        reply = client.images.generate(**asked, **options)
        return pixels(base64.b64decode(reply.data[0].b64_json))

    exact, _ = image()
    errors = []
    for quality in (0, 50, 100):
        found, format_name = image(output_format=kind, output_compression=quality)
        assert format_name == kind.upper()
        errors.append(np.abs(found.astype(int) - exact).mean())
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 1.2 * errors[2]


def test_values_without_effect_are_accepted(client):
    reply = client.images.generate(
        prompt="1", user="u", quality="hd", style="vivid", background="transparent",
        moderation="low", safety_identifier="x", extra_body={"seed": 1, "complexity": "low"},
    )  # fmt: skip
    assert base64.b64decode(reply.data[0].b64_json) == native(client, seed=1, labels=1)[0]


def test_stream_gives_each_image_as_an_event(client):
    made = native(client, n=4, seed=20, labels=2)
    with client.images.generate(
        prompt="2", n=4, stream=True, partial_images=0, extra_body={"seed": 20}
    ) as stream:
        events = list(stream)
        assert "bucket;desc=" in stream.response.headers["server-timing"]
    assert [base64.b64decode(e.b64_json) for e in events] == made
    assert [(e.index, e.seed) for e in events] == [(0, 20), (1, 21), (2, 22), (3, 23)]
    assert {(e.type, e.size, e.output_format, e.usage.total_tokens) for e in events} == {
        ("image_generation.completed", "8x8", "png", 0)
    }


def test_async_client_generates_and_streams(client, url):
    async def talk():
        http = openai.DefaultAsyncHttpxClient(trust_env=False)
        async with openai.AsyncOpenAI(
            base_url=url + "/v1/", api_key="unused", http_client=http, max_retries=0
        ) as asking:
            calls = [asking.images.generate(prompt=str(k), extra_body={"seed": k}) for k in (4, 5)]
            replies = await asyncio.gather(*calls)
            stream = await asking.images.generate(prompt="6", stream=True, extra_body={"seed": 6})
            return [*[r.data[0] for r in replies], *[event async for event in stream]]

    made = [base64.b64decode(image.b64_json) for image in asyncio.run(talk())]
    assert made == native(client, seeds=[4, 5, 6], labels=[4, 5, 6])


@pytest.mark.parametrize("end", ["/v1", "/v1/"])
def test_base_url_may_end_in_a_slash(url, end):
    with talking(url + end) as client:
        assert client.images.generate(prompt="1").data[0].class_label == 1
        assert [m.id for m in client.models.list()] == ["digits", "animals", "points"]


def test_path_may_end_in_a_slash(client):
    reply = client.post("/images/generations/", body={"prompt": "3"}, cast_to=object)
    assert reply["data"][0]["class_label"] == 3


def test_models_are_listed_with_the_digest_of_their_bundle(client, tiny_bundle):
    first = client.models.list().data[0]
    assert (first.id, first.object, first.owned_by) == ("digits", "model", "mmf-deploy")
    assert first.bundle == bundle.load(tiny_bundle).digest
    assert client.models.retrieve("digits") == first


def failure(call) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as e:
        call()
    return e.value


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": "3 or 4"}, "prompt"),
        ({"prompt": "a", "size": "9x9"}, "size"),
        ({"prompt": "a", "extra_body": {"sede": 1}}, "sede"),
        ({"prompt": "a", "extra_body": {"class_label": 10}}, "class_label"),
        ({"prompt": "a", "extra_body": {"guidance_scale": 2}}, "guidance_scale"),
        ({"prompt": "a", "extra_body": {"steps": 4}}, "steps"),
        ({"prompt": "a", "stream": True, "partial_images": 2}, "partial_images"),
        ({"prompt": "a", "model": "points"}, "model"),
    ],
)
def test_wrong_parameter_is_a_bad_request_that_names_it(client, body, param):
    error = failure(lambda: client.images.generate(**body))
    assert type(error) is openai.BadRequestError
    assert (error.param, error.type) == (param, "invalid_request_error")


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.images.generate(prompt="1", model="digitz"),
        lambda c: c.models.retrieve("digitz"),
    ],
)
def test_unknown_model_is_not_found_and_the_nearest_is_named(client, call):
    error = failure(lambda: call(client))
    assert type(error) is openai.NotFoundError
    assert error.code == "model_not_found"
    assert "did you mean 'digits'" in error.message


def test_body_that_is_too_large_says_so_in_this_protocol(client):
    error = failure(lambda: client.images.generate(prompt="a" * (1 << 20)))
    assert (error.status_code, error.type) == (413, "invalid_request_error")


@pytest.mark.parametrize("stream", [False, True])
def test_deadline_that_nothing_could_meet_is_a_bad_request(client, stream):
    body = {"prompt": "1", "n": 10, "stream": stream, "extra_body": {"deadline_ms": 1e-9}}
    error = failure(lambda: client.images.generate(**body))
    assert type(error) is openai.BadRequestError
    assert error.param == "deadline_ms"


def test_stream_that_fails_half_way_raises_in_the_client(gated, tiny_formula):
    calls = []

    def second_batch_fails(*args):
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError
        return tiny_formula(*args)

    with listening({"digits": gated}) as found, talking(found.url + "/v1") as client:
        gated.formula = second_batch_fails
        gated.sizes.clear()
        seen = []
        events = client.images.generate(prompt="1", n=10, stream=True)
        with pytest.raises(openai.APIError, match="the service failed") as e:
            seen.extend(event.index for event in events)
    assert (e.value.type, e.value.code, e.value.param) == ("server_error", "internal_error", None)
    assert seen == list(range(gated.sizes[0])), "the batch before it"


def test_key_is_needed_where_keys_are_set(gated):
    ring = KeyRing([Key(name="ci", sha256=digest_of("right").hex())])
    with listening({"digits": gated}, Front(keys=ring)) as found:
        with talking(found.url + "/v1", key="right") as client:
            assert client.images.generate(prompt="1").data
        with talking(found.url + "/v1", key="wrong") as client:
            error = failure(lambda: client.images.generate(prompt="1"))
    assert type(error) is openai.AuthenticationError
    assert error.type == "authentication_error"


@pytest.mark.parametrize("form", ["b64_json", "url"])
def test_key_for_another_model_gets_neither_images_nor_their_addresses(gated, form):
    ring = KeyRing([Key(name="ci", sha256=digest_of("right").hex(), models=["letters"])])
    with (
        listening({"digits": gated}, Front(keys=ring)) as found,
        talking(found.url + "/v1", key="right") as client,
    ):
        error = failure(lambda: client.images.generate(prompt="1", response_format=form))
    assert type(error) is openai.PermissionDeniedError
    assert (error.type, error.code) == ("permission_error", "model_not_allowed")
    assert error.param == "model"


def test_every_status_is_documented(url):
    paths = httpx.get(f"{url}/openapi.json", trust_env=False).json()["paths"]
    assert set(paths["/v1/images/generations"]["post"]["responses"]) == {
        "200", "400", "401", "403", "404", "413", "429", "500", "503",
    }  # fmt: skip
    assert "500" in paths["/v1/generate"]["post"]["responses"]


def test_refused_client_comes_back_after_exactly_the_time_it_is_told(gated, caplog):
    caplog.set_level(logging.INFO, "openai._base_client")
    answers = []

    def on_answer(response) -> None:
        answers.append(response)
        gated.gate.set()
        for thread in others:  # the load goes before the client comes back
            thread.join(PATIENCE_S)

    def ask() -> None:
        with talking(found.url + "/v1") as other:
            other.images.generate(prompt="1")

    with listening({"digits": gated}, limits=Limits(max_queue_images=1)) as found:
        batcher = found.service.model().loaded.main.batcher
        gated.shut()
        others = [threading.Thread(target=ask) for _ in range(2)]
        others[0].start()
        assert gated.entered.acquire(timeout=PATIENCE_S)
        others[1].start()
        wait_until(lambda: batcher.waiting == 1)
        with talking(found.url + "/v1", retries=2, response=[on_answer]) as client:
            reply = client.images.generate(prompt="8")
    assert [a.status_code for a in answers] == [503, 200]
    waits = [r.args[0] for r in caplog.records if r.msg.startswith("Retrying request")]
    assert waits == [float(answers[0].headers["retry-after-ms"]) / 1000]
    assert reply.data[0].class_label == 8

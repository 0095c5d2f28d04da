"""Token buckets: never more than was promised, and a time to come back that is exact."""

from __future__ import annotations

import asyncio
import random
import time
from functools import partial

import pytest
from mmf_deploy.serve.api_keys import KeyRing
from mmf_deploy.serve.front import Front
from mmf_deploy.serve.key_file import Key, digest_of
from mmf_deploy.serve.rate_limit import RateLimiter, RateLimitHeaders
from mmf_deploy.serve.service import Limits

from mmf_deploy.errors import OverloadedError, RequestError


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def limiter(clock):
    return RateLimiter(clock)


def key_of(name="ci", images_per_s=10.0, burst=20) -> Key:
    return Key(name=name, sha256="0" * 64, images_per_s=images_per_s, burst=burst)


def refused(limiter, key, images) -> OverloadedError:
    with pytest.raises(OverloadedError) as e:
        limiter.take(key, images)
    return e.value


def test_a_burst_passes_and_what_follows_waits_for_the_rate(limiter, clock):
    key = key_of()
    limiter.take(key, 20)
    error = refused(limiter, key, 5)
    assert (error.status, error.code, error.reason) == (429, "rate_limited", "rate_limit")
    assert error.retry_after_s == pytest.approx(0.5)
    assert str(error) == "key 'ci' is over its rate of 10 images/s; 5 images are free in 500 ms"
    clock.now += 0.49
    assert refused(limiter, key, 5).retry_after_s == pytest.approx(0.01)
    clock.now += 0.01
    limiter.take(key, 5)
    refused(limiter, key, 1)


def test_who_waits_exactly_as_long_as_told_is_never_refused_again(limiter, clock):
    rng = random.Random(7)
    for rate in (0.001, 0.3, 7.7, 333.3, 1e6):
        key = key_of(f"rate-{rate}", rate, 50)
        for _ in range(300):
            images = rng.randint(1, 50)
            try:
                limiter.take(key, images)
            except OverloadedError as e:
                clock.now += e.retry_after_s
                limiter.take(key, images)
            clock.now += rng.random() / rate


def test_no_stretch_of_time_gives_more_than_burst_and_rate(limiter, clock):
    rng, key, taken = random.Random(8), key_of(), []
    for _ in range(2000):
        clock.now += rng.expovariate(20)
        images = rng.randint(1, 6)
        try:
            limiter.take(key, images)
        except OverloadedError:
            continue
        taken.append((clock.now, images))
    for start in range(0, len(taken), 7):
        total = 0
        for at, images in taken[start : start + 200]:
            total += images
            assert total <= 20 + 10 * (at - taken[start][0]) + 1e-3
    assert sum(n for _, n in taken) > 0.9 * 10 * (taken[-1][0] - taken[0][0])


def test_a_refusal_takes_nothing(limiter):
    key = key_of()
    limiter.take(key, 15)
    for _ in range(10):
        refused(limiter, key, 6)
    limiter.take(key, 5)


def test_more_than_the_burst_at_once_says_the_largest_allowed(limiter):
    with pytest.raises(RequestError, match="21 images at once; key 'ci' allows at most 20") as e:
        limiter.take(key_of(), 21)
    assert not isinstance(e.value, OverloadedError)
    assert (e.value.status, e.value.code) == (422, "over_burst")
    limiter.take(key_of(), 20)


def test_a_burst_that_is_not_given_is_ten_seconds_worth(limiter):
    assert key_of(images_per_s=2.55, burst=None).largest == 26
    assert key_of(images_per_s=0.01, burst=None).largest == 1
    limiter.take(key_of(images_per_s=2.55, burst=None), 26)


def test_images_that_are_not_made_are_given_back_but_never_beyond_the_burst(limiter):
    key = key_of()
    limiter.take(key, 20)
    limiter.give_back(key, 8)
    limiter.take(key, 8)
    refused(limiter, key, 1)
    limiter.give_back(key, 1000)
    limiter.take(key, 20)
    refused(limiter, key, 1)


def test_keys_do_not_share_a_bucket(limiter):
    limiter.take(key_of("a"), 20)
    limiter.take(key_of("b"), 20)
    refused(limiter, key_of("a"), 1)


def test_without_a_key_or_a_rate_nothing_is_limited_or_said(limiter):
    free = Key(name="free", sha256="0" * 64)
    for key in (None, free):
        limiter.take(key, 10**9)
        limiter.give_back(key, 10**9)
        assert limiter.headers(key) == {}


def test_a_reload_with_another_limit_holds_at_once(limiter, clock):
    limiter.take(key_of(), 10)
    with pytest.raises(RequestError, match="at most 5"):
        limiter.take(key_of(burst=5), 6)
    limiter.take(key_of(burst=5), 5)
    assert refused(limiter, key_of(images_per_s=100.0, burst=5), 5).retry_after_s == 0.05
    clock.now += 10
    limiter.take(key_of(images_per_s=100.0, burst=500), 500)


def test_headers_say_the_limit_what_is_left_and_when_it_is_whole_again(limiter, clock):
    key = key_of()
    assert limiter.headers(key) == {
        "x-ratelimit-limit-images": "20",
        "x-ratelimit-remaining-images": "20",
        "x-ratelimit-reset": "0",
    }
    limiter.take(key, 15)
    clock.now += 0.25
    assert limiter.headers(key) == {
        "x-ratelimit-limit-images": "20",
        "x-ratelimit-remaining-images": "7",
        "x-ratelimit-reset": "2",
    }


def test_every_reply_to_a_key_with_a_limit_carries_them(limiter):
    async def inner(scope, receive, send):
        limiter.take(scope["state"].get("key"), 3)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})

    def reply(key):
        sent = []

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "state": {"key": key} if key else {}}
        asyncio.run(RateLimitHeaders(inner, limiter)(scope, None, send))
        return sent[0]["headers"]

    limited = dict(reply(key_of()))
    assert limited[b"x-ratelimit-remaining-images"] == b"17"
    assert limited[b"a"] == b"b"
    assert reply(None) == [(b"a", b"b")]
    assert reply(Key(name="free", sha256="0" * 64)) == [(b"a", b"b")]


@pytest.fixture
def limited(gated, serving, limiter):
    """A client of the real service with a key of 10 images/s, 20 at once."""
    key = Key(name="ci", sha256=digest_of("mmf_x").hex(), images_per_s=10, burst=20)
    front = Front(keys=KeyRing([key]), limiter=limiter)
    with serving(gated, Limits(max_queue_images=16), front=front) as client:
        yield client


def ask(client, path="/v1/generate", **body):
    return client.request("POST", path, headers={"X-API-Key": "mmf_x"}, json=body)


def test_the_service_says_429_with_the_exact_time_and_admits_who_waits_for_it(limited, clock):
    good = ask(limited, n=15)
    assert good.status_code == 200
    assert good.headers["x-ratelimit-remaining-images"] == "5"
    refused = ask(limited, n=8)
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "rate_limited"
    assert refused.headers["retry-after-ms"] == "300"
    assert refused.headers["retry-after"] == "1"
    assert refused.headers["x-ratelimit-remaining-images"] == "5"
    assert 'mmf_shed_total{model="tiny",reason="rate_limit"} 1' in limited.get("/metrics").text
    clock.now += 0.3
    assert ask(limited, n=8).status_code == 200


def test_what_the_queue_refuses_costs_nothing(limited, gated):
    gated.shut()
    running = limited.portal.start_task_soon(
        partial(limited._http.post, "/v1/generate", json={}, headers={"X-API-Key": "mmf_x"})
    )
    assert gated.entered.acquire(timeout=10)
    waiting = limited.portal.start_task_soon(
        partial(limited._http.post, "/v1/generate", json={"n": 10}, headers={"X-API-Key": "mmf_x"})
    )
    while limited.batcher.waiting < 10:
        time.sleep(0.001)
    refused = ask(limited, n=9)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
    assert refused.headers["x-ratelimit-remaining-images"] == "9"
    gated.gate.set()
    assert running.result(10).status_code == waiting.result(10).status_code == 200

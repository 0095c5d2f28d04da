"""The load generator against servers that are slow, wrong, or refuse."""

import asyncio
import io
import json
from contextlib import asynccontextmanager

import numpy as np
import pytest
from aiohttp import web
from mmf_deploy.serve.load.check import Check, reference
from mmf_deploy.serve.load.client import Client, Load
from mmf_deploy.serve.load.pace import arrivals, client_cost, clock, run_async
from mmf_deploy.serve.load.report import level
from mmf_deploy.serve.load.session import Plan, Subject, measure, target_of
from mmf_deploy.serve.load.wire import Native

from mmf_deploy import bundle as bundles
from mmf_deploy.embedded import digits_bundle
from mmf_deploy.spec import SampleSpec

SPEC = SampleSpec(shape=(1, 2, 2))
POOL = 8
IMAGES = np.arange(POOL * 4, dtype=np.uint8).reshape(POOL, 2, 2, 1) * 3


class Fake:
    """A service of known images; ``answer`` can be replaced."""

    def __init__(self):
        self.at_once = self.most_at_once = 0
        self.bodies = []

    async def answer(self, asked) -> web.Response:
        await asyncio.sleep(0.002)
        return self.images(asked)

    def images(self, asked, change=lambda images: images) -> web.Response:
        out = io.BytesIO()
        np.save(out, change(IMAGES[asked["seed"] : asked["seed"] + asked["n"]].copy()))
        return web.Response(
            body=out.getvalue(), headers={"Server-Timing": "queue;dur=1.5, infer;dur=2"}
        )

    async def _handle(self, request) -> web.Response:
        asked = json.loads(await request.read())
        self.bodies.append(asked)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return await self.answer(asked)
        finally:
            self.at_once -= 1

    @asynccontextmanager
    async def client(self, load=None, known=IMAGES):
        app = web.Application()
        app.router.add_post("/v1/generate", self._handle)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]
        try:
            async with Client(
                f"http://127.0.0.1:{port}", Native("npy"), Check(SPEC, POOL, known), load or Load()
            ) as client:
                yield client
        finally:
            await runner.cleanup()


@pytest.fixture
def fake():
    return Fake()


def closed(fake, concurrency=2, seconds=0.2, load=None, known=IMAGES):
    async def run():
        async with fake.client(load, known) as client:
            return await client.closed_loop(concurrency, seconds)

    return level(asyncio.run(run()))


def test_a_closed_loop_keeps_so_many_under_way_and_counts_all(fake):
    found = closed(fake, concurrency=3)
    assert fake.most_at_once == 3
    assert found.requests == found.ok == len(fake.bodies)
    assert found.checked.identical == found.ok
    assert (found.failed, found.refused, found.shed) == ({}, {}, 0.0)
    assert found.server_ms == {"queue": 1.5, "infer": 2.0}
    assert found.mode == "closed"


def test_an_open_loop_waits_for_no_reply(fake):
    delay_s, per_s, seconds = 0.4, 100, 0.5

    async def slow(asked):
        await asyncio.sleep(delay_s)
        return fake.images(asked)

    async def run():
        async with fake.client() as client:
            return await client.open_loop(per_s, seconds)

    fake.answer = slow
    run = asyncio.run(run())
    found = level(run)
    due = [s.due_s - run.begin_s for s in run.sent]
    assert 25 < len(due) < 100
    assert max(due) < seconds
    # all of 0.4 s are under way together, where a closed loop would have had one after the other
    assert fake.most_at_once > 20
    assert found.late_ms["p50"] < 50
    assert found.latency_ms["p50"] >= delay_s * 1e3
    # what came after the load had ended is no throughput
    assert found.requests_per_s < per_s / 2
    assert found.ok == found.requests


def test_latency_counts_from_the_time_due_even_if_the_generator_is_late(fake):
    async def run():
        async with fake.client() as client:
            task = asyncio.create_task(client.open_loop(200, 0.3))
            await asyncio.sleep(0.1)
            time_lost = clock() + 0.1
            while clock() < time_lost:  # the event loop stands still
                pass
            return await task

    found = level(asyncio.run(run()))
    assert found.late_ms["p99"] > 50
    assert found.latency_ms["p99"] > 50
    assert found.latency_ms["p99"] > found.sent_latency_ms["p50"]
    assert "late" in found.bottleneck


def test_arrivals_are_the_same_again_and_random():
    one, two = (arrivals(np.random.default_rng(3), 50, 20) for _ in range(2))
    assert np.array_equal(one, two)
    gaps = np.diff(one)
    assert gaps.min() > 0
    assert one[-1] < 20
    assert len(one) == pytest.approx(1000, rel=0.15)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.15), "exponential, not regular"


@pytest.mark.parametrize("known", [IMAGES, None], ids=["compared", "repeated"])
def test_one_wrong_image_among_many_is_caught(fake, known):
    def spoil(images):
        images[-1, 0, 0, 0] += 2
        return images

    async def once_wrong(asked):
        wrong = len(fake.bodies) == 30
        return fake.images(asked, spoil if wrong else lambda images: images)

    fake.answer = once_wrong
    found = closed(fake, load=Load(images=3), known=known)
    assert found.requests >= 40
    if known is not None:
        assert found.checked.wrong == 1
    else:  # or it came first, and all later ones differ from it
        assert found.checked.wrong >= 1
    assert found.checked.within_one == 0
    total = found.checked.identical + found.checked.wrong
    assert total == 3 * found.ok, "its neighbours in the reply are not wrong"


def test_one_level_off_is_counted_apart_and_nonsense_is_wrong(fake):
    bodies = [b"", b"not an array", b"\x93NUMPY\x01\x00\x03\x00{'a"]

    async def answer(asked):
        k = len(fake.bodies)
        if k <= len(bodies):
            return web.Response(body=bodies[k - 1])
        if k == len(bodies) + 1:
            return fake.images(asked, lambda images: images[:, :1])
        return fake.images(asked, lambda images: images + np.uint8(1))

    fake.answer = answer
    found = closed(fake, concurrency=1)
    assert found.checked.wrong == len(bodies) + 1
    assert found.checked.within_one == found.ok - found.checked.wrong > 0
    assert found.checked.identical == 0


def test_the_images_of_vectors_are_compared_in_levels():
    known = np.zeros((4, 3), np.float32)
    check = Check(SampleSpec(shape=(3,)), 4, known)
    off = np.array([[0, 0, 0], [0, 0.9 / 127.5, 0], [0, 1.1 / 127.5, 0], [np.nan, 0, 0]])
    tally = check.compare(0, 4, off.astype(np.float32))
    assert (tally.identical, tally.within_one, tally.wrong) == (1, 1, 2)


@pytest.mark.parametrize(
    ("status", "headers", "refused", "failed"),
    [
        (503, {"Retry-After": "1", "Retry-After-Ms": "20"}, {"503 overloaded"}, set()),
        (429, {"Retry-After": "1", "Retry-After-Ms": "20"}, {"429 overloaded"}, set()),
        (503, {}, set(), {"503 overloaded without Retry-After"}),
        (500, {"Retry-After": "1"}, set(), {"500 overloaded"}),
    ],
)
def test_only_refusals_that_say_when_to_return_are_announced(
    fake, status, headers, refused, failed
):
    async def answer(asked):
        error = {"error": {"code": "overloaded", "message": "", "field": None}}
        return web.json_response(error, status=status, headers=headers)

    fake.answer = answer
    found = closed(fake, concurrency=1)
    assert set(found.refused) == refused
    assert set(found.failed) == failed
    assert found.ok == 0
    assert found.shed == (1.0 if refused else 0.0)
    assert found.latency_ms == {}
    if refused:  # it came back after 20 ms, and not at once
        assert 2 <= found.requests <= 11
        assert found.refusal_ms["p50"] > 0


def test_a_broken_connection_and_a_timeout_are_failures(fake):
    async def answer(asked):
        if len(fake.bodies) == 1:
            await asyncio.sleep(2)
        raise asyncio.CancelledError  # the connection is closed without a reply

    fake.answer = answer
    found = closed(fake, concurrency=1, seconds=0.5, load=Load(timeout_s=0.15))
    assert found.failed.pop("timeout") == 1
    assert all(what.startswith("connection: ") for what in found.failed), found.failed
    assert sum(found.failed.values()) == found.requests - 1 > 0


def test_probes_follow_the_load_at_once_and_deadlines_travel(fake):
    async def answer(asked):
        if len(fake.bodies) == expected + 1:
            error = {"error": {"code": "overloaded"}}
            headers = {"Retry-After": "1", "Retry-After-Ms": "20"}
            return web.json_response(error, status=503, headers=headers)
        return fake.images(asked)

    async def run():
        async with fake.client(Load(images=2)) as client:
            return await client.open_loop(100, 0.2, deadline_ms=40, probes=3)

    fake.answer = answer
    expected = len(arrivals(np.random.default_rng(0), 100, 0.2))
    found = level(asyncio.run(run()))
    assert len(found.recovery["latency_ms"]) == 3
    assert found.recovery["refused"] == 1
    assert found.recovery["first_ms"] >= 20, "it came back when it was told to"
    assert found.deadline_met is not None
    assert {(b["n"], b["deadline_ms"]) for b in fake.bodies} == {(2, 40)}
    assert len({b["seed"] for b in fake.bodies}) > 3
    assert max(b["seed"] for b in fake.bodies) <= POOL - 2
    assert len(fake.bodies) == found.requests + 4


def test_the_generator_knows_what_it_costs_itself():
    cost = run_async(lambda: client_cost(b'{"n": 1}', 192, seconds=0.2))
    assert 0 < cost["cpu_ms"] < 20
    assert cost["cpu_ms"] / 5 < cost["round_trip_ms"] < 100


def test_a_bundle_is_served_loaded_and_checked_image_by_image(tiny_bundle):
    bundle = bundles.load(tiny_bundle)
    plan = Plan(concurrency=(2,), overload=2.0, seconds=0.4, deadline_ms=5000)
    assert plan.levels == 3
    seen = []
    subject = Subject(None, bundle, pool=16)
    report = run_async(
        lambda: measure(subject, plan, Load(images=4), "mmf", lambda *at: seen.append(at))
    )
    assert (report.digest, report.model) == (bundle.digest, bundle.manifest.name)
    assert [f.mode for f in report.levels] == ["closed", "closed", "open"]
    assert report.levels[2].offered_per_s == pytest.approx(2 * report.capacity_per_s, rel=1e-3)
    total = report.checked
    assert total.wrong == total.within_one == 0
    assert total.identical >= 4 * sum(f.ok for f in report.levels) > 0
    assert report.failed == 0
    assert report.problem is None
    assert report.ready_s > 0.1
    assert 30 < report.levels[0].memory_mb["max"] < 1000
    assert any({"queue", "infer", "encode"} <= set(f.server_ms) for f in report.levels)
    assert ("2 at once", 0.0) in [(what, round(share, 1)) for what, share in seen]


def test_the_reference_is_what_the_engine_makes_of_default_labels(tiny_bundle):
    bundle = bundles.load(tiny_bundle)
    golden = bundle.golden()
    made = reference(bundle, 8)
    default = [bundle.spec.default_label(int(s)) for s in golden.seeds]
    rows = [k for k, s in enumerate(golden.seeds) if s < 8 and golden.labels[k] == default[k]]
    assert rows
    for k in rows:
        assert np.abs(made[golden.seeds[k]].astype(int) - golden.outputs[k]).max() <= 1


def test_a_report_names_the_embedded_bundle_and_not_where_it_is_installed():
    embedded = bundles.load(digits_bundle())
    assert target_of(Subject(None, embedded)) == "digits"
    assert target_of(Subject("http://host:8000", embedded)) == "http://host:8000"

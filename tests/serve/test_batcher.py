import asyncio
import logging
import threading

import numpy as np
import pytest
from mmf_deploy.serve.admission import CostModel
from mmf_deploy.serve.batcher import Batcher
from mmf_deploy.serve.samples import Item

from mmf_deploy.errors import OverloadedError, RequestError
from mmf_deploy.noise import gaussian
from mmf_deploy.spec import SampleSpec

PATIENCE_S = 10


class FakeEngine:
    """Gives back noise + label; each batch waits for the gate."""

    spec = SampleSpec(shape=(3,), classes=10)
    buckets = (1, 2, 4)

    def __init__(self):
        self.labels = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.fail_on = None

    def generate(self, noise, label=None, guidance=None):
        self.labels.append(label.tolist())
        self.entered.release()
        assert self.gate.wait(PATIENCE_S)
        if self.fail_on in label:
            raise OSError("the device fell off")
        return noise + label[:, None].astype(np.float32)


def items(*labels):
    return [Item(seed=100 + label, label=label) for label in labels]


def run(scenario, engine=None, **options):
    """Run ``scenario(batcher, engine)`` on a started batcher, then close it."""
    engine = engine or FakeEngine()

    async def main():
        batcher = Batcher(engine, **options)
        batcher.start()
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await scenario(batcher, engine)
        finally:
            engine.gate.set()
            await batcher.close()

    return asyncio.run(main())


async def busy(batcher, engine, label=0):
    """Occupy the engine with one image; returns its future."""
    engine.gate.clear()
    [first] = batcher.submit(items(label))
    assert await asyncio.to_thread(engine.entered.acquire, timeout=PATIENCE_S)
    return first


def test_an_image_runs_at_once_when_the_engine_is_idle():
    async def scenario(batcher, engine):
        for label in range(5):
            [future] = batcher.submit(items(label))
            assert (await future).batch == 1
        assert engine.labels == [[0], [1], [2], [3], [4]]

    run(scenario)


def test_what_waits_while_busy_goes_together_whatever_request_it_came_from():
    async def scenario(batcher, engine):
        await busy(batcher, engine)
        futures = [f for label in (1, 2, 3) for f in batcher.submit(items(label))]
        engine.gate.set()
        assert [s.batch for s in await asyncio.gather(*futures)] == [3, 3, 3]
        assert engine.labels == [[0], [1, 2, 3]]

    run(scenario)


def test_a_large_request_is_split_and_its_rest_joined_with_the_next():
    async def scenario(batcher, engine):
        await busy(batcher, engine)
        futures = batcher.submit(items(1, 2, 3, 4, 5)) + batcher.submit(items(6, 7))
        engine.gate.set()
        await asyncio.gather(*futures)
        assert engine.labels == [[0], [1, 2, 3, 4], [5, 6, 7]]

    run(scenario)


def test_each_image_depends_on_its_own_seed_and_label_alone():
    async def scenario(batcher, engine):
        await busy(batcher, engine)
        together = batcher.submit(items(1, 2, 3))
        engine.gate.set()
        for item, future in zip(items(1, 2, 3), together, strict=True):
            expected = gaussian(item.seed, (3,)) + np.float32(item.label)
            np.testing.assert_array_equal((await future).value, expected)
            [alone] = batcher.submit([item])
            np.testing.assert_array_equal((await alone).value, expected)

    run(scenario)


def test_an_image_is_answered_before_the_rest_of_its_request():
    async def scenario(batcher, engine):
        engine.gate.clear()
        futures = batcher.submit(items(0, 1, 2, 3, 4))
        await asyncio.to_thread(engine.entered.acquire, timeout=PATIENCE_S)
        engine.fail_on = 4
        engine.gate.set()
        assert (await futures[0]).batch == 4
        with pytest.raises(OSError, match="fell off"):
            await futures[4]

    run(scenario)


def test_inputs_the_generator_does_not_take_are_not_sent():
    class Unconditional(FakeEngine):
        spec = SampleSpec(shape=(2,), guidance=(1.0, 4.0))

        def generate(self, noise, label=None, guidance=None):
            assert label is None
            assert guidance.dtype == np.float32
            return noise * guidance[:, None]

    async def scenario(batcher, engine):
        [future] = batcher.submit([Item(seed=7, guidance=2.0)])
        np.testing.assert_array_equal((await future).value, gaussian(7, (2,)) * 2)

    run(scenario, Unconditional())


def test_a_full_queue_refuses_all_or_nothing_with_an_exact_retry_after():
    cost = CostModel(FakeEngine.buckets)
    cost.observe(1, 0.5)
    cost.observe(4, 2.0)
    now = [100.0]

    async def scenario(batcher, engine):
        await busy(batcher, engine)
        batcher.submit(items(1, 2, 3, 4, 5))
        now[0] = 100.2
        with pytest.raises(OverloadedError, match="at most 6 may") as refused:
            batcher.submit(items(6, 7))
        assert refused.value.retry_after_s == pytest.approx(0.3)
        assert batcher.waiting == 5
        batcher.submit(items(6))
        with pytest.raises(OverloadedError) as refused:
            batcher.submit(items(7, 8, 9, 1, 2))
        assert refused.value.retry_after_s == pytest.approx(0.3 + 2.0)

    run(scenario, max_queue_images=6, cost=cost, clock=lambda: now[0])


def test_the_places_of_those_who_left_are_free_again():
    async def scenario(batcher, engine):
        await busy(batcher, engine)
        left = batcher.submit(items(1, 2))
        left[0].cancel()
        stayed = batcher.submit(items(3))
        with pytest.raises(OverloadedError):
            batcher.submit(items(4))
        engine.gate.set()
        await asyncio.gather(left[1], *stayed)
        assert engine.labels == [[0], [2, 3]]

    run(scenario, max_queue_images=2)


def test_a_cancelled_image_is_not_computed_and_does_not_harm_its_batch():
    async def scenario(batcher, engine):
        first = await busy(batcher, engine)
        futures = batcher.submit(items(1, 2, 3))
        futures[1].cancel()
        first.cancel()  # its batch is running already
        engine.gate.set()
        await asyncio.gather(futures[0], futures[2])
        assert engine.labels == [[0], [1, 3]]

    run(scenario)


def test_an_image_whose_deadline_passed_is_not_computed():
    now = [0.0]
    cost = CostModel(FakeEngine.buckets)
    cost.observe(1, 0.001)
    cost.observe(4, 0.001)

    async def scenario(batcher, engine):
        await busy(batcher, engine)
        [late] = batcher.submit(items(1), deadline_s=1.0)
        [patient] = batcher.submit(items(2))
        now[0] = 1.5
        engine.gate.set()
        with pytest.raises(OverloadedError, match="deadline passed"):
            await late
        await patient
        assert engine.labels == [[0], [2]]

    run(scenario, cost=cost, clock=lambda: now[0])


def test_a_deadline_that_cannot_be_met_is_refused_before_it_waits():
    cost = CostModel(FakeEngine.buckets)
    cost.observe(1, 0.5)

    async def scenario(batcher, engine):
        await busy(batcher, engine)
        with pytest.raises(OverloadedError) as refused:
            batcher.submit(items(1), deadline_s=0.75)
        assert refused.value.retry_after_s == pytest.approx(0.25)
        assert batcher.waiting == 0

    run(scenario, cost=cost, clock=lambda: 0.0)


def test_a_failed_batch_fails_only_its_own_and_the_thread_lives_on(caplog):
    async def scenario(batcher, engine):
        await busy(batcher, engine)
        engine.fail_on = 2
        doomed = batcher.submit(items(1, 2, 3, 4))
        spared = batcher.submit(items(5, 6))
        engine.gate.set()
        for outcome in await asyncio.gather(*doomed, return_exceptions=True):
            assert isinstance(outcome, OSError)
        assert [s.batch for s in await asyncio.gather(*spared)] == [2, 2]
        [after] = batcher.submit(items(7))
        assert (await after).batch == 1

    with caplog.at_level(logging.ERROR):
        run(scenario)
    assert "a batch of 4 failed" in caplog.text


def test_an_engine_that_gives_too_few_samples_fails_its_batch():
    class Short(FakeEngine):
        def generate(self, noise, label=None, guidance=None):
            return noise[1:]

    async def scenario(batcher, engine):
        [future] = batcher.submit(items(1))
        with pytest.raises(RuntimeError, match="0 samples for 1"):
            await future

    run(scenario, Short())


def test_closing_answers_everything_accepted_and_refuses_the_rest():
    async def scenario(batcher, engine):
        first = await busy(batcher, engine)
        waiting = batcher.submit(items(1, 2, 3, 4, 5, 6))
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0)
        with pytest.raises(RequestError, match="shutting down") as refused:
            batcher.submit(items(7))
        assert (refused.value.status, refused.value.code) == (503, "draining")
        assert not closing.done()
        engine.gate.set()
        await closing
        assert all(f.done() and f.result().value is not None for f in (first, *waiting))
        assert engine.labels == [[0], [1, 2, 3, 4], [5, 6]]

    run(scenario)


def test_many_requests_with_departures_all_get_their_own_image():
    rng = np.random.default_rng(0)

    async def one(batcher, seed):
        labels = rng.integers(0, 10, rng.integers(1, 9)).tolist()
        wanted = [Item(seed=seed + k, label=label) for k, label in enumerate(labels)]
        futures = batcher.submit(wanted)
        if seed % 3 == 0:
            await asyncio.sleep(0)
            futures[0].cancel()
        for item, outcome in zip(
            wanted, await asyncio.gather(*futures, return_exceptions=True), strict=True
        ):
            if not isinstance(outcome, asyncio.CancelledError):
                expected = gaussian(item.seed, (3,)) + np.float32(item.label)
                np.testing.assert_array_equal(outcome.value, expected)

    async def scenario(batcher, engine):
        await asyncio.gather(*(one(batcher, 10 * k) for k in range(300)))
        assert batcher.waiting == 0

    run(scenario, max_queue_images=10_000)

import asyncio
import logging
import threading
import time

import numpy as np
import pytest
from mmf_deploy.serve.admission import CostModel
from mmf_deploy.serve.batcher import Batcher, Observer
from mmf_deploy.serve.job import BatchFailedError
from mmf_deploy.serve.samples import Item, Priority, Toward
from mmf_deploy.serve.turns import Turns

from mmf_deploy.errors import OverloadedError, RequestError
from mmf_deploy.noise import gaussian, spherical
from mmf_deploy.spec import SampleSpec

PATIENCE_S = 10
HIGH, NORMAL, LOW = Priority


class FakeEngine:
    """Gives back noise + label; each batch waits for the gate."""

    spec = SampleSpec(shape=(3,), classes=10)
    buckets = (1, 2, 4)
    pads = True

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
    """Occupy the engine with one image; returns its job."""
    engine.gate.clear()
    job = batcher.submit(items(label))
    assert await asyncio.to_thread(engine.entered.acquire, timeout=PATIENCE_S)
    return job


async def outcome(job):
    """The images of a job, or what it failed with."""
    try:
        return np.concatenate([part.values for part in await job.all()])
    except (Exception, asyncio.CancelledError) as e:
        return e


def test_an_image_runs_at_once_when_the_engine_is_idle():
    async def scenario(batcher, engine):
        for label in range(5):
            [part] = await batcher.submit(items(label)).all()
            assert (part.batch, part.bucket) == (1, 1)
        assert engine.labels == [[0], [1], [2], [3], [4]]

    run(scenario)


def test_what_waits_while_busy_goes_together_whatever_request_it_came_from():
    async def scenario(batcher, engine):
        await busy(batcher, engine)
        jobs = [batcher.submit(items(label)) for label in (1, 2, 3)]
        engine.gate.set()
        parts = [part for job in jobs for part in await job.all()]
        assert [(p.batch, p.bucket) for p in parts] == [(3, 4)] * 3
        assert engine.labels == [[0], [1, 2, 3]]

    run(scenario)


def test_a_large_request_is_split_and_its_rest_joined_with_the_next():
    async def scenario(batcher, engine):
        await busy(batcher, engine)
        large, small = batcher.submit(items(1, 2, 3, 4, 5)), batcher.submit(items(6, 7))
        engine.gate.set()
        assert [(p.first, len(p.values)) for p in await large.all()] == [(0, 4), (4, 1)]
        assert [(p.first, len(p.values)) for p in await small.all()] == [(0, 2)]
        assert engine.labels == [[0], [1, 2, 3, 4], [5, 6, 7]]

    run(scenario)


def test_each_image_depends_on_its_own_seed_and_label_alone():
    async def scenario(batcher, engine):
        await busy(batcher, engine)
        jobs = [batcher.submit(items(1, 2)), batcher.submit(items(3))]
        engine.gate.set()
        found = np.concatenate([await outcome(job) for job in jobs])
        for item, value in zip(items(1, 2, 3), found, strict=True):
            np.testing.assert_array_equal(value, gaussian(item.seed, (3,)) + np.float32(item.label))
            np.testing.assert_array_equal(value, (await outcome(batcher.submit([item])))[0])

    run(scenario)


def test_an_image_between_two_seeds_starts_from_the_arc_between_their_noises():
    async def scenario(batcher, engine):
        way = [Item(1, toward=Toward(2, k / 4)) for k in range(5)]
        found = await outcome(batcher.submit(way))
        for k, value in enumerate(found):
            expected = spherical(gaussian(1, (3,)), gaussian(2, (3,)), k / 4)
            np.testing.assert_array_equal(value, expected)
        np.testing.assert_array_equal(found[0], gaussian(1, (3,)))
        np.testing.assert_array_equal(found[4], gaussian(2, (3,)))

    run(scenario)


def test_an_image_is_answered_before_the_rest_of_its_request():
    async def scenario(batcher, engine):
        engine.gate.clear()
        job = batcher.submit(items(0, 1, 2, 3, 4))
        await asyncio.to_thread(engine.entered.acquire, timeout=PATIENCE_S)
        engine.fail_on = 4
        engine.gate.set()
        assert (await job.next_part()).batch == 4
        with pytest.raises(BatchFailedError, match="fell off"):
            await job.next_part()

    run(scenario)


def test_inputs_the_generator_does_not_take_are_not_sent():
    class Unconditional(FakeEngine):
        spec = SampleSpec(shape=(2,), guidance=(1.0, 4.0))

        def generate(self, noise, label=None, guidance=None):
            assert label is None
            assert guidance.dtype == np.float32
            return noise * guidance[:, None]

    async def scenario(batcher, engine):
        found = await outcome(batcher.submit([Item(seed=7, guidance=2.0)]))
        np.testing.assert_array_equal(found[0], gaussian(7, (2,)) * 2)

    run(scenario, Unconditional())


# Priorities


def test_higher_priorities_go_first_and_each_in_the_order_of_arrival():
    async def scenario(batcher, engine):
        await busy(batcher, engine)
        jobs = [
            batcher.submit(items(label), priority=priority)
            for label, priority in [
                (1, LOW),
                (2, NORMAL),
                (3, HIGH),
                (4, LOW),
                (5, NORMAL),
                (6, HIGH),
            ]
        ]
        engine.gate.set()
        await asyncio.gather(*(job.all() for job in jobs))
        assert engine.labels == [[0], [3, 6, 2, 5], [1, 4]]

    run(scenario)


def test_a_queue_full_of_lower_priorities_has_room_for_higher_ones_and_not_the_reverse():
    async def scenario(batcher, engine):
        await busy(batcher, engine)
        batcher.submit(items(1, 2), priority=LOW)
        with pytest.raises(OverloadedError):
            batcher.submit(items(3), priority=LOW)
        batcher.submit(items(3, 4), priority=NORMAL)
        batcher.submit(items(5, 6), priority=HIGH)
        for priority in Priority:
            with pytest.raises(OverloadedError):
                batcher.submit(items(7), priority=priority)
        assert batcher.waiting_by_priority == {HIGH: 2, NORMAL: 2, LOW: 2}

    run(scenario, max_queue_images=2)


def test_a_deadline_is_promised_from_what_goes_before_it_and_not_from_what_goes_after():
    cost = CostModel(FakeEngine.buckets)
    cost.observe(1, 0.5)
    cost.observe(4, 2.0)

    async def scenario(batcher, engine):
        await busy(batcher, engine)
        batcher.submit(items(1, 2, 3, 4))
        with pytest.raises(OverloadedError):
            batcher.submit(items(5), deadline_s=1.1)
        batcher.submit(items(5), deadline_s=1.1, priority=HIGH)

    run(scenario, cost=cost, clock=lambda: 0.0)


# Admission


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
        assert refused.value.reason == "queue_full"
        assert batcher.waiting == 5
        batcher.submit(items(6))
        with pytest.raises(OverloadedError) as refused:
            batcher.submit(items(7, 8, 9, 1, 2))
        assert refused.value.retry_after_s == pytest.approx(0.3 + 2.0)

    run(scenario, max_queue_images=6, cost=cost, clock=lambda: now[0])


def test_the_places_of_those_who_left_are_free_at_once():
    async def scenario(batcher, engine):
        await busy(batcher, engine)
        left, stayed = batcher.submit(items(1, 2)), batcher.submit(items(3))
        with pytest.raises(OverloadedError):
            batcher.submit(items(4))
        left.cancel()
        assert batcher.waiting == 1
        late = batcher.submit(items(4, 5))
        engine.gate.set()
        await asyncio.gather(stayed.all(), late.all())
        assert engine.labels == [[0], [3, 4, 5]]

    run(scenario, max_queue_images=3)


def test_a_cancelled_job_is_not_computed_and_does_not_harm_its_batch():
    async def scenario(batcher, engine):
        first = await busy(batcher, engine)
        jobs = [batcher.submit(items(label)) for label in (1, 2, 3)]
        jobs[1].cancel()
        first.cancel()  # its batch is running already
        engine.gate.set()
        await asyncio.gather(jobs[0].all(), jobs[2].all())
        assert isinstance(await outcome(jobs[1]), asyncio.CancelledError)
        assert engine.labels == [[0], [1, 3]]
        assert batcher.waiting == 0

    run(scenario)


def test_the_rest_of_a_cancelled_job_is_not_computed():
    async def scenario(batcher, engine):
        engine.gate.clear()
        job = batcher.submit(items(*range(9)))
        await asyncio.to_thread(engine.entered.acquire, timeout=PATIENCE_S)
        job.cancel()
        engine.gate.set()
        await batcher.submit(items(1)).all()
        assert engine.labels == [[0, 1, 2, 3], [1]]

    run(scenario)


def test_cancelled_jobs_leave_nothing_behind_in_an_empty_queue():
    async def scenario(batcher, engine):
        await busy(batcher, engine)
        for _ in range(100):
            batcher.submit(items(1)).cancel()
        assert batcher.waiting == 0
        assert not any(batcher._queues.values())
        batcher.submit(items(2), priority=LOW)
        for _ in range(100):
            batcher.submit(items(1), priority=LOW).cancel()
        assert len(batcher._queues[LOW]) == 1

    run(scenario)


def test_an_image_whose_deadline_passed_is_not_computed():
    now = [0.0]
    cost = CostModel(FakeEngine.buckets)
    cost.observe(1, 0.001)
    cost.observe(4, 0.001)

    async def scenario(batcher, engine):
        await busy(batcher, engine)
        late = batcher.submit(items(1), deadline_s=1.0)
        patient = batcher.submit(items(2))
        now[0] = 1.5
        engine.gate.set()
        with pytest.raises(OverloadedError, match="deadline passed") as refused:
            await late.all()
        assert refused.value.reason == "expired"
        await patient.all()
        assert engine.labels == [[0], [2]]

    run(scenario, cost=cost, clock=lambda: now[0])


def test_places_of_those_whose_deadline_passed_are_free_for_who_comes():
    now = [0.0]
    cost = CostModel(FakeEngine.buckets)
    cost.observe(1, 0.001)
    cost.observe(4, 0.001)

    async def scenario(batcher, engine):
        await busy(batcher, engine)
        late = batcher.submit(items(1, 2), deadline_s=1.0)
        now[0] = 1.5
        batcher.submit(items(3, 4))
        assert batcher.waiting == 2
        assert isinstance(await outcome(late), OverloadedError)

    run(scenario, cost=cost, max_queue_images=2, clock=lambda: now[0])


def test_a_deadline_that_cannot_be_met_is_refused_before_it_waits():
    cost = CostModel(FakeEngine.buckets)
    cost.observe(1, 0.5)

    async def scenario(batcher, engine):
        await busy(batcher, engine)
        with pytest.raises(OverloadedError) as refused:
            batcher.submit(items(1), deadline_s=0.75)
        assert refused.value.retry_after_s == pytest.approx(0.25)
        assert refused.value.reason == "deadline"
        assert batcher.waiting == 0

    run(scenario, cost=cost, clock=lambda: 0.0)


# Failures, several engines, the end


def test_a_failed_batch_fails_only_its_own_and_the_thread_lives_on(caplog):
    async def scenario(batcher, engine):
        await busy(batcher, engine)
        engine.fail_on = 2
        doomed = [batcher.submit(items(1)), batcher.submit(items(2, 3, 4))]
        spared = batcher.submit(items(5, 6))
        engine.gate.set()
        for job in doomed:
            failure = await outcome(job)
            assert isinstance(failure, BatchFailedError)
            assert isinstance(failure.__cause__, OSError)
        assert [p.batch for p in await spared.all()] == [2]
        assert batcher.failures == 0
        [after] = await batcher.submit(items(7)).all()
        assert after.batch == 1

    with caplog.at_level(logging.ERROR):
        run(scenario)
    assert "a batch of 4 failed" in caplog.text


def test_the_rest_of_a_request_whose_batch_failed_is_not_computed():
    async def scenario(batcher, engine):
        await busy(batcher, engine)
        engine.fail_on = 2
        job = batcher.submit(items(1, 2, 3, 4, 5, 6))
        after = batcher.submit(items(7, 8, 9))
        engine.gate.set()
        assert isinstance(await outcome(job), BatchFailedError)
        await after.all()
        assert engine.labels == [[0], [1, 2, 3, 4], [7, 8, 9]]

    run(scenario)


def test_what_should_never_happen_is_heard_by_whoever_waits_and_the_thread_lives_on(caplog):
    class BrokenCost(CostModel):
        broken = False

        def observe(self, size, seconds):
            if self.broken:
                raise KeyboardInterrupt
            super().observe(size, seconds)

    cost = BrokenCost(FakeEngine.buckets)

    async def scenario(batcher, engine):
        await busy(batcher, engine)
        pair, after = batcher.submit(items(1, 2, 3, 4)), batcher.submit(items(5))
        cost.broken = True
        engine.gate.set()
        for job in (pair, after):
            assert isinstance(await outcome(job), BatchFailedError)
        assert batcher.waiting == 0
        cost.broken = False
        assert len(await outcome(batcher.submit(items(6)))) == 1

    with caplog.at_level(logging.ERROR):
        run(scenario, cost=cost)
    assert "should not happen" in caplog.text


def test_an_engine_that_gives_too_few_samples_fails_its_batch():
    class Short(FakeEngine):
        def generate(self, noise, label=None, guidance=None):
            return noise[1:]

    async def scenario(batcher, engine):
        with pytest.raises(BatchFailedError, match="0 samples for 1"):
            await batcher.submit(items(1)).all()

    run(scenario, Short())


def test_batches_are_reported_with_their_padding():
    class Seen(Observer):
        def __init__(self):
            self.batches, self.drops, self.failed = [], [], 0

        def batch(self, size, bucket, seconds):
            self.batches.append((size, bucket))

        def batch_failed(self, size):
            self.failed += size

        def dropped(self, images, reason):
            self.drops.append((images, reason))

    seen = Seen()

    async def scenario(batcher, engine):
        await busy(batcher, engine)
        jobs = [batcher.submit(items(1)), batcher.submit(items(2, 3))]
        batcher.submit(items(4, 5)).cancel()
        engine.gate.set()
        await asyncio.gather(*(job.all() for job in jobs))
        engine.fail_on = 9
        assert isinstance(await outcome(batcher.submit(items(9))), BatchFailedError)

    run(scenario, observer=seen)
    assert seen.batches == [(1, 1), (3, 4)]
    assert seen.drops == [(2, "disconnect")]
    assert seen.failed == 1


def test_batchers_that_share_a_device_take_turns():
    running, most = [0], [0]
    lock = threading.Lock()

    class Counting(FakeEngine):
        def generate(self, noise, label=None, guidance=None):
            with lock:
                running[0] += 1
                most[0] = max(most[0], running[0])
            try:
                time.sleep(0.001)
                return super().generate(noise, label, guidance)
            finally:
                with lock:
                    running[0] -= 1

    async def main():
        turns = Turns()
        batchers = [Batcher(Counting(), turn=turns) for _ in range(3)]
        for batcher in batchers:
            batcher.start()
        async with asyncio.timeout(PATIENCE_S):
            jobs = [b.submit(items(*range(9))) for b in batchers for _ in range(3)]
            await asyncio.gather(*(job.all() for job in jobs))
            for batcher in batchers:
                await batcher.close()

    asyncio.run(main())
    assert most == [1]


def test_a_turn_goes_to_whoever_asked_first():
    turns, order = Turns(), []

    def ask(name):
        with turns:
            order.append(name)

    with turns:
        threads = []
        for name in range(5):
            threads.append(threading.Thread(target=ask, args=(name,)))
            threads[-1].start()
            while len(turns._asking) <= name:
                time.sleep(0.001)
    for thread in threads:
        thread.join(PATIENCE_S)
    assert order == [0, 1, 2, 3, 4]
    with turns:
        pass


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
        assert [len(await outcome(job)) for job in (first, waiting)] == [1, 6]
        assert engine.labels == [[0], [1, 2, 3, 4], [5, 6]]

    run(scenario)


def test_many_requests_with_departures_all_get_their_own_image():
    rng = np.random.default_rng(0)

    async def one(batcher, seed):
        labels = rng.integers(0, 10, rng.integers(1, 9)).tolist()
        wanted = [Item(seed=seed + k, label=label) for k, label in enumerate(labels)]
        job = batcher.submit(wanted, priority=list(Priority)[seed % 3])
        if seed % 4 == 0:
            await asyncio.sleep(0)
            job.cancel()
        found = await outcome(job)
        if not isinstance(found, asyncio.CancelledError):
            for item, value in zip(wanted, found, strict=True):
                expected = gaussian(item.seed, (3,)) + np.float32(item.label)
                np.testing.assert_array_equal(value, expected)
            return 1
        return 0

    async def scenario(batcher, engine):
        answered = await asyncio.gather(*(one(batcher, 10 * k + k % 3) for k in range(300)))
        assert sum(answered) >= 200, "two of three stayed"
        assert batcher.waiting == 0

    run(scenario, max_queue_images=10_000)

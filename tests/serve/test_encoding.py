import asyncio
import threading
import time

import numpy as np
from mmf_deploy.serve.encoding import INLINE_S, Encoder
from mmf_deploy.serve.samples import Item

PATIENCE_S = 10


def run(scenario, threads=2):
    async def main():
        encoder = Encoder(threads)
        encoder.start()
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await scenario(encoder)
        finally:
            encoder.close()

    return asyncio.run(main())


def batch(count):
    return [Item(k) for k in range(count)], np.arange(count)


def test_results_are_in_order_however_they_were_split():
    async def scenario(encoder):
        for _ in range(3):
            items, values = batch(200)
            done = await encoder.encode("slow", slow, items, values)
            assert done == [(k, k) for k in range(200)]
        assert encoder.waiting == 0

    def slow(item, value):
        time.sleep(5e-5)
        return item.seed, int(value)

    run(scenario)


def test_quick_work_is_done_at_once_and_unknown_work_is_not():
    async def scenario(encoder):
        items, values = batch(4)
        where = []

        def quick(item, value):
            where.append(threading.current_thread() is threading.main_thread())
            return item.seed

        assert encoder.now("quick", quick, items, values) is None, "its cost is not known yet"
        await encoder.encode("quick", quick, items, values)
        assert encoder.now("quick", quick, items, values) == [0, 1, 2, 3]
        assert where == [False] * 4 + [True] * 4
        encoder._image_s["quick"] = INLINE_S
        assert encoder.now("quick", quick, items, values) is None

    run(scenario)


def test_a_failure_reaches_who_asked_and_leaves_no_backlog():
    async def scenario(encoder):
        def fail(item, value):
            raise ValueError(item.seed)

        items, values = batch(5)
        try:
            await encoder.encode("bad", fail, items, values)
        except ValueError:
            pass
        else:
            raise AssertionError("it did not fail")
        while encoder.waiting:
            await asyncio.sleep(0.001)

    run(scenario)


def test_what_waits_and_what_comes_is_predicted_from_what_each_kind_costs():
    async def scenario(encoder):
        encoder._image_s.update({"png": 0.01, "webp": 1.0})
        assert encoder.predicted_s("png", 1) == 0.01
        assert encoder.predicted_s("png", 10) == 0.05, "two threads"
        gate = threading.Event()
        items, values = batch(20)
        waiting = asyncio.create_task(
            encoder.encode("png", lambda item, value: gate.wait(PATIENCE_S), items, values)
        )
        while encoder.waiting < 20:
            await asyncio.sleep(0)
        assert abs(encoder.backlog_s - 0.1) < 1e-9, "whatever another kind costs"
        gate.set()
        await waiting
        assert encoder.backlog_s == 0.0
        encoder.forget()
        assert encoder.predicted_s("png", 1) == 0.0

    run(scenario)

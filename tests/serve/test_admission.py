import math

import pytest
from mmf_deploy.serve.admission import SMOOTHING, UNMEASURED_S, Admission, CostModel

from mmf_deploy.errors import OverloadedError


def measured(**seconds: float) -> CostModel:
    cost = CostModel((1, 2, 4))
    for size, value in seconds.items():
        cost.observe(int(size.removeprefix("b")), value)
    return cost


def test_cost_is_a_moving_average_by_bucket():
    cost = measured(b1=1.0)
    cost.observe(1, 2.0)
    cost.observe(3, 7.0)
    assert cost.batch_s(1) == pytest.approx(1.0 + SMOOTHING)
    assert cost.batch_s(4) == 7.0, "a batch of three runs in the bucket of four"


@pytest.mark.parametrize(
    ("seconds", "size", "bound"),
    [
        ({}, 1, UNMEASURED_S),
        ({"b4": 0.4}, 1, 0.4),
        ({"b1": 0.1}, 4, 0.4),
        ({"b1": 0.1, "b4": 0.2}, 2, 0.2),
    ],
)
def test_an_unmeasured_bucket_costs_an_upper_bound(seconds, size, bound):
    assert measured(**seconds).batch_s(size) == pytest.approx(bound)


def test_total_is_full_batches_and_a_rest():
    cost = measured(b1=0.1, b4=0.3)
    assert cost.total_s(9) == pytest.approx(0.3 + 0.3 + 0.1)
    assert cost.total_s(0) == 0.0


@pytest.mark.parametrize(
    ("waiting", "count", "retry_s"),
    [
        (8, 1, 0.3),  # the running batch ends in 0.3 s and four leave the queue
        (8, 4, 0.3),
        (8, 5, 0.3 + 0.4),  # four are not enough: one batch more
        (8, 8, 0.3 + 0.4),
        (5, 4, 0.3),
    ],
)
def test_a_full_queue_says_exactly_when_there_is_room(waiting, count, retry_s):
    admission = Admission(measured(b4=0.4), max_queue_images=8)
    admission.began(4, now=10.0)
    refusal = admission.refusal(waiting, count, math.inf, now=10.1)
    assert isinstance(refusal, OverloadedError)
    assert refusal.retry_after_s == pytest.approx(retry_s)


def test_a_queue_with_exactly_enough_room_admits():
    admission = Admission(measured(b4=0.4), max_queue_images=8)
    assert admission.refusal(4, 4, math.inf, now=0.0) is None


def test_a_deadline_that_the_queue_would_miss_is_refused_with_the_exact_delay():
    admission = Admission(measured(b1=0.1, b4=0.4), max_queue_images=100)
    admission.began(4, now=0.0)
    # 0.3 s for the running batch, 0.4 for the four that wait, 0.1 for the one that asks
    assert admission.refusal(4, 1, deadline_s=0.9001, now=0.1) is None
    refusal = admission.refusal(4, 1, deadline_s=0.7, now=0.1)
    assert isinstance(refusal, OverloadedError)
    assert refusal.retry_after_s == pytest.approx(0.2)


def test_a_deadline_that_nothing_could_meet_is_the_request_s_fault():
    admission = Admission(measured(b1=0.1), max_queue_images=100)
    refusal = admission.refusal(0, 1, deadline_s=0.04, now=0.0)
    assert refusal is not None
    assert not isinstance(refusal, OverloadedError)
    assert (refusal.field, refusal.status) == ("deadline_ms", 422)


def test_a_failed_batch_does_not_change_the_costs():
    cost = measured(b1=0.1)
    admission = Admission(cost, max_queue_images=8)
    admission.began(1, now=0.0)
    admission.ended(now=9.0, failed=True)
    assert cost.batch_s(1) == 0.1
    assert admission.ready_in_s(1, now=9.0) == pytest.approx(0.1)


def test_a_cost_that_was_never_measured_refuses_nobody_for_good():
    cost = CostModel((1, 4))
    admission = Admission(cost, max_queue_images=100)
    cost.observe(1, 0.010)
    # four images are guessed at 40 ms, but that is a guess
    assert admission.refusal(0, 4, deadline_s=0.010, now=0.0) is None
    cost.observe(4, 0.030)
    assert admission.refusal(0, 4, deadline_s=0.010, now=0.0).code == "deadline_too_short"


def test_a_deadline_that_is_only_a_little_short_is_tried_when_nothing_is_in_its_way():
    cost = CostModel((1,))
    cost.observe(1, 0.1)
    admission = Admission(cost, max_queue_images=100)
    assert admission.refusal(0, 1, deadline_s=0.08, now=0.0) is None
    refusal = admission.refusal(1, 1, deadline_s=0.08, now=0.0)
    assert isinstance(refusal, OverloadedError)
    assert refusal.reason == "deadline"


def test_promises_keep_a_margin_of_twice_the_mean_deviation():
    cost = CostModel((1,))
    cost.observe(1, 0.1)
    admission = Admission(cost, max_queue_images=100)
    assert admission.refusal(1, 1, deadline_s=0.201, now=0.0) is None
    for seconds in (0.15, 0.05) * 10:
        cost.observe(1, seconds)
    assert cost.deviation > 0.3
    assert admission.refusal(1, 1, deadline_s=0.201, now=0.0).reason == "deadline"


def test_costs_between_buckets_are_interpolated_where_nothing_is_padded():
    cost = CostModel((1, 4), pads=False)
    cost.observe(1, 0.1)
    cost.observe(4, 0.4)
    assert cost.batch_s(2) == pytest.approx(0.2)
    cost.observe(2, 0.4)  # twice as long as predicted
    assert cost.batch_s(4) == pytest.approx(0.4 * (1 + SMOOTHING))


@pytest.mark.parametrize(
    ("seconds", "kept"),
    [
        ({"b1": 1.0, "b2": 1.2, "b4": 1.5}, (1, 2, 4)),
        ({"b1": 1.0, "b2": 2.0, "b4": 4.0}, (1,)),
        ({"b1": 1.0, "b2": 1.2, "b4": 2.4}, (1, 2)),
        ({"b1": 1.0, "b2": 2.1, "b4": 2.0}, (1, 2, 4)),
        ({"b1": 1.0, "b2": 1.2}, (1, 2, 4)),
        ({"b1": 1.0, "b2": 2.0}, (1,)),
        # over in milliseconds: handing batches from thread to thread would count
        ({"b1": 0.001, "b2": 0.002, "b4": 0.004}, (1, 2, 4)),
        ({}, (1, 2, 4)),
    ],
)
def test_batches_grow_only_as_long_as_an_image_costs_less(seconds, kept):
    cost = measured(**seconds)
    cost.settle()
    assert cost.buckets == kept

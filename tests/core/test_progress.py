"""What a person sees of something long."""

import pytest

from mmf_deploy import progress
from mmf_deploy.progress import TaskProgress, duration


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when a test says so."""

    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (42, "0:42"), (725, "12:05"), (11229, "3:07:09")]
)
def test_durations_read_like_a_clock(seconds, text):
    assert duration(seconds) == text


def test_a_line_now_and_then_says_how_long_it_will_take(clock, capsys):
    with TaskProgress("steps", total=100) as shown:
        shown.show("training", 0)
        for done in range(10, 101, 10):
            clock.now += 6
            shown.show("training", done, "loss 1.0")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "training: 20/100 steps  loss 1.0  0:48 left"
    assert len(lines) == 4  # every ten seconds at most, and not at the end


def test_the_speed_of_a_resumed_task_counts_only_what_is_done_now(clock, capsys):
    with TaskProgress("steps", total=100, start=80) as shown:
        shown.show("training", 80)
        clock.now += 20
        shown.show("training", 90)
        assert shown.per_second(90) == pytest.approx(0.5)
    assert "90/100 steps  0:20 left" in capsys.readouterr().out

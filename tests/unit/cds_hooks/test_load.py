from contextlib import ExitStack

import pytest

from rayhook.cds_hooks.load import CallsInHand


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize(("others", "wait_s"), [(0, 0.4), (10, 0.25), (1000, 0.1)])
def test_the_more_calls_in_hand_the_shorter_each_waits(others, wait_s):
    calls = CallsInHand()
    with ExitStack() as stack:
        for _ in range(others + 1):
            stack.enter_context(calls.call())
        assert calls.wait_s(0.4) == pytest.approx(wait_s)
    assert calls.wait_s(0.4) == 0.4


def test_a_call_that_failed_is_not_in_hand():
    calls = CallsInHand()
    for _ in range(20):
        with pytest.raises(ValueError, match="fails"), calls.call():
            raise ValueError("fails")
    assert calls.wait_s(0.4) == 0.4


def ended(calls, clock, seconds):
    with calls.call() as turn:
        turn.waited(clock.now)
        clock.now += seconds


@pytest.mark.parametrize(("took_s", "wait_s"), [(0.01, 0.4), (0.05, 0.4), (0.15, 0.3), (5.0, 0.1)])
def test_where_calls_take_long_to_end_the_next_ones_wait_less(took_s, wait_s):
    clock = Clock()
    calls = CallsInHand(clock)
    ended(calls, clock, took_s)
    assert calls.wait_s(0.4) == pytest.approx(wait_s)


def test_a_slow_moment_is_forgotten():
    clock = Clock()
    calls = CallsInHand(clock)
    ended(calls, clock, 0.4)
    for _ in range(60):
        ended(calls, clock, 0.005)
    assert calls.wait_s(0.4) == pytest.approx(0.4)


def test_a_call_that_did_not_wait_says_nothing_of_it():
    clock = Clock()
    calls = CallsInHand(clock)
    with calls.call():
        clock.now += 5
    assert calls.wait_s(0.4) == 0.4

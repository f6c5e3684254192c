from contextlib import ExitStack

import pytest

from rayhook.cds_hooks.load import CallsInHand


@pytest.mark.parametrize(("others", "wait_s"), [(0, 0.4), (10, 0.28), (1000, 0.1)])
def test_the_more_calls_in_hand_the_shorter_each_waits(others, wait_s):
    calls = CallsInHand()
    with ExitStack() as stack:
        for _ in range(others + 1):
            stack.enter_context(calls)
        assert calls.wait_s(0.4) == pytest.approx(wait_s)


def test_a_call_that_failed_is_not_in_hand():
    calls = CallsInHand()
    with pytest.raises(ValueError), calls:
        raise ValueError
    with calls:
        assert calls.wait_s(0.4) == 0.4

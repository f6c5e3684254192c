"""Whatever the network does to notifications, what was missed is known, and what was heard is not missed."""

from hypothesis import given
from hypothesis import strategies as st

from rayhook.inference.event_number import EventNumbers

BEGUN = EventNumbers().begun(0)
NUMBERS = st.lists(st.integers(1, 30), max_size=60)


def heard(numbers, state=BEGUN):
    for number in numbers:
        state = state.heard([number])
    return state


@given(st.permutations(range(1, 20)), NUMBERS)
def test_all_of_them_in_any_order_and_again_leave_nothing_missing(order, again):
    state = heard([*order, *(number for number in again if number < 20)])
    assert (state.complete, state.ahead, state.is_behind) == (19, (), False)


@given(NUMBERS)
def test_what_was_heard_is_known_and_nothing_else(numbers):
    state = heard(numbers)
    assert {number for number in range(1, 31) if state.knows(number)} == set(numbers)


@given(NUMBERS)
def test_one_by_one_or_all_at_once_is_the_same(numbers):
    assert heard(numbers) == BEGUN.heard(numbers)


@given(NUMBERS)
def test_something_is_missing_as_long_as_there_is_a_gap(numbers):
    gap = set(range(1, max(numbers, default=0) + 1)) - set(numbers)
    assert heard(numbers).is_behind is bool(gap)


@given(NUMBERS, st.integers(0, 40))
def test_a_count_tells_of_what_was_not_heard(numbers, count):
    state = heard(numbers)
    after = state.counted(count)
    assert after.is_behind is (state.is_behind or count != (state.complete or 0)) or count in state.ahead


@given(NUMBERS)
def test_a_gap_that_is_given_up_is_searched_for(numbers):
    state = heard(numbers).given_up()
    assert (state.is_lost, list(state.missing), state.complete) == (True, [], max(numbers, default=0))


@given(st.integers(1, 10_000))
def test_a_first_event_is_taken_as_it_is(number):
    state = EventNumbers().heard([number])
    assert (state.complete, state.is_lost) == (number, number > 1)


def test_a_server_that_counts_anew_may_have_told_nobody_of_something():
    state = heard(range(1, 10)).counted(2)
    assert (state.complete, state.is_lost) == (2, True)


def test_an_old_event_does_not_count_anew():
    assert heard(range(1, 10)).at_least(3) == heard(range(1, 10))


def test_a_handshake_of_a_new_subscription_has_nothing_missing():
    assert not EventNumbers().begun(0).is_behind


def test_a_handshake_after_a_restart_has_something_lost():
    assert heard(range(1, 10)).begun(0).is_lost


def test_five_hundred_events_beyond_a_gap_are_not_waited_with():
    assert heard(range(2, 504)).is_lost

"""How much of the PACS the viewers may take at the same time."""

import threading
import time
from contextlib import ExitStack

import pytest

from rayhook.fhir.errors import Overloaded
from rayhook.smart_app.retrievals import Retrievals


def test_as_many_as_may_at_the_same_time():
    retrievals = Retrievals(4, wait_s=0.01)
    with ExitStack() as stack:
        for person in ("a", "a", "b", "b"):
            stack.enter_context(retrievals.turn(person))
        with pytest.raises(Overloaded) as refused, retrievals.turn("c"):
            pass
    assert (refused.value.status, refused.value.retryable) == (503, True)
    assert refused.value.retry_after_s > 0


def test_one_person_takes_half_of_it_at_most():
    retrievals = Retrievals(4, wait_s=0.01)
    with retrievals.turn("a"), retrievals.turn("a"):
        with pytest.raises(Overloaded), retrievals.turn("a"):
            pass
        with retrievals.turn("b"):
            pass


def test_a_place_that_comes_free_is_waited_for():
    retrievals = Retrievals(1, wait_s=5)
    first = ExitStack()
    first.enter_context(retrievals.turn("a"))
    threading.Timer(0.05, first.close).start()
    with retrievals.turn("b"):
        assert retrievals._in_hand == {"b": 1}


def test_no_more_wait_than_may_be_in_hand():
    retrievals = Retrievals(1, wait_s=5)
    with retrievals.turn("a"):
        waiting = threading.Thread(target=lambda: retrievals.turn("b").__enter__())
        waiting.start()
        while not retrievals._waiting:
            time.sleep(0.001)
        started = time.monotonic()
        with pytest.raises(Overloaded), retrievals.turn("c"):
            pass
        assert time.monotonic() - started < 1
    waiting.join()


def test_a_place_is_given_back_whatever_happened():
    retrievals = Retrievals(1, wait_s=0.01)
    for _ in range(3):
        with pytest.raises(KeyError), retrievals.turn("a"):
            raise KeyError
    assert not retrievals._in_hand

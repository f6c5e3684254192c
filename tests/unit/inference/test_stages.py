import threading
import time
from contextvars import copy_context

import pytest

from rayhook.inference.stages import Stage, StageTimes, timed, timed_each, timing


def test_times_of_a_stage_are_added_up():
    with timing() as times:
        for _ in range(2):
            with timed(Stage.DECODE):
                time.sleep(0.01)
    assert times.seconds()[Stage.DECODE] >= 0.02


def test_stage_that_fails_is_counted_too():
    with timing() as times, pytest.raises(ValueError, match="image"), timed(Stage.WRITE):
        raise ValueError("image")
    assert Stage.WRITE in times.seconds()


def test_without_a_study_nothing_is_counted():
    with timing() as times:
        pass
    with timed(Stage.DECODE):
        pass
    assert times.seconds() == {}


def test_thread_in_a_copy_of_the_context_counts_for_its_study():
    def work():
        with timed(Stage.FORWARD):
            pass

    with timing() as times:
        thread = threading.Thread(target=copy_context().run, args=(work,))
        thread.start()
        thread.join()
    assert set(times.seconds()) == {Stage.FORWARD}


def test_studies_side_by_side_do_not_mix():
    seen = {}

    def study(stage):
        with timing() as times:
            with timed(stage):
                time.sleep(0.005)
            seen[stage] = set(times.seconds())

    threads = [threading.Thread(target=study, args=(stage,)) for stage in Stage]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {stage: {stage} for stage in Stage}


def test_items_are_timed_while_they_are_waited_for_and_not_while_they_are_used():
    def images():
        for number in range(3):
            time.sleep(0.01)
            yield number

    with timing() as times:
        taken = []
        for number in timed_each(Stage.FETCH, images):
            taken.append(number)
            time.sleep(0.05)
    assert taken == [0, 1, 2]
    assert 0.03 <= times.seconds()[Stage.FETCH] < 0.15


def test_items_are_closed_by_who_stops_taking_them():
    closed = []

    def images():
        try:
            yield 1
            yield 2
        finally:
            closed.append(True)

    taking = timed_each(Stage.FETCH, images)
    next(taking)
    taking.close()
    assert closed == [True]


def test_threads_of_one_study_lose_nothing():
    times = StageTimes()
    threads = [
        threading.Thread(target=lambda: [times.add(Stage.DECODE, 1.0) for _ in range(1000)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert times.seconds() == {Stage.DECODE: 4000.0}

"""Work beside the service: it goes on whatever happens, and ends when it is told to."""

import threading

from structlog.testing import capture_logs

from rayhook.deploy.threads import in_threads

_LONGEST_S = 10.0


def test_work_that_fails_is_begun_anew():
    tries, is_at_it = [], threading.Event()

    def work(stopping):
        tries.append(1)
        if len(tries) == 1:
            raise KeyError("Doe^Jane")
        is_at_it.set()
        stopping.wait()

    with in_threads({"work": work}, again_s=0.0):
        assert is_at_it.wait(_LONGEST_S)


def test_a_failure_is_logged_by_its_place_and_never_by_its_text():
    has_failed = threading.Event()

    def work(stopping):
        if has_failed.is_set():
            return
        has_failed.set()
        raise KeyError("Doe^Jane")

    with capture_logs() as logs, in_threads({"work": work}, again_s=0.0, stop_s=None):
        assert has_failed.wait(_LONGEST_S)
    [told] = logs
    assert (told["event"], told["work"], told["error_type"]) == ("background_work_failed", "work", "KeyError")
    assert told["at"].startswith("test_threads.py:")
    assert "Jane" not in str(logs)


def test_work_is_told_to_end():
    has_ended = threading.Event()

    def work(stopping):
        stopping.wait()
        has_ended.set()

    with in_threads({"work": work}):
        pass
    assert has_ended.is_set()
